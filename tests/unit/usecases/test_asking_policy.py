"""Questions about policy, on a real Cedar engine and a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.adapters.cedar_questions import CedarPolicyQuestions
from kms_service.adapters.database import SqlDatabase
from kms_service.domain.decisions import AccessRequest, Action, Circumstances, Resource
from kms_service.domain.errors import (
    DecisionNotFoundOrDenied,
    ModelNotFoundOrDenied,
    StateUnavailable,
)
from kms_service.domain.identity import Caller, principal_of
from kms_service.domain.names import ModelName, ProjectName
from kms_service.domain.policy import PolicySetFiles, Verdict
from kms_service.usecases import decision_journal
from kms_service.usecases.ask_policy import AskPolicy
from kms_service.usecases.authorisation import Gate, source_of
from kms_service.usecases.decision_journal import REDACTED, DecisionJournal, JournaledPolicy
from tests.support.usecase_fakes import ManualClock, MemoryAudit
from tests.unit.usecases.real_parts import open_database

FACE = ModelName("demo", "face")
OFFICER, READER, NOBODY = (f"spiffe://demo.example/{name}" for name in ("officer", "reader", "no"))
TOKEN = "oidc:k8s:system:serviceaccount:prod:app"
SUITE = "MLKEM768_X25519_HKDF_SHA256_AES256GCM"

POLICIES = f"""
@id("officer") permit (
  principal == ModelKMS::Principal::"{OFFICER}",
  action in [ModelKMS::Action::"Administer"],
  resource
);
@id("reader") @lease_ttl("1h") permit (
  principal in ModelKMS::Group::"readers", action in ModelKMS::Action::"Read", resource
);
@id("prod") permit (principal, action in ModelKMS::Action::"Read", resource)
when {{ principal.issuer == "k8s" && principal.hasTag("namespace") &&
        principal.getTag("namespace").contains("prod") && context.instance_proven }};
@id("weak") forbid (principal, action == ModelKMS::Action::"LeaseDataKey", resource)
when {{ context has suite && context.suite != "{SUITE}" }};
"""
GROUPS = json.dumps({"groups": {"readers": [READER, "spiffe://demo.example/team/*"]}})
CANARIES = json.dumps(
    {
        "cases": [
            {
                "principal": who,
                "action": "LeaseDataKey",
                "project": "demo",
                "model": "face",
                "permitted": permitted,
            }
            for who, permitted in ((READER, True), (NOBODY, False))
        ]
    }
)


class Desk:
    """An officer's desk: policies of a folder, decisions of a database."""

    def __init__(self, folder: Path, database: SqlDatabase) -> None:
        self.folder, self.database = folder, database
        self.clock, self.audit = ManualClock(), MemoryAudit()
        self.write(POLICIES)
        self.engine = CedarPolicyEngine(folder, timedelta(hours=2), timedelta(hours=24))
        self.engine.reload()
        self.dropped = 0
        self.journal = DecisionJournal(database, self._drop)
        self.policy = JournaledPolicy(self.engine, self.journal)
        self.ask = AskPolicy(
            gate=Gate(database=database, policy=self.policy, audit=self.audit, clock=self.clock),
            database=database,
            questions=CedarPolicyQuestions(self.engine),
            journal=self.journal,
            clock=self.clock,
        )
        self.officer = Caller(principal_of(OFFICER), "0" * 32, "ipv4:10.0.0.1:5", "/test/Method")

    def _drop(self) -> None:
        self.dropped += 1

    def write(self, policies: str) -> None:
        (self.folder / "all.cedar").write_text(policies)
        (self.folder / "canaries.json").write_text(CANARIES)
        (self.folder / "groups.json").write_text(GROUPS)

    def request(self, who: str, action: Action = Action.LEASE_DATA_KEY) -> AccessRequest:
        return AccessRequest(principal_of(who), action, Resource("demo", "face"), self.clock.now())

    def decide(self, who: str, **around: object) -> str:
        """A lease is asked for; the decision's id."""
        request = replace(self.request(who), circumstances=Circumstances(**around))  # type: ignore[arg-type]
        return self.policy.decide(request).id


@pytest.fixture
def desk(tmp_path: Path, template: Path) -> Iterator[Desk]:
    database = open_database(tmp_path, template)
    folder = tmp_path / "policies"
    folder.mkdir()
    yield Desk(folder, database)
    database.close()


# --- explain -------------------------------------------------------------------------------------


def test_a_refusal_tells_what_is_missing(desk: Desk) -> None:
    explained = desk.ask.explain_decision(desk.officer, desk.decide(NOBODY))
    assert explained.decided is not None
    assert not explained.decided.permitted
    assert explained.explanation.verdict is Verdict.NO
    told = {finding.policy.id: finding for finding in explained.explanation.findings}
    assert told.keys() == {"reader", "prod", "weak"}  # "officer" speaks of other actions
    assert told["reader"].missing == 'principal in ModelKMS::Group::"readers"'
    assert 'principal.getTag("namespace")).contains("prod")' in told["prod"].missing
    assert told["weak"].verdict is Verdict.NO


def test_a_forbid_that_decided_is_named(desk: Desk) -> None:
    explained = desk.ask.explain_decision(desk.officer, desk.decide(READER, suite=2))
    assert explained.decided is not None
    assert explained.decided.policies == ("weak",)
    verdicts = {each.policy.id: each.verdict for each in explained.explanation.findings}
    assert verdicts["reader"] is Verdict.YES
    assert verdicts["weak"] is Verdict.YES
    assert explained.explanation.verdict is Verdict.NO


def test_an_access_that_was_never_tried_depends_on_the_call(desk: Desk) -> None:
    explained = desk.ask.explain_access(
        desk.officer, principal_of("spiffe://demo.example/team/x"), Action.LEASE_DATA_KEY, FACE
    )
    assert explained.explanation.verdict is Verdict.DEPENDS
    assert explained.explanation.groups == ("readers",)
    weak = next(each for each in explained.explanation.findings if each.policy.id == "weak")
    assert weak.verdict is Verdict.DEPENDS
    assert weak.missing == f'(context has suite) && (!(context.suite == "{SUITE}"))'


def test_what_is_known_of_a_principal_is_used(desk: Desk) -> None:
    def verdict() -> Verdict:
        return desk.ask.explain_access(
            desk.officer, principal_of(TOKEN), Action.RESOLVE_MODEL, FACE
        ).explanation.verdict

    assert verdict() is Verdict.NO
    seen = replace(principal_of(TOKEN), claims=(("namespace", ("prod",)),))
    desk.policy.decide(replace(desk.request(TOKEN), principal=seen))
    assert verdict() is Verdict.DEPENDS  # on the proof of its key


def test_an_unknown_decision_is_told_as_a_forbidden_one(desk: Desk) -> None:
    told = []
    known = desk.decide(READER)
    stranger = replace(desk.officer, principal=principal_of(NOBODY))
    for who, decision_id in ((desk.officer, "0" * 32), (stranger, known), (stranger, "0" * 32)):
        with pytest.raises(DecisionNotFoundOrDenied) as refused:
            desk.ask.explain_decision(who, decision_id)
        told.append((refused.value.message, list(refused.value.metadata)))
    assert told == [told[0]] * 3


# --- who can -------------------------------------------------------------------------------------


def test_who_can_knows_the_named_and_the_seen_with_their_last_use(desk: Desk) -> None:
    desk.decide("spiffe://demo.example/team/seen", suite=1)
    desk.decide(NOBODY)
    at = desk.clock.now()
    found = desk.ask.who_can(desk.officer, Action.LEASE_DATA_KEY, FACE)
    assert {each.principal: (each.verdict, each.last_use) for each in found.able} == {
        READER: (Verdict.DEPENDS, None),
        "spiffe://demo.example/team/seen": (Verdict.DEPENDS, at),
    }
    assert all(each.policies == ("reader",) for each in found.able)
    assert found.known == 4  # nobody, the officer, the reader, the seen
    assert [
        each.principal
        for each in desk.ask.who_can(desk.officer, Action.REVOKE_LEASES, ProjectName("demo")).able
    ] == [OFFICER]


def test_questions_need_a_permit(desk: Desk) -> None:
    reader = replace(desk.officer, principal=principal_of(READER))
    for ask in (
        lambda: desk.ask.policy_set(reader),
        lambda: desk.ask.who_can(reader, Action.LEASE_DATA_KEY, FACE),
        lambda: desk.ask.dry_run(reader, PolicySetFiles({"a.cedar": POLICIES})),
        lambda: desk.ask.explain_access(reader, principal_of(NOBODY), Action.LEASE_DATA_KEY, FACE),
    ):
        with pytest.raises(ModelNotFoundOrDenied):
            ask()


# --- dry run -------------------------------------------------------------------------------------

WHO = [READER, NOBODY, OFFICER, "spiffe://demo.example/team/a", "spiffe://demo.example/other"]


def decide_all(desk: Desk) -> dict[tuple[str, int], bool]:
    """Everybody asks under either suite."""
    return {
        (who, suite): desk.engine.decide(
            replace(desk.request(who), circumstances=Circumstances(suite=suite))
        ).permitted
        for who in WHO
        for suite in (1, 2)
    }


def test_a_dry_run_lists_exactly_what_changes_when_it_is_applied(desk: Desk) -> None:
    for who in WHO:
        for suite in (1, 2):
            for _ in range(3):
                desk.decide(who, suite=suite)
    # The forbid goes; one more is let in; the team is shut out.
    changed = (
        POLICIES[: POLICIES.index('@id("weak")')].replace(
            'principal in ModelKMS::Group::"readers"',
            f'principal == ModelKMS::Principal::"{READER}"',
        )
        + f'@id("other") permit (principal == ModelKMS::Principal::"{WHO[4]}", action, resource);'
    )
    before = decide_all(desk)
    told = desk.ask.dry_run(desk.officer, PolicySetFiles({"all.cedar": changed}))
    assert told.refusal == ""
    listed = {
        (change.newest.request.principal.id, change.newest.request.circumstances.suite): (
            change.now.permitted,
            change.then.permitted,
        )
        for change in told.changes
    }
    assert all(change.decisions == 3 for change in told.changes)

    desk.write(changed)
    desk.engine.reload()
    after = decide_all(desk)
    happened = {each: (before[each], after[each]) for each in before if before[each] != after[each]}
    assert listed == happened
    assert happened == {
        (READER, 2): (False, True),
        (WHO[3], 1): (True, False),
        (WHO[4], 1): (False, True),
        (WHO[4], 2): (False, True),
    }


def test_a_dry_run_of_the_set_in_force_changes_nothing(desk: Desk) -> None:
    for who in WHO:
        desk.decide(who)
    told = desk.ask.dry_run(desk.officer, PolicySetFiles({"all.cedar": POLICIES}))
    assert (told.changes, told.refusal, told.inexact) == ((), "", 0)
    assert told.replayed >= len(WHO)


def test_a_dry_run_tells_of_lease_terms_and_why_a_set_would_be_refused(desk: Desk) -> None:
    desk.decide(READER, suite=1)
    shorter = POLICIES.replace('@lease_ttl("1h")', '@lease_ttl("5m")')
    (change,) = desk.ask.dry_run(desk.officer, PolicySetFiles({"a.cedar": shorter})).changes
    assert change.then.lease_bounds.ttl == timedelta(minutes=5)

    for_all = '@id("all") permit (principal, action, resource);'
    told = desk.ask.dry_run(desk.officer, PolicySetFiles({"a.cedar": for_all}))
    assert told.refusal.startswith("a stranger is permitted")
    torn = desk.ask.dry_run(desk.officer, PolicySetFiles({"a.cedar": "permit ("}))
    assert torn.refusal
    assert (torn.changes, torn.replayed) == ((), 0)


# --- what is kept --------------------------------------------------------------------------------


def test_secrets_are_not_kept(desk: Desk) -> None:
    desk.decide(READER, attributes={"platform": "ios", "api-key": "canary-secret"})
    claims = (("jwt_token", ("canary-secret",)), ("namespace", ("prod",)))
    token = replace(principal_of(TOKEN), claims=claims)
    desk.policy.decide(replace(desk.request(TOKEN), principal=token))
    desk.journal.flush()
    with desk.database.read() as tx:
        kept = {each.request.principal.id: each for each in tx.decisions.newest(10)}
    assert "canary-secret" not in repr(kept)
    assert kept[READER].request.circumstances.attributes == {"platform": "ios", "api-key": REDACTED}
    assert kept[TOKEN].request.principal.claims[1] == ("namespace", ("prod",))
    assert all(each.redacted for each in kept.values())
    told = desk.ask.dry_run(desk.officer, PolicySetFiles({"all.cedar": POLICIES}))
    assert told.inexact == 2


def test_equal_permits_share_a_record_and_refusals_do_not(desk: Desk) -> None:
    for _ in range(5):
        desk.decide(READER)
        desk.decide(NOBODY)
    assert desk.journal.flush() == 6
    with desk.database.read() as tx:
        repeats = sorted(each.repeats for each in tx.decisions.newest(100))
    assert repeats == [1, 1, 1, 1, 1, 5]
    assert desk.journal.flush() == 0


def test_what_is_kept_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_journal, "KEPT_DECISIONS", 10)
    monkeypatch.setattr(decision_journal, "KEPT_USES", 5)
    monkeypatch.setattr(decision_journal, "_PRUNE_EVERY", 1)
    monkeypatch.setattr(decision_journal, "_MOST_PENDING", 30)
    for number in range(40):
        desk.clock.advance(timedelta(seconds=1))
        desk.decide(f"spiffe://demo.example/{number}")
    assert desk.journal.flush() == 30
    assert desk.dropped == 10
    with desk.database.read() as tx:
        assert len(tx.decisions.newest(100)) == 10
        assert len(tx.decisions.principals()) == 5


def test_an_outage_of_the_database_loses_no_decision(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision_id = desk.decide(NOBODY)
    desk.decide(READER)
    with monkeypatch.context() as broken:

        def away(*_: object) -> None:
            raise StateUnavailable

        broken.setattr(desk.database, "transact", away)
        with pytest.raises(StateUnavailable):
            desk.journal.flush()
    assert desk.journal.flush() == 2
    assert desk.ask.explain_decision(desk.officer, decision_id).decided is not None


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("ipv4:10.1.2.3:5", "10.1.2.3"),
        ("ipv6:%5B::1%5D:5", "::1"),
        ("ipv6:[fe80::1%25eth0]:5", "fe80::1"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:5", "10.1.2.3"),
        ("unix:/run/socket", ""),
        ("ipv4:nonsense:1", ""),
        ("", ""),
    ],
)
def test_source_of_a_peer(peer: str, source: str) -> None:
    assert source_of(peer) == source
