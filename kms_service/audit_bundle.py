"""`audit bundle`: what an auditor asks for once a quarter, as one tar file.

    manifest.json        of which time, by which version, SHA-256 of every file, how the log holds
    access.csv           who was given, or refused, which version's key, by which policies
    rotations.jsonl      records of rotation and rewrapping
    destructions.jsonl   records of destruction
    administration.jsonl records of all else that changed something
    inventory.json       projects, master keys, models and versions, as they are when it is made
    policies/EPOCH/      each policy set that decided in that time, as the log has it
    checkpoints/         that vouch for the log, and the keys that verify them

The log is checked while it is read; a log that does not hold makes no bundle.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kms_service import __version__
from kms_service.adapters.audit_policies import RecordedPolicies, RecordedSet
from kms_service.adapters.audit_query import Record, RecordFilter, by_right, matching
from kms_service.adapters.audit_reading import Reading
from kms_service.adapters.signed_note import VerifierKey
from kms_service.domain.catalogue import Project, Version
from kms_service.domain.errors import MasterKeyMisconfigured, Unavailable
from kms_service.domain.ports import Database, MasterKeys, Transaction

SCHEMA = 1
_PAGE = 1000
_ACCESS = ("LeaseDataKey", "RenewLease")
_READS = re.compile(r"^(Get|List|Resolve|Read|Explain|WhoCan|DryRun|Watch)")
_ROTATIONS = re.compile(r"Rotat|Rewrap|Retire|Trim")
_DESTRUCTIONS = re.compile(r"Destroy|Shred|Expire|Restore")
_COLUMNS = (
    *("principal", "version", "leases", "renewals", "refused", "first", "last", "policies"),
)


@dataclass(slots=True)
class _Access:
    """One row of the access list."""

    leases: int = 0
    renewals: int = 0
    refused: int = 0
    first: str = ""
    last: str = ""
    policies: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        if record["outcome"] != "ok":
            self.refused += 1
        elif record["event"] == "RenewLease":
            self.renewals += 1
        else:
            self.leases += 1
        self.first = self.first or record["time"]
        self.last = record["time"]
        self.policies.update(by_right(record))


class Bundle:
    """Collects, then writes.

    Args:
        since, until: of the records.
    """

    def __init__(self, since: datetime, until: datetime) -> None:
        self._since = since
        self._until = until
        self._files: dict[str, bytes] = {}
        self._log: list[str] = []
        self._policy_sets: dict[str, str] = {}

    def add_records(self, reading: Reading) -> bool:
        """Sort the records of that time into lists; whether the log holds.

        Raises:
            OSError: a file cannot be read.
        """
        access: dict[tuple[str, str], _Access] = {}
        lists: dict[str, list[bytes]] = {
            name: [] for name in ("rotations", "destructions", "administration")
        }
        policies, epochs = RecordedPolicies(), set()
        of_that_time = RecordFilter(since=self._since, until=self._until)
        for record in matching(reading, of_that_time, policies):
            epochs.add(record.get("policy_epoch", ""))
            if record["event"] in _ACCESS:
                version = record["details"].get("version") or record["resource"]
                access.setdefault((record["principal"], version), _Access()).add(record)
            elif (kind := _kind(record["event"])) is not None:
                line = json.dumps(record, sort_keys=True, separators=(",", ":"))
                lists[kind].append(line.encode() + b"\n")
        verification = reading.verification
        self._log = [chain.summary for chain in verification.chains]
        self._files["access.csv"] = _access_list(access)
        self._files |= {f"{name}.jsonl": b"".join(lines) for name, lines in lists.items()}
        for epoch in sorted(epochs - {""}):
            self._add_policy_set(epoch, policies.find(epoch))
        return not verification.faulty

    def _add_policy_set(self, epoch: str, found: RecordedSet | None) -> None:
        """A reader can hash the files: they are of this epoch, or not the set that decided."""
        self._policy_sets[epoch] = "whole" if found is not None else "not in this log"
        if found is not None:
            for name, text in found.files.named.items():
                self._files[f"policies/{epoch}/{name}"] = text.encode()

    @property
    def log(self) -> list[str]:
        """How each chain was found."""
        return self._log

    def add_inventory(self, database: Database, master_keys: MasterKeys) -> None:
        """
        Raises:
            StateUnavailable, StateCorrupt.
        """
        with database.read() as tx:
            projects = [_project(tx, project, master_keys) for project in _projects(tx)]
        self._files["inventory.json"] = _json({"projects": projects})

    def add_checkpoints(self, notes: Mapping[str, bytes], keys: Iterable[VerifierKey]) -> None:
        """
        Args:
            notes: by name, as they were shipped.
            keys: that verify them.
        """
        self._files |= {f"checkpoints/{name}": note for name, note in notes.items()}
        if notes:
            lines = "".join(f"{key}\n" for key in keys)
            self._files["checkpoints/public-keys"] = lines.encode()

    def write(self, out: Path, made_at: datetime) -> None:
        """The tar file, whole or not at all. Its bytes depend on its contents only.

        Raises:
            OSError: it cannot be written.
        """
        manifest = {
            "schema": SCHEMA,
            "from": self._since.isoformat(),
            "to": self._until.isoformat(),
            "made_at": made_at.isoformat(),
            "made_by": f"modelkms-server {__version__}",
            "log": self._log,
            "policy_sets": self._policy_sets,
            "files": {
                name: hashlib.sha256(data).hexdigest() for name, data in sorted(self._files.items())
            },
        }
        temporary = out.with_name(out.name + ".new")
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in {"manifest.json": _json(manifest), **self._files}.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(data), 0o444, int(made_at.timestamp())
                tar.addfile(member, io.BytesIO(data))
        temporary.replace(out)


def _kind(event: str) -> str | None:
    """In which list an event stands; None for what changes nothing, and for the service's own."""
    if _READS.search(event) or not event[:1].isupper():
        return None
    if _ROTATIONS.search(event):
        return "rotations"
    return "destructions" if _DESTRUCTIONS.search(event) else "administration"


def _access_list(access: Mapping[tuple[str, str], _Access]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for (principal, version), row in sorted(access.items()):
        policies = " ".join(sorted(row.policies))
        counts = (row.leases, row.renewals, row.refused)
        writer.writerow((principal, version, *counts, row.first, row.last, policies))
    return text.getvalue().encode()


def _projects(tx: Transaction) -> Iterator[Project]:
    token = ""
    while True:
        page = tx.projects.list(_PAGE, token)
        yield from page.items
        token = page.next_page_token
        if not token:
            return


def _project(tx: Transaction, project: Project, master_keys: MasterKeys) -> dict[str, Any]:
    models, token = [], ""
    while True:
        page = tx.models.list(project.name, _PAGE, token)
        for model in page.items:
            aliases = tx.aliases.of_versions(model.name)
            versions, versions_token = [], ""
            while True:
                found = tx.versions.list(model.name, _PAGE, versions_token)
                versions += [
                    _version(version, aliases.get(version.name.number, ()))
                    for version in found.items
                ]
                versions_token = found.next_page_token
                if not versions_token:
                    break
            models.append({"name": str(model.name), "versions": versions})
        token = page.next_page_token
        if not token:
            break
    counts = tx.versions.count_by_master_key_version(project.name)
    return {
        "name": str(project.name),
        "master_key": _master_key(project, master_keys),
        "data_keys_by_master_key_version": {str(key): counts[key] for key in sorted(counts)},
        "models": models,
    }


def _version(version: Version, aliases: Iterable[str]) -> dict[str, Any]:
    return {
        "name": str(version.name),
        "uid": version.uid,
        "state": version.state.value,
        "publisher": version.publisher,
        "create_time": version.create_time.isoformat(),
        "master_key_version": version.wrapped_key.master_key_version,
        "artifact_digest": version.pin.digest.hex() if version.pin is not None else None,
        "aliases": list(aliases),
    }


def _master_key(project: Project, master_keys: MasterKeys) -> dict[str, Any]:
    told: dict[str, Any] = {"name": project.master_key}
    try:
        state = master_keys.describe(project.master_key)
    except (MasterKeyMisconfigured, Unavailable) as error:
        return {**told, "unknown": error.reason}
    period = state.auto_rotate_period
    return {
        **told,
        "latest_version": state.latest_version,
        "rotated_at": state.latest_version_create_time.isoformat(),
        "min_decryption_version": state.min_decryption_version,
        "auto_rotate_period_s": period.total_seconds() if period is not None else None,
    }


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"
