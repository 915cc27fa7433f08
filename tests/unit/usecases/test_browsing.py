"""Looking around: what the caller may not see is left out, or not found."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.catalogue import Project, VersionState
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    AuditUnavailable,
    DeadlineExceeded,
    InvalidField,
    ModelNotFoundOrDenied,
    NoStableVersion,
    VersionDisabled,
    VersionNotFinalized,
)
from kms_service.domain.identity import Caller
from kms_service.domain.names import AliasName, ModelName, ProjectName, VersionName
from kms_service.domain.ports import Page
from tests.support.usecase_fakes import Waiting, caller
from tests.unit.usecases.world import World, artifact_of, stable

DEMO = ProjectName("demo")
MODEL = ModelName("demo", "face")
V1 = VersionName("demo", "face", 1)
STRANGER = caller("stranger")


@pytest.fixture
def stocked(world: World) -> World:
    """Models `face` (two versions) and `voice` in `demo`; a project `other` that is empty."""
    world.publisher()
    world.publish(MODEL)
    world.publish(MODEL)
    world.publish(ModelName("demo", "voice"))
    with world.database.write() as tx:
        tx.projects.insert(Project(ProjectName("other"), "modelkms-other", world.clock.now()))
    world.audit.take()
    return world


def _viewer(world: World, name: str = "viewer", model: str | None = None) -> Caller:
    world.policy.grant(name, Action.GET_MODEL, Action.GET_VERSION, model=model)
    if model is None:
        world.policy.grant(name, Action.GET_PROJECT)
    return caller(name)


# --- one -----------------------------------------------------------------------------------------


def test_what_may_be_seen_is_shown(stocked: World) -> None:
    viewer = _viewer(stocked)
    assert stocked.browse.get_project(viewer, DEMO).master_key == "modelkms-demo"
    assert stocked.browse.get_model(viewer, MODEL).name == MODEL
    view = stocked.browse.get_version(viewer, V1)
    assert (view.version.name, view.aliases) == (V1, ("stable",))
    assert stocked.audit.outcomes() == [
        ("GetProject", Outcome.OK, ""),
        ("GetModel", Outcome.OK, ""),
        ("GetVersion", Outcome.OK, ""),
    ]


def test_f17_what_may_not_be_seen_is_told_as_what_is_missing(stocked: World) -> None:
    viewer, browse = _viewer(stocked), stocked.browse
    refused = []
    for act in (
        lambda: browse.get_project(STRANGER, DEMO),
        lambda: browse.get_project(STRANGER, ProjectName("absent")),
        lambda: browse.get_project(viewer, ProjectName("absent")),
        lambda: browse.get_model(STRANGER, MODEL),
        lambda: browse.get_model(STRANGER, ModelName("demo", "absent")),
        lambda: browse.get_model(viewer, ModelName("demo", "absent")),
        lambda: browse.get_version(STRANGER, V1),
        lambda: browse.get_version(viewer, VersionName("demo", "face", 9)),
        lambda: browse.list_models(STRANGER, DEMO, 0, ""),
        lambda: browse.list_models(STRANGER, ProjectName("absent"), 0, ""),
        lambda: browse.list_models(viewer, ProjectName("absent"), 0, ""),
        lambda: browse.list_versions(STRANGER, MODEL, 0, ""),
        lambda: browse.list_versions(viewer, ModelName("demo", "absent"), 0, ""),
        lambda: browse.list_aliases(STRANGER, MODEL, 0, ""),
        lambda: browse.list_aliases(viewer, ModelName("demo", "absent"), 0, ""),
        lambda: stocked.get_master_key(STRANGER, DEMO),
        lambda: stocked.get_master_key(stocked.security(), ProjectName("absent")),
        lambda: stocked.resolve_model(STRANGER, V1, {}),
        lambda: stocked.read(STRANGER, V1),
        lambda: stocked.states.enable(STRANGER, V1),
        lambda: stocked.states.disable(stocked.security(), VersionName("demo", "face", 9)),
        lambda: stocked.set_alias(STRANGER, stable(MODEL), V1),
        lambda: stocked.list_leases(STRANGER, DEMO, 0, ""),
    ):
        with pytest.raises(ModelNotFoundOrDenied) as caught:
            act()
        refused.append(caught.value)
    assert len({(error.message, tuple(error.metadata)) for error in refused}) == 1
    records = stocked.audit.take()
    assert [record.outcome for record in records] == [Outcome.DENIED] * len(refused)
    assert [record.decision_id for record in records] == [
        error.metadata["decision_id"] for error in refused
    ]


def test_master_keys_are_described_with_what_is_under_them(stocked: World) -> None:
    view = stocked.get_master_key(stocked.security(), DEMO)
    assert view.state.name == "modelkms-demo"
    assert (view.state.latest_version, dict(view.keys_under_version)) == (1, {1: 3})


# --- many ----------------------------------------------------------------------------------------


def _names(page: Page[Project]) -> list[str]:
    return [project.name.project for project in page.items]


def test_lists_leave_out_what_may_not_be_seen(stocked: World) -> None:
    browse = stocked.browse
    assert _names(browse.list_projects(_viewer(stocked), 0, "")) == ["demo", "other"]
    assert _names(browse.list_projects(STRANGER, 0, "")) == []
    assert stocked.audit.outcomes() == [("ListProjects", Outcome.OK, "")] * 2

    everything = browse.list_models(_viewer(stocked), DEMO, 0, "")
    assert [model.name.model for model in everything.items] == ["face", "voice"]
    narrow = _viewer(stocked, "narrow", model="voice")
    some = browse.list_models(narrow, DEMO, 0, "")
    assert [model.name.model for model in some.items] == ["voice"]
    with pytest.raises(ModelNotFoundOrDenied):
        browse.list_models(narrow, ProjectName("other"), 0, "")
    assert browse.list_models(_viewer(stocked), ProjectName("other"), 0, "").items == []


def test_pages_are_full_of_what_may_be_seen(world: World) -> None:
    names = [f"m{number:02}" for number in range(20)]
    world.policy.grant("maker", Action.CREATE_MODEL)
    for name in names:
        world.create_model(caller("maker"), ModelName("demo", name), {})
    for name in names[::3]:
        _viewer(world, model=name)
    viewer = caller("viewer")

    seen: list[str] = []
    token = ""
    sizes = []
    while True:
        page = world.browse.list_models(viewer, DEMO, 3, token)
        seen += [model.name.model for model in page.items]
        sizes.append(len(page.items))
        token = page.next_page_token
        if not token:
            break
    assert seen == names[::3]
    assert sizes == [3, 3, 1]


def test_versions_are_listed_newest_first_in_pages(stocked: World) -> None:
    viewer = _viewer(stocked)
    first = stocked.browse.list_versions(viewer, MODEL, 1, "")
    second = stocked.browse.list_versions(viewer, MODEL, 1, first.next_page_token)
    views = [*first.items, *second.items]
    assert [(view.version.name.number, view.aliases) for view in views] == [
        (2, ()),
        (1, ("stable",)),
    ]
    assert second.next_page_token == ""


@pytest.mark.parametrize("page_size", [-1, 1001])
def test_f23_page_sizes_are_bounded(stocked: World, page_size: int) -> None:
    viewer, browse = _viewer(stocked), stocked.browse
    for act in (
        lambda: browse.list_projects(viewer, page_size, ""),
        lambda: browse.list_models(viewer, DEMO, page_size, ""),
        lambda: browse.list_versions(viewer, MODEL, page_size, ""),
        lambda: browse.list_aliases(viewer, MODEL, page_size, ""),
    ):
        with pytest.raises(InvalidField) as caught:
            act()
        assert caught.value.field == "page_size"


@pytest.mark.parametrize("token", ["x", "AAAA", "../", "\0", "eyJhIjoxfQ"])
def test_f23_page_tokens_are_ours(stocked: World, token: str) -> None:
    viewer, browse = _viewer(stocked), stocked.browse
    for act in (
        lambda: browse.list_projects(viewer, 0, token),
        lambda: browse.list_models(viewer, DEMO, 0, token),
        lambda: browse.list_versions(viewer, MODEL, 0, token),
        lambda: browse.list_aliases(viewer, MODEL, 0, token),
    ):
        with pytest.raises(InvalidField) as caught:
            act()
        assert caught.value.field == "page_token"


# --- states and aliases --------------------------------------------------------------------------


def test_disabling_and_enabling_are_idempotent_and_recorded(stocked: World) -> None:
    security = stocked.security()
    for act, state in (
        (stocked.states.disable, VersionState.DISABLED),
        (stocked.states.disable, VersionState.DISABLED),
        (stocked.states.enable, VersionState.ENABLED),
        (stocked.states.enable, VersionState.ENABLED),
    ):
        view = act(security, V1)
        assert (view.version.state, view.aliases) == (state, ("stable",))
        stored = stocked.version(V1)
        assert stored is not None
        assert stored == view.version
    assert [record.details["was"] for record in stocked.audit.take()] == [
        "ENABLED",
        "DISABLED",
        "DISABLED",
        "ENABLED",
    ]


def test_a_pending_version_is_neither_enabled_nor_disabled(stocked: World) -> None:
    pending = stocked.create_version(caller("publisher"), MODEL).version.version.name
    for act in (stocked.states.disable, stocked.states.enable):
        with pytest.raises(VersionNotFinalized):
            act(stocked.security(), pending)


def test_f61_an_unrecorded_change_is_none(stocked: World) -> None:
    stocked.audit.broken = lambda record: True
    with pytest.raises(AuditUnavailable):
        stocked.states.disable(stocked.security(), V1)
    with pytest.raises(AuditUnavailable):
        stocked.set_alias(caller("publisher"), stable(MODEL), VersionName("demo", "face", 2))
    stored = stocked.version(V1)
    assert stored is not None
    assert stored.state is VersionState.ENABLED
    stocked.audit.broken = lambda record: False
    assert stocked.resolve_model(stocked.reader(), stable(MODEL), {}).version.version.name == V1


def test_aliases_move_to_what_can_be_opened(stocked: World) -> None:
    publisher, reader = caller("publisher"), stocked.reader()
    canary, second = AliasName("demo", "face", "canary"), VersionName("demo", "face", 2)
    stocked.clock.advance(timedelta(minutes=1))
    moved = stocked.set_alias(publisher, canary, second)
    assert (moved.version, moved.update_time) == (second, stocked.clock.now())
    stocked.clock.advance(timedelta(minutes=1))
    assert stocked.set_alias(publisher, canary, second) == moved
    assert stocked.resolve_model(reader, canary, {}).version.aliases == ("canary",)

    stocked.set_alias(publisher, stable(MODEL), second)
    aliases = stocked.browse.list_aliases(_viewer(stocked), MODEL, 0, "")
    assert [(alias.name.alias, alias.number) for alias in aliases.items] == [
        ("canary", 2),
        ("stable", 2),
    ]
    pending = stocked.create_version(publisher, MODEL).version.version.name
    with pytest.raises(VersionNotFinalized):
        stocked.set_alias(publisher, canary, pending)
    stocked.states.disable(stocked.security(), V1)
    with pytest.raises(VersionDisabled):
        stocked.set_alias(publisher, canary, V1)
    with pytest.raises(ModelNotFoundOrDenied):
        stocked.set_alias(publisher, canary, VersionName("demo", "face", 99))
    with pytest.raises(InvalidField):
        stocked.set_alias(publisher, canary, VersionName("demo", "voice", 1))


# --- resolving and reading -----------------------------------------------------------------------


def test_references_resolve_without_any_key(stocked: World) -> None:
    reader = stocked.reader()
    stocked.master_keys.calls.clear()
    for reference, number in ((stable(MODEL), 1), (VersionName("demo", "face", 2), 2)):
        resolved = stocked.resolve_model(reader, reference, {"platform": "linux"})
        assert resolved.version.version.name.number == number
        assert resolved.artifact.url == ""
    with pytest.raises(NoStableVersion) as caught:
        stocked.resolve_model(reader, AliasName("demo", "face", "canary"), {})
    assert caught.value.metadata == {"alias": "canary"}
    stocked.states.disable(stocked.security(), V1)
    with pytest.raises(VersionDisabled):
        stocked.resolve_model(reader, stable(MODEL), {})
    assert stocked.master_keys.calls == []


def test_ranges_of_an_artifact_are_read(stocked: World) -> None:
    reader = stocked.reader()
    version = stocked.create_version(caller("publisher"), MODEL).version.version
    data, pin = artifact_of(version, 2_500_000)
    stocked.upload_bytes(version, data)
    with pytest.raises(VersionNotFinalized):
        stocked.read(reader, version.name)
    stocked.finalize(caller("publisher"), version.name, pin)

    size = len(data)
    for offset, length in (
        (0, 0),
        (0, 1),
        (1, (1 << 20) + 1),
        (size - 1, 0),
        (size - 1, 100),
        (size, 0),
        (0, size),
        (0, size + 1),
        (7, 2**63),
    ):
        end = offset + length if length else size
        assert stocked.read(reader, version.name, offset, length) == data[offset:end]
    for offset, length in ((size + 1, 0), (-1, 0), (0, -1)):
        with pytest.raises(InvalidField):
            stocked.read(reader, version.name, offset, length)
    chunks = stocked.read_artifact(reader, version.name, 0, 0, liveness=Waiting())
    assert all(len(chunk) <= 1 << 20 for chunk in chunks)


def test_f28_reading_stops_with_its_caller(stocked: World) -> None:
    chunks = stocked.read_artifact(stocked.reader(), V1, 0, 0, liveness=Waiting(checks=0))
    with pytest.raises(DeadlineExceeded):
        next(chunks)


def test_an_artifact_that_is_gone_is_told(stocked: World) -> None:
    reader = stocked.reader()
    stored = stocked.version(V1)
    assert stored is not None
    chunks = stocked.read_artifact(reader, V1, 0, 0, liveness=Waiting())
    stocked.store.inner.delete(stored.artifact_id)
    with pytest.raises(ArtifactMissing):
        next(chunks)
    with pytest.raises(ArtifactMissing):
        stocked.read(reader, V1)
    assert stocked.audit.outcomes()[-1] == ("ReadArtifact", Outcome.FAILED, "ARTIFACT_MISSING")


@pytest.mark.parametrize("change", [-1, 1])
def test_f45_an_artifact_longer_or_shorter_than_its_pin_is_not_served(
    stocked: World, change: int
) -> None:
    reader = stocked.reader()
    stored = stocked.version(V1)
    assert stored is not None
    assert stored.pin is not None
    stocked.store.inner.delete(stored.artifact_id)
    with stocked.store.resume(stored.artifact_id, 0) as upload:
        upload.append(bytes(stored.pin.length_bytes + change))
        upload.commit()
    stocked.store.publish(stored.artifact_id)
    with pytest.raises(ArtifactCorrupt):
        stocked.read(reader, V1)
