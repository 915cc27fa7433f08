"""By what right: policy sets are recorded, and found again by the epoch that decisions name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from kms_service.adapters.audit_chain import MAX_LINE_BYTES, Link, render
from kms_service.adapters.audit_policies import RecordedPolicies
from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.adapters.cedar_policy_set import PolicyFiles
from kms_service.domain.audit import POLICY_FILE_LOADED, AuditRecord
from kms_service.domain.errors import AuditUnavailable
from kms_service.policy_reload import PolicyReloader
from kms_service.telemetry.metrics import Metrics
from kms_service.usecases.record_policies import PART_CHARACTERS, RecordPolicies
from tests.support.audit_logs import POLICIES, lease_record, policy_records
from tests.support.usecase_fakes import ManualClock, MemoryAudit

STARTER = Path(__file__).parents[3] / "deploy" / "policies"


def taken(records: Iterable[AuditRecord]) -> RecordedPolicies:
    policies, last = RecordedPolicies(), Link()
    for record in records:
        line, last = render(record, "main", last)
        assert len(line) < MAX_LINE_BYTES
        policies.take(line)
    return policies


def test_a_set_is_found_with_its_texts_and_groups() -> None:
    found = taken([lease_record(1), *policy_records(), lease_record(2)]).find(POLICIES.epoch)
    assert found is not None
    assert found.files == POLICIES
    text = found.text("readers")
    assert text is not None
    assert text.startswith('@id("readers")\npermit (')
    assert found.text("writers") is None
    assert found.groups_of("spiffe://example.org/reader") == ["robots"]
    assert found.groups_of("spiffe://example.org/other") == []


@pytest.mark.parametrize("filler", ["x", "ä", "\N{GRINNING FACE}"])
def test_a_long_file_is_recorded_in_parts_that_fit_a_line(filler: str) -> None:
    comment = "//" + filler * (2 * PART_CHARACTERS) + "\n"
    long = replace(POLICIES, policies={"a.cedar": comment + POLICIES.text})
    records = policy_records(long)
    assert [record.details["part"] for record in records if record.details["parts"] == "3"] == [
        *("1", "2", "3")
    ]
    found = taken(records).find(long.epoch)
    assert found is not None
    assert found.files == long


def test_what_does_not_hash_to_the_epoch_is_no_set() -> None:
    records = policy_records()
    for missing in range(len(records)):
        assert taken(records[:missing] + records[missing + 1 :]).find(POLICIES.epoch) is None
    forged = [
        replace(each, details={**each.details, "text": each.details["text"] + " "})
        for each in records
    ]
    assert taken(forged).find(POLICIES.epoch) is None


def test_only_the_service_records_a_set() -> None:
    """A caller may choose names: in a string of a record they are no event."""
    (first, *_) = policy_records()
    claimed = json.dumps({"event": POLICY_FILE_LOADED})
    policies = taken([lease_record(1, instance=claimed), lease_record(2, details=first.details)])
    assert policies.epochs() == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in STARTER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, comment: str) -> None:
    """The same policies, in other files: another epoch."""
    file = folder / "zz.cedar"
    file.write_text(f"// {comment}\n")
    os.utime(file, ns=(0, len(comment)))


def test_every_set_that_comes_into_force_is_recorded_once(folder: Path) -> None:
    engine = CedarPolicyEngine(folder, timedelta(hours=1), timedelta(days=1))
    reloader, audit = PolicyReloader(engine, folder, Metrics([], [], [])), MemoryAudit()
    reloader.load()
    reloader.load()
    reloader.record_with(RecordPolicies(audit=audit, clock=ManualClock()))

    def recorded() -> set[str]:
        return {record.policy_epoch for record in audit.take()}

    assert recorded() == {engine.current.files.epoch}
    reloader.load_if_changed()
    reloader.load()
    assert recorded() == set()
    change(folder, "a")
    reloader.load_if_changed()
    assert recorded() == {engine.current.files.epoch}
    (folder / "zz.cedar").write_text("permit (principal, action, resource);")
    reloader.load_if_changed()  # refused: nothing else is in force
    assert recorded() == set()


def test_a_set_that_could_not_be_recorded_is_recorded_later(folder: Path) -> None:
    engine = CedarPolicyEngine(folder, timedelta(hours=1), timedelta(days=1))
    reloader, audit = PolicyReloader(engine, folder, Metrics([], [], [])), MemoryAudit()
    reloader.load()
    record = RecordPolicies(audit=audit, clock=ManualClock())
    audit.broken = lambda _record: True
    with pytest.raises(AuditUnavailable):
        reloader.record_with(record)
    audit.broken = lambda record: record.details["file"] == "groups.json"
    reloader.load_if_changed()
    audit.broken = lambda _record: False
    reloader.load_if_changed()
    found = taken(audit.records).find(engine.current.files.epoch)
    assert found is not None
    assert found.files == PolicyFiles(
        {file.name: file.read_text() for file in folder.glob("*.cedar")},
        (folder / "canaries.json").read_text(),
        (folder / "groups.json").read_text(),
    )
