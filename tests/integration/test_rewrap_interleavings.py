"""Whatever happens in whatever order, no key is lost and none stays behind (both databases).

A stateful property test: publishes, finalizes, rekeys, disables, enables, expires, destroys,
restores, shreds, rotates, starts, pauses and resumes rewraps, and plays several workers who claim,
rewrap, settle, give back, or never come back, one step at a time. After each step every data key
opens to what it was made as.
"""

from __future__ import annotations

import functools
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kms_service.adapters.database import SqlDatabase, migrate
from kms_service.adapters.database.rewraps import CLAIM_FOR
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import (
    ArtifactPin,
    Model,
    Project,
    Version,
    VersionState,
    WrappedDataKey,
)
from kms_service.domain.destruction import Destruction, Moment
from kms_service.domain.errors import ServiceError
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.ports import Transaction
from kms_service.domain.rewrapping import (
    Finished,
    NothingYet,
    RewrapBatch,
    Rewrapped,
    RewrapState,
)
from kms_service.usecases.rewrap_data_keys import new_rewrap
from tests.support.databases import empty_file
from tests.support.fake_master_keys import FakeMasterKeys
from tests.support.postgresql import PostgresServer

pytestmark = pytest.mark.xdist_group("postgresql")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEMO = ProjectName("demo")
KEY = "modelkms-demo"
MODELS = [ModelName("demo", "eye"), ModelName("demo", "face")]
PIN = ArtifactPin(1, b"\x01" * 32, b"\x02" * 32)


_DESTRUCTION = Destruction("officer-a", Moment(NOW, timedelta(0)), delete_artifact=False)
_ACTS: dict[str, Callable[[Version], Version]] = {
    "finalize": lambda version: version.finalize(PIN, NOW),
    "enable": Version.enable,
    "disable": Version.disable,
    "expire": Version.expire,
    "destroy": lambda version: version.schedule_destroy(_DESTRUCTION),
    "confirm": lambda version: version.confirm_destroy("officer-b"),
    "restore": lambda version: version.restore(Moment(NOW - timedelta(days=1), timedelta(0))),
    "shred": lambda version: version.shred(Moment(NOW, timedelta(0))),
}


@dataclass(frozen=True)
class Prepared:
    """A data key that a publisher holds and has not stored yet."""

    model: ModelName
    uid: str
    wrapped: WrappedDataKey
    data_key: bytes


def _pending(made: Prepared, number: int) -> Version:
    return Version(
        name=VersionName(made.model.project, made.model.model, number),
        uid=made.uid,
        state=VersionState.PENDING,
        publisher="spiffe://test.example/p",
        request_id=str(uuid.uuid4()),
        artifact_id=uuid.uuid4().hex,
        wrapped_key=made.wrapped,
        create_time=NOW,
    )


@dataclass(frozen=True)
class InHand:
    """What a worker got from Vault and has not stored yet."""

    batch: RewrapBatch
    rewrapped: tuple[Rewrapped, ...]


class Interleavings(RuleBasedStateMachine):
    """`database` is set by the test, and emptied by it before each run."""

    database: SqlDatabase
    empty: Callable[[], object]

    prepared = Bundle("prepared")
    claimed = Bundle("claimed")
    in_hand = Bundle("in_hand")

    def __init__(self) -> None:
        super().__init__()
        type(self).empty()
        self.vault = FakeMasterKeys()
        self.vault.make(KEY)
        self.now = NOW
        self.opens: dict[VersionName, bytes] = {}

    @initialize()
    def catalogue(self) -> None:
        with self.database.write() as tx:
            tx.projects.insert(Project(DEMO, KEY, NOW))
            for model in MODELS:
                tx.models.insert(Model(model, NOW))

    # --- publishers and operators ---------------------------------------------------------------

    @rule(target=prepared, model=st.sampled_from(MODELS))
    def a_publisher_gets_a_data_key(self, model: ModelName) -> Prepared:
        uid = uuid.uuid4().hex
        data_key, wrapped = self.vault.generate_data_key(KEY, data_key_context(model, uid))
        return Prepared(model, uid, wrapped, data_key.reveal())

    @rule(made=consumes(prepared))
    def it_is_stored(self, made: Prepared) -> None:
        def work(tx: Transaction) -> VersionName:
            version = _pending(made, tx.versions.next_number(made.model))
            tx.versions.insert(version)
            return version.name

        self.opens[self.database.transact(work)] = made.data_key

    @rule(
        data=st.data(),
        act=st.sampled_from(sorted(_ACTS)),
    )
    def a_version_changes_its_state(self, data: st.DataObject, act: str) -> None:
        if not self.opens:
            return
        name = data.draw(st.sampled_from(sorted(self.opens)))

        def work(tx: Transaction) -> Version | None:
            version = tx.versions.get(name)
            assert version is not None
            try:
                changed = _ACTS[act](version)
            except ServiceError:
                return None
            if changed != version:
                tx.versions.update(changed)
            return changed

        changed = self.database.transact(work)
        if changed is not None and changed.state is VersionState.DESTROYED:
            del self.opens[name]

    @rule(made=consumes(prepared), data=st.data())
    def a_version_is_rekeyed(self, made: Prepared, data: st.DataObject) -> None:
        """The new one is published and the old one disabled, in one step."""
        old_ones = sorted(name for name in self.opens if name.parent == made.model)
        if not old_ones:
            return
        old_name = data.draw(st.sampled_from(old_ones))

        def work(tx: Transaction) -> VersionName | None:
            old = tx.versions.get(old_name)
            assert old is not None
            try:
                disabled = old.disable()
            except ServiceError:
                return None
            if disabled != old:
                tx.versions.update(disabled)
            number = tx.versions.next_number(made.model)
            pending = _pending(made, number)
            tx.versions.insert(pending)
            tx.versions.update(pending.finalize(PIN, NOW))
            return pending.name

        published = self.database.transact(work)
        if published is not None:
            self.opens[published] = made.data_key

    # --- the officer ----------------------------------------------------------------------------

    @rule()
    def the_master_key_is_rotated(self) -> None:
        self.vault.rotate(KEY)

    @rule()
    def a_rewrap_is_started(self) -> None:
        latest = self.vault.describe(KEY).latest_version
        self.database.rewraps.start(new_rewrap(DEMO, KEY, latest, "officer", self.now, 0))

    @rule(pause=st.booleans())
    def it_is_paused_or_resumed(self, pause: bool) -> None:
        latest = self.database.rewraps.latest(DEMO)
        if latest is not None and not latest.done:
            self.database.rewraps.change(
                latest.name,
                lambda found: found.pause(self.now) if pause else found.resume(self.now),
            )

    # --- workers, one step at a time ------------------------------------------------------------

    @rule(target=claimed, size=st.integers(1, 4))
    def a_worker_claims(self, size: int) -> RewrapBatch | None:
        for rewrap in self.database.rewraps.running():
            got = self.database.rewraps.claim(rewrap.name, size, self.now)
            if isinstance(got, RewrapBatch):
                return got
            if isinstance(got, Finished):
                self.nothing_is_left(got.rewrap.target_version)
        return None

    @rule(target=in_hand, batch=consumes(claimed), part=st.integers(0, 4))
    def vault_rewraps(self, batch: RewrapBatch | None, part: int) -> InHand | None:
        """All of it, or only the first: then Vault was away."""
        if batch is None:
            return None
        items = batch.items[:part] if part else batch.items
        keys = [(i.wrapped_key, data_key_context(i.version.parent, i.uid)) for i in items]
        answers = self.vault.rewrap(KEY, keys)
        rewrapped = []
        for item, answer in zip(items, answers, strict=True):
            assert isinstance(answer, WrappedDataKey)
            rewrapped.append(Rewrapped(item, answer))
        return InHand(batch, tuple(rewrapped))

    @rule(hand=consumes(in_hand))
    def it_is_settled(self, hand: InHand | None) -> None:
        if hand is not None:
            whole = len(hand.rewrapped) == len(hand.batch.items)
            self.database.rewraps.settle(hand.batch, hand.rewrapped, [], self.now, whole=whole)

    @rule(hand=consumes(in_hand))
    def a_worker_dies(self, hand: InHand | None) -> None:
        """With what it had; the claim stays behind."""

    @rule(seconds=st.sampled_from([1, CLAIM_FOR.total_seconds()]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def every_key_opens_to_what_it_was(self) -> None:
        with self.database.read() as tx:
            for name, data_key in self.opens.items():
                version = tx.versions.get(name)
                assert version is not None
                context = data_key_context(name.parent, version.uid)
                opened = self.vault.unwrap(KEY, version.wrapped_key, context)
                assert opened.reveal() == data_key
                assert f"vault:v{version.wrapped_key.master_key_version}:" in (
                    version.wrapped_key.ciphertext
                )

    @invariant()
    def they_are_counted_exactly(self) -> None:
        with self.database.read() as tx:
            stored = [tx.versions.get(name) for name in self.opens]
            counted = tx.versions.count_by_master_key_version(DEMO)
        under = Counter(each.wrapped_key.master_key_version for each in stored if each)
        assert counted == dict(under)

    def nothing_is_left(self, target_version: int) -> None:
        assert self.database.rewraps.keys_under_older(DEMO, target_version) == 0

    def teardown(self) -> None:
        """A last rewrap, by one worker alone, whatever was left behind; then the old versions are
        retired in Vault, and everything still opens."""
        latest = self.vault.describe(KEY).latest_version
        rewraps = self.database.rewraps
        unfinished = rewraps.latest(DEMO)
        if unfinished is not None and unfinished.state is RewrapState.PAUSED:
            rewraps.change(unfinished.name, lambda found: found.resume(self.now))
        for _ in range(2):  # the one that was under way, and one for the newest version
            name = rewraps.start(new_rewrap(DEMO, KEY, latest, "officer", self.now, 0)).name
            while not isinstance(got := rewraps.claim(name, 3, self.now), Finished):
                if isinstance(got, NothingYet):
                    self.now += CLAIM_FOR
                else:
                    self.it_is_settled(self.vault_rewraps(got, 0))
        self.nothing_is_left(latest)
        self.vault.set_min_decryption_version(KEY, latest)
        self.every_key_opens_to_what_it_was()


@pytest.mark.parametrize(
    ("kind", "examples", "steps"),
    [
        ("sqlite", 10, 25),
        ("postgresql", 5, 25),
        pytest.param("sqlite", 100, 50, marks=pytest.mark.faults, id="sqlite-long"),
        pytest.param("postgresql", 50, 50, marks=pytest.mark.faults, id="postgresql-long"),
    ],
)
def test_f59_no_interleaving_loses_a_key(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, examples: int, steps: int
) -> None:
    if kind == "sqlite":
        template, file = tmp_path / "template.db", tmp_path / "state.db"
        migrate(f"sqlite:///{template}")
        shutil.copyfile(template, file)
        url = f"sqlite:///{file}"
        empty = functools.partial(empty_file, str(file))
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.new_database()
        migrate(url)
        empty = functools.partial(postgres.empty, url)
    database = SqlDatabase(url)
    here = {"database": database, "empty": staticmethod(empty)}
    machine = type("Interleavings", (Interleavings,), here)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        database.close()
