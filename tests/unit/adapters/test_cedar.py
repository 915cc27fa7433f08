"""The policy engine: what it decides, what it keeps, and which sets it lets through (F18, F68)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from kms_service.adapters import cedar
from kms_service.adapters.cedar import CedarPolicyEngine, Evaluation, evaluate
from kms_service.adapters.cedar_canaries import stranger_requests
from kms_service.adapters.cedar_policy_set import (
    PolicyFiles,
    PolicySet,
    PolicySetRefused,
    parse_policy_set,
)
from kms_service.adapters.cedar_request import minute
from kms_service.domain.decisions import AccessRequest, Action, Circumstances, Resource
from kms_service.domain.errors import PolicyUnavailable
from kms_service.domain.identity import principal_of

HOUR = timedelta(hours=1)
NOON = datetime(2026, 5, 1, 12, 0, 10, tzinfo=UTC)
READER = "spiffe://example.org/reader/a"
STRANGER = "spiffe://example.org/stranger"

BASE = """
@id("reader") @lease_ttl("30m") @max_lease_ttl("2h")
permit (principal, action in ModelKMS::Action::"Read", resource)
when { principal.path like "/reader/*" };
"""


def case(principal: str, permitted: bool, **further: object) -> dict[str, object]:
    return {
        "principal": principal,
        "action": "LeaseDataKey",
        "project": "demo",
        "model": "face",
        "permitted": permitted,
        **further,
    }


CASES = [case(READER, True), case(STRANGER, False)]


def write(folder: Path, text: str, **canaries: object) -> None:
    (folder / "policy.cedar").write_text(text)
    (folder / "canaries.json").write_text(json.dumps({"cases": CASES, **canaries}))


@pytest.fixture
def engine(tmp_path: Path) -> CedarPolicyEngine:
    write(tmp_path, BASE)
    engine = CedarPolicyEngine(tmp_path, HOUR, 24 * HOUR)
    engine.reload()
    return engine


def ask(
    principal: str = READER, action: Action = Action.LEASE_DATA_KEY, **around: Any
) -> AccessRequest:
    return AccessRequest(
        principal_of(principal),
        action,
        Resource("demo", "face"),
        NOON,
        Circumstances(**around),
    )


def says(text: str, request: AccessRequest, groups: str = "") -> bool:
    files = PolicyFiles({"a.cedar": text}, json.dumps({"cases": CASES}), groups)
    return evaluate(parse_policy_set(files), request).permitted


# --- decisions -----------------------------------------------------------------------------------


def test_f18_default_is_deny(engine: CedarPolicyEngine) -> None:
    assert engine.decide(ask()).permitted
    denied = engine.decide(ask(STRANGER))
    assert (denied.permitted, denied.policies) == (False, ())
    assert not engine.decide(ask(action=Action.CREATE_VERSION)).permitted


def test_f18_nothing_is_decided_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(PolicyUnavailable):
        CedarPolicyEngine(tmp_path, HOUR, HOUR).decide(ask())


def test_f18_forbid_wins() -> None:
    forbid = '@id("no") forbid (principal, action, resource) when { context.instance_proven };'
    assert says(BASE, ask())
    assert not says(BASE + forbid, ask())


def test_f18_an_erring_forbid_denies() -> None:
    """Cedar skips a policy that errs, so its permit would stand."""
    erring = """
    @id("err") forbid (principal, action, resource)
    when { context has client && 9223372036854775807 + context.client.major > 0 };
    """
    files = PolicyFiles({"a.cedar": BASE + erring}, json.dumps({"cases": CASES}))
    policies = parse_policy_set(files)
    assert evaluate(policies, ask()).permitted
    found = evaluate(policies, ask(client_version="1.0.0"))
    assert found == Evaluation(permitted=False, policies=("reader",), failed=True)


def test_f18_a_request_that_the_schema_does_not_know_is_denied(engine: CedarPolicyEngine) -> None:
    of_service = replace(ask(), resource=Resource(""))
    assert not engine.decide(of_service).permitted


def test_f18_what_cedar_does_not_even_take_is_denied(
    engine: CedarPolicyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ValueError("canary")

    monkeypatch.setattr(cedarpy, "is_authorized", refused)
    assert evaluate(engine.current, ask()) == Evaluation(permitted=False, policies=(), failed=True)
    assert not engine.decide(ask()).permitted


def test_policies_see_the_minute_in_utc() -> None:
    east = NOON.replace(second=59, microsecond=999_999).astimezone(timezone(3 * HOUR))
    cut = minute(east)
    assert (cut, cut.tzinfo) == (NOON.replace(second=0, microsecond=0), UTC)


def test_lease_terms_are_those_of_the_deciding_policies(engine: CedarPolicyEngine) -> None:
    bounds = engine.decide(ask()).lease_bounds
    assert (bounds.ttl, bounds.max_ttl) == (HOUR / 2, 2 * HOUR)


def test_lease_bounds_are_the_strictest_of_the_deciding_policies(
    engine: CedarPolicyEngine, tmp_path: Path
) -> None:
    write(
        tmp_path,
        BASE
        + """
@id("a") @max_live_leases("5") @max_lease_renewals("0")
permit (principal, action in ModelKMS::Action::"Read", resource)
when { principal.path like "/reader/*" };
@id("b") @max_live_leases("3") @one_time_lease
permit (principal, action in ModelKMS::Action::"Read", resource)
when { principal.path == "/reader/b" };
""",
    )
    engine.reload()
    of_a, of_b = (
        engine.decide(ask(who)).lease_bounds for who in (READER, "spiffe://example.org/reader/b")
    )
    assert (of_a.max_live, of_a.max_renewals, of_a.one_time) == (5, 0, False)
    assert (of_b.max_live, of_b.max_renewals, of_b.one_time) == (3, 0, True)


def test_the_strictest_deciding_policy_says_how_long_without_the_service(tmp_path: Path) -> None:
    def max_offline(*annotations: str) -> timedelta:
        texts = (
            BASE.replace('@id("reader")', f'@id("reader-{number}") {annotation}')
            for number, annotation in enumerate(annotations)
        )
        write(tmp_path, "".join(texts))
        engine = CedarPolicyEngine(tmp_path, HOUR, 24 * HOUR)
        engine.reload()
        return engine.decide(ask()).lease_bounds.max_offline

    assert max_offline("") == 24 * HOUR
    assert max_offline('@max_offline("3h")') == 3 * HOUR
    assert max_offline('@max_offline("3h")', "", '@max_offline("2h")') == 2 * HOUR


CONTEXT = {
    "source": ('context has source && context.source.isInRange(ip("10.0.0.0/8"))', "10.1.2.3"),
    "suite": ('context has suite && context.suite like "MLKEM768*"', 1),
    "client_version": ("context has client && context.client.minor >= 2", "0.2.7"),
    "attributes": ('context.attributes.contains("platform=ios")', {"platform": "ios"}),
}


@pytest.mark.parametrize("what", CONTEXT)
def test_context_can_be_demanded(what: str) -> None:
    condition, value = CONTEXT[what]
    around: dict[str, Any] = {what: value}
    text = f'@id("c") permit (principal, action, resource) when {{ {condition} }};'
    assert says(text, ask(**around))
    assert not says(text, ask())


def test_time_can_be_demanded() -> None:
    text = """@id("c") permit (principal, action, resource)
    when { context.time.toTime() >= duration("8h") && context.time.toTime() < duration("18h") };"""
    assert says(text, ask())
    assert not says(text, replace(ask(), time=NOON + timedelta(hours=8)))


def test_claims_and_a_tokens_groups_can_be_demanded() -> None:
    text = """@id("c") permit (principal in ModelKMS::Group::"k8s:vision", action, resource)
    when { principal.issuer == "k8s" && principal.hasTag("kubernetes.io/namespace") &&
           principal.getTag("kubernetes.io/namespace").contains("prod") };"""
    token = replace(
        principal_of("oidc:k8s:system:serviceaccount:prod:app"),
        groups=("k8s:vision",),
        claims=(("kubernetes.io/namespace", ("prod",)),),
    )
    assert token.subject == "system:serviceaccount:prod:app"
    assert says(text, replace(ask(), principal=token))
    assert not says(text, replace(ask(), principal=replace(token, groups=())))
    elsewhere = (("kubernetes.io/namespace", ("test",)),)
    assert not says(text, replace(ask(), principal=replace(token, claims=elsewhere)))


def test_groups_hold_whole_ids_and_prefixes() -> None:
    text = '@id("g") permit (principal in ModelKMS::Group::"g", action, resource);'
    groups = json.dumps({"groups": {"g": [STRANGER, "spiffe://example.org/reader/*"]}})
    assert says(text, ask(STRANGER), groups)
    assert says(text, ask(READER), groups)
    assert not says(text, ask(STRANGER + "2"), groups)
    assert not says(text, ask("spiffe://example.org.evil/reader/a"), groups)
    assert not says(text, ask("spiffe://example.org/reader"), groups)
    assert not says(text, ask("spiffe://example.org/readers/a"), groups)


def test_groups_hold_the_subjects_of_an_issuer() -> None:
    text = '@id("g") permit (principal in ModelKMS::Group::"g", action, resource);'
    groups = json.dumps({"groups": {"g": ["oidc:k8s:system:serviceaccount:prod:*"]}})
    assert says(text, ask("oidc:k8s:system:serviceaccount:prod:app"), groups)
    assert not says(text, ask("oidc:k8s:system:serviceaccount:test:app"), groups)
    assert not says(text, ask("oidc:other:system:serviceaccount:prod:app"), groups)


def test_a_suite_that_nobody_knows_is_called_so() -> None:
    text = """@id("c") permit (principal, action, resource)
    when { context has suite && context.suite == "UNKNOWN" };"""
    assert says(text, ask(suite=99))
    assert not says(text, ask(suite=1))


def test_labels_can_be_demanded() -> None:
    text = """@id("l") permit (principal, action, resource)
    when { resource.hasTag("tier") && resource.getTag("tier") == "open" };"""
    assert says(text, replace(ask(), resource=Resource("demo", "face", {"tier": "open"})))
    assert not says(text, replace(ask(), resource=Resource("demo", "face", {"tier": "shut"})))


# --- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[AccessRequest]:
    seen: list[AccessRequest] = []

    def counted(policies: PolicySet, request: AccessRequest) -> Evaluation:
        seen.append(request)
        return evaluate(policies, request)

    monkeypatch.setattr(cedar, "evaluate", counted)
    return seen


def test_an_equal_request_is_evaluated_once_and_decided_each_time(
    engine: CedarPolicyEngine, evaluations: list[AccessRequest]
) -> None:
    first, second = (
        engine.decide(ask()),
        engine.decide(replace(ask(), time=NOON + 49 * HOUR / 3600)),
    )
    assert len(evaluations) == 1
    assert first.id != second.id
    assert len(first.id) == 32
    assert replace(second, id=first.id) == first


OTHERS: dict[str, Callable[[AccessRequest], AccessRequest]] = {
    "principal": lambda r: replace(r, principal=principal_of("spiffe://example.org/reader/b")),
    "instance": lambda r: replace(r, principal=replace(r.principal, instance="1" * 64)),
    "proof": lambda r: replace(r, principal=replace(r.principal, instance_proven=False)),
    "claims": lambda r: replace(r, principal=replace(r.principal, claims=(("a", ("b",)),))),
    "groups": lambda r: replace(r, principal=replace(r.principal, groups=("k8s:a",))),
    "action": lambda r: replace(r, action=Action.RESOLVE_MODEL),
    "project": lambda r: replace(r, resource=Resource("other", "face")),
    "model": lambda r: replace(r, resource=Resource("demo", "other")),
    "labels": lambda r: replace(r, resource=Resource("demo", "face", {"a": "b"})),
    "minute": lambda r: replace(r, time=NOON + timedelta(minutes=1)),
    "source": lambda r: replace(r, circumstances=Circumstances(source="10.0.0.1")),
    "suite": lambda r: replace(r, circumstances=Circumstances(suite=2)),
    "client": lambda r: replace(r, circumstances=Circumstances(client_version="0.1.0")),
    "attributes": lambda r: replace(r, circumstances=Circumstances(attributes={"a": "b"})),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_request_that_differs_anywhere_is_evaluated(
    engine: CedarPolicyEngine, evaluations: list[AccessRequest], what: str
) -> None:
    engine.decide(ask())
    engine.decide(OTHERS[what](ask()))
    assert len(evaluations) == 2


def test_no_answer_outlives_its_set(
    engine: CedarPolicyEngine, evaluations: list[AccessRequest], tmp_path: Path
) -> None:
    before = engine.decide(ask(STRANGER))
    extra = f'@id("x") permit (principal == ModelKMS::Principal::"{STRANGER}2", action, resource);'
    write(tmp_path, BASE + extra)
    engine.reload()
    evaluations.clear()
    after = engine.decide(ask(STRANGER))
    assert len(evaluations) == 1
    assert before.epoch != after.epoch


def test_the_cache_is_bounded(engine: CedarPolicyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cedar, "_CACHED_DECISIONS", 3)
    for number in range(10):
        engine.decide(ask(client_version=f"1.0.{number}"))
    assert engine._in_force is not None
    assert len(engine._in_force._answers) == 3
    kept = [key[-2] for key in engine._in_force._answers]
    assert kept == ["1.0.7", "1.0.8", "1.0.9"]  # the oldest go


def test_each_look_into_the_cache_is_told(tmp_path: Path) -> None:
    write(tmp_path, BASE)
    looks: list[bool] = []
    engine = CedarPolicyEngine(tmp_path, HOUR, HOUR, looked_up=looks.append)
    engine.reload()
    engine.decide(ask())
    engine.decide(ask())
    assert looks == [False, True]


def test_a_failed_evaluation_is_not_kept(
    engine: CedarPolicyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cedar, "evaluate", lambda *_: Evaluation(False, (), failed=True))
    assert not engine.decide(ask()).permitted
    monkeypatch.setattr(cedar, "evaluate", evaluate)
    assert engine.decide(ask()).permitted


# --- the gate ------------------------------------------------------------------------------------

PERMIT_ALL = '@id("all") permit (principal, action, resource);'
BAD_SETS: dict[str, tuple[str, dict[str, Any], str]] = {
    "everyone is let in": (PERMIT_ALL, {"cases": CASES}, "a stranger is permitted CreateProject"),
    "everyone, and the canaries say so": (
        PERMIT_ALL,
        {"cases": [case(STRANGER, True), case(READER, False)]},
        "a stranger is permitted",
    ),
    "somebody is let in who must not": (
        BASE
        + f'@id("s") permit (principal == ModelKMS::Principal::"{STRANGER}", action, resource);',
        {"cases": CASES},
        f"canary case: {STRANGER} LeaseDataKey demo/face must be refused",
    ),
    "everyone with a token": (
        BASE + '@id("t") permit (principal, action, resource) when { principal.issuer != "" };',
        {"cases": CASES},
        "a stranger is permitted",
    ),
    "nobody is let in": (
        BASE + '@id("none") forbid (principal, action, resource);',
        {"cases": CASES},
        f"canary case: {READER} LeaseDataKey demo/face must be permitted",
    ),
    "no canaries": (BASE, {"cases": []}, "canaries.json must hold"),
    "only permitted ones": (BASE, {"cases": CASES[:1]}, "canaries.json must hold"),
    "a canary of the last set dropped": (
        BASE,
        {"cases": [CASES[0], case(STRANGER + "2", False)]},
        f"canary case dropped: {STRANGER} LeaseDataKey demo/face",
    ),
    "syntax error": ("permit (principal", {"cases": CASES}, ""),
    "unknown attribute": (
        '@id("a") permit (principal, action, resource) when { principal.rank == "x" };',
        {"cases": CASES},
        "rank",
    ),
    "no id": ("permit (principal, action, resource);", {"cases": CASES}, "needs an annotation"),
    "same id twice": (BASE + BASE, {"cases": CASES}, "two policies have"),
    "no duration": (
        '@id("a") @lease_ttl("soon") permit (principal, action, resource);',
        {"cases": CASES},
        "must be like",
    ),
    "no number": (
        '@id("a") @max_live_leases("-1") permit (principal, action, resource);',
        {"cases": CASES},
        "must be a number",
    ),
    "no flag": (
        '@id("a") @one_time_lease("no") permit (principal, action, resource);',
        {"cases": CASES},
        'must be "true"',
    ),
    "unknown field of a canary": (
        BASE,
        {"cases": [*CASES, {"who": "me"}]},
        "canaries.json: cases.2.principal: ",
    ),
    "two fields wrong": (
        BASE,
        {"cases": [case("nobody", True), case(STRANGER, False, suite="MINE")]},
        "canaries.json: cases.0.principal: Value error, neither a SPIFFE ID",
    ),
    "unknown suite": (
        BASE,
        {"cases": [*CASES, case(STRANGER, False, suite="MINE")]},
        "canaries.json: cases.2.suite: Value error, no such key-transport suite",
    ),
}


@pytest.mark.parametrize("what", BAD_SETS)
def test_f68_a_bad_set_is_refused_and_the_last_good_one_stays(
    engine: CedarPolicyEngine, tmp_path: Path, what: str
) -> None:
    text, canaries, told = BAD_SETS[what]
    before = engine.decide(ask()).epoch
    write(tmp_path, text, **canaries)
    with pytest.raises(PolicySetRefused) as refused:
        engine.reload()
    assert told in str(refused.value)
    assert engine.decide(ask()).permitted
    assert not engine.decide(ask(STRANGER)).permitted
    assert engine.decide(ask()).epoch == before


def test_f68_a_canary_may_change_its_outcome_or_be_retired(
    engine: CedarPolicyEngine, tmp_path: Path
) -> None:
    stranger_too = (
        f'@id("s") permit (principal == ModelKMS::Principal::"{STRANGER}", action, resource);'
    )
    cases = [CASES[0], case(STRANGER, True), case(STRANGER + "2", False)]
    write(tmp_path, BASE + stranger_too, cases=cases)
    engine.reload()
    assert engine.decide(ask(STRANGER)).permitted
    write(tmp_path, BASE, cases=[CASES[0], cases[2]], retired=[CASES[1]])
    engine.reload()
    assert not engine.decide(ask(STRANGER)).permitted


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"a:b": [READER]}, "hold a colon"),
        ({"a": ["reader"]}, "neither a SPIFFE ID"),
        ({"a": ["*"]}, "neither a SPIFFE ID"),
        ({"a": ["spiffe://example.*"]}, "behind a whole trust domain"),
        ({"a": ["spiffe://example.org/*/a"]}, "stands at the end only"),
        ({"a": ["spiffe://example.org/a**"]}, "stands at the end only"),
        ({"a": ["oidc:k8s*"]}, "neither a SPIFFE ID"),
    ],
)
def test_f68_groups_that_reach_too_far_are_refused(
    engine: CedarPolicyEngine, tmp_path: Path, groups: dict[str, list[str]], told: str
) -> None:
    (tmp_path / "groups.json").write_text(json.dumps({"groups": groups}))
    with pytest.raises(PolicySetRefused) as refused:
        engine.reload()
    assert told in str(refused.value)


def test_every_action_is_tried_on_strangers_where_it_applies() -> None:
    """With everything permitted, each action is permitted somewhere: no case is vacuous."""
    policies = parse_policy_set(PolicyFiles({"a.cedar": PERMIT_ALL}, json.dumps({"cases": CASES})))
    let_in = {
        (request.action, request.principal.issuer != "")
        for request in stranger_requests()
        if evaluate(policies, request).permitted
    }
    assert let_in == {(action, token) for action in Action for token in (False, True)}


@pytest.mark.parametrize(
    "folder",
    [Path("deploy/policies"), Path("kms_service/development/policies")],
    ids=["starter", "development"],
)
def test_the_sets_we_ship_pass_the_gate(folder: Path) -> None:
    root = Path(__file__).parents[3]
    CedarPolicyEngine(root / folder, HOUR, HOUR).reload()
