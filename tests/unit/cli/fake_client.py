"""A client without a service: what `modelkms.Client` does, on a catalogue in memory.

`test_fake.py` holds its methods to the real client's signatures.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from modelkms.artifact import ArtifactReader
from modelkms.errors import (
    KeysUnderOldVersion,
    MemberNotFound,
    ModelNotFoundOrDenied,
    VersionDisabled,
)
from modelkms.materialize import materialized
from modelkms.policy import (
    DecisionChangeInfo,
    DryRunInfo,
    ExplanationInfo,
    FindingInfo,
    PermittedInfo,
    PolicyInfo,
    PolicySetInfo,
    WhoCanInfo,
)
from modelkms.reference import Reference
from modelkms.renewal import LeaseCallback
from modelkms.timings import Timings
from modelkms.types import (
    AliasInfo,
    BackupInfo,
    BlockInfo,
    DestructionInfo,
    Exposure,
    FreezeInfo,
    Identity,
    LeaseInfo,
    MasterKeyInfo,
    ModelInfo,
    PinInfo,
    Progress,
    ProgressCallback,
    ProjectInfo,
    Pushed,
    Rekeyed,
    RewrapFailureInfo,
    RewrapInfo,
    TrimInfo,
    VersionInfo,
)

if TYPE_CHECKING:
    from modelkms.client import Client

PROJECT = "demo"
NOW = datetime(2026, 11, 23, 8, 47, 55, tzinfo=UTC)
PUBLISHER = "spiffe://example.org/publisher"
READER = "spiffe://example.org/reader"
READS = PolicyInfo("reads", "PERMIT", '@id("reads")\npermit (principal, action, resource);')
WEAK = PolicyInfo("weak", "FORBID", '@id("weak")\nforbid (principal, action, resource);')


@dataclass
class FakeService:
    """What is published. `failure` is raised by the next call of any method."""

    contents: dict[str, dict[str, bytes]] = field(default_factory=dict)
    versions: dict[str, VersionInfo] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    leases: dict[str, LeaseInfo] = field(default_factory=dict)
    projects: list[str] = field(default_factory=lambda: [PROJECT])
    blocks: dict[str, BlockInfo] = field(default_factory=dict)
    freezes: dict[str, FreezeInfo] = field(default_factory=dict)
    backups: dict[str, BackupInfo] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    oldest_used: int = 1
    refusal: str = ""
    failure: BaseException | None = None
    data_key: bytes = bytes(32)
    rewrap: RewrapInfo = field(default_factory=lambda: _rewrap())
    rewrap_failures: tuple[RewrapFailureInfo, ...] = ()
    clients_closed: int = 0
    on_lease_event: LeaseCallback | None = None

    def connect(self, _profile: str | None) -> Client:
        """To be given to the command line as the way to make a client."""
        return cast("Client", FakeClient(self))

    def publish(self, model: str, files: Mapping[str, bytes]) -> VersionInfo:
        name = f"projects/{PROJECT}/models/{model}"
        number = 1 + sum(version.startswith(f"{name}/") for version in self.versions)
        version = VersionInfo(
            name=f"{name}/versions/{number}",
            uid=f"{number:032x}",
            state="ENABLED",
            create_time=NOW,
            finalize_time=NOW,
            publisher=PUBLISHER,
            pin=PinInfo(sum(map(len, files.values())), bytes(32), hashlib.sha256().digest()),
            aliases=(),
            artifact_id=f"{number:032x}",
        )
        self.versions[version.name] = version
        self.contents[version.name] = dict(files)
        self.aliases.setdefault(f"{name}/aliases/stable", version.name)
        return version


def _rewrap() -> RewrapInfo:
    return RewrapInfo(
        name=f"projects/{PROJECT}/rewraps/{7:032x}",
        done=False,
        state="RUNNING",
        vault_key=f"modelkms-{PROJECT}",
        target_version=2,
        started_by=READER,
        keys_per_second_limit=0,
        total_keys=12_345,
        rewrapped_keys=0,
        failed_keys=0,
        left_keys=12_345,
        keys_per_second=0.0,
        remaining=None,
        create_time=NOW,
        update_time=NOW,
        finish_time=None,
        failures=(),
    )


class FakeOpenedModel:
    """`modelkms.opened.OpenedModel` on bytes in memory; materializes for real."""

    def __init__(self, version: VersionInfo, contents: dict[str, bytes]) -> None:
        self.version = version
        self._contents = contents
        self.single_file = len(contents) == 1
        self.timings = Timings(lease_s=0.25, decrypt_s=1.5)

    def files(self) -> list[str]:
        return sorted(self._contents)

    def open(self, name: str | None = None) -> io.BufferedReader:
        if name is None and self.single_file:
            (name,) = self._contents
        if name not in self._contents:
            raise MemberNotFound(f"{self.version.reference} has no file {name!a}")
        return io.BufferedReader(_Reader(self._contents[name]))

    @contextmanager
    def materialize(
        self,
        name: str | None = None,
        *,
        files: Iterable[str] | None = None,
        keep_when_ended: bool = False,
        only_in_memory: bool = False,
    ) -> Iterator[Path]:
        sizes = {name: len(content) for name, content in self._contents.items()}
        with materialized(sizes, self._write) as folder:
            yield folder

    def export(self, folder: str | Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        self._write(Path(folder))

    def _write(self, folder: Path) -> None:
        for name, content in self._contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class FakeStored:
    """`modelkms.stored.StoredArtifact` under a key that the test knows."""

    def __init__(self, reader: ArtifactReader) -> None:
        self._reader = reader

    def sizes(self) -> dict[str, int]:
        return self._reader.sizes()

    def verify(self, progress: ProgressCallback | None = None) -> None:
        self._reader.verify()
        if progress is not None:
            progress(Progress("verify", 1, 1))


class _Reader(io.RawIOBase):
    """A raw stream over bytes."""

    def __init__(self, content: bytes) -> None:
        self._source = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.readinto(buffer)


class FakeClient:
    """The methods of `modelkms.Client` that the command line uses."""

    def __init__(self, service: FakeService) -> None:
        self._service = service

    def push(
        self,
        path: str | Path,
        ref: str,
        *,
        promote: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Pushed:
        self._fail()
        reference = self.reference(ref)
        stable = f"{reference.require_model()}/aliases/stable"
        content = Path(path).read_bytes()
        version = self._service.publish(reference.model, {Path(path).name: content})
        if progress is not None:
            progress(Progress("encrypt", len(content), len(content)))
        if promote:
            self._service.aliases[stable] = version.name
        return Pushed(version, self._service.aliases[stable])

    def resolve(self, ref: str, attributes: Mapping[str, str] | None = None) -> VersionInfo:
        self._fail()
        reference = self.reference(ref)
        name = reference.resource_name
        if reference.number is None:
            alias = f"{reference.model_name}/aliases/{reference.alias or 'stable'}"
            name = self._service.aliases.get(alias, "")
        version = self._service.versions.get(name)
        if version is None:
            raise ModelNotFoundOrDenied(
                "model not found, or not for this identity", metadata={"decision_id": "d-1"}
            )
        return version

    def open(
        self,
        ref: str,
        attributes: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        on_lease_event: LeaseCallback | None = None,
    ) -> FakeOpenedModel:
        version = self.resolve(ref)
        self._service.on_lease_event = on_lease_event
        if version.state != "ENABLED":
            raise VersionDisabled(f"{version.reference} is disabled")
        return FakeOpenedModel(version, self._service.contents[version.name])

    def prefetch(self, ref: str, progress: ProgressCallback | None = None) -> VersionInfo:
        return self.resolve(ref)

    @contextmanager
    def stored(self, path: str | Path) -> Iterator[FakeStored]:
        self._fail()
        with ArtifactReader(path, self._service.data_key) as reader:
            yield FakeStored(reader)

    def create_project(self, project: str) -> ProjectInfo:
        self._fail()
        self._service.projects.append(project)
        return _project(project)

    def list_projects(self) -> list[ProjectInfo]:
        self._fail()
        return [_project(project) for project in self._service.projects]

    def list_models(self, project: str | None = None) -> list[ModelInfo]:
        self._fail()
        names = {name.rsplit("/versions/", 1)[0] for name in self._service.versions}
        prefix = f"projects/{project or PROJECT}/"
        return [
            ModelInfo(name, NOW, self._service.labels)
            for name in sorted(names)
            if name.startswith(prefix)
        ]

    def list_versions(self, model_ref: str) -> list[VersionInfo]:
        self._fail()
        model = self.reference(model_ref).require_model()
        return [
            replace(version, aliases=self._aliases_of(version))
            for name, version in reversed(self._service.versions.items())
            if name.startswith(f"{model}/")
        ]

    def list_aliases(self, model_ref: str) -> list[AliasInfo]:
        self._fail()
        model = self.reference(model_ref).require_model()
        return [
            AliasInfo(alias, version, NOW)
            for alias, version in self._service.aliases.items()
            if alias.startswith(f"{model}/")
        ]

    def set_alias(self, version_ref: str, alias: str) -> AliasInfo:
        self._fail()
        reference = self.reference(version_ref)
        name = f"{reference.model_name}/aliases/{alias}"
        self._service.aliases[name] = reference.require_version()
        return AliasInfo(name, reference.require_version(), NOW)

    def promote(self, version_ref: str) -> AliasInfo:
        return self.set_alias(version_ref, "stable")

    def enable(self, version_ref: str) -> VersionInfo:
        return self._set_state(version_ref, "ENABLED")

    def disable(self, version_ref: str) -> VersionInfo:
        return self._set_state(version_ref, "DISABLED")

    def rekey(self, version_ref: str, progress: ProgressCallback | None = None) -> Rekeyed:
        old = self._set_state(version_ref, "DISABLED")
        model = self.reference(version_ref).model
        version = self._service.publish(model, self._service.contents[old.name])
        return Rekeyed(version, old.name)

    def exposure(self, principal: str, project: str | None = None) -> list[Exposure]:
        self._fail()
        return [
            Exposure(lease.version, 2, lease.issue_time, NOW, lease.state == "LIVE")
            for lease in self._service.leases.values()
            if lease.principal == principal
        ]

    def destroy(
        self,
        version_ref: str,
        wait: timedelta | None = None,
        *,
        delete_artifact: bool = False,
    ) -> VersionInfo:
        due = NOW + (wait or timedelta(days=30))
        destruction = DestructionInfo(due, PUBLISHER, "", delete_artifact, None)
        version = self._set_state(version_ref, "DESTROY_SCHEDULED")
        return replace(version, destruction=destruction, aliases=self._aliases_of(version))

    def confirm_destroy(self, version_ref: str) -> VersionInfo:
        version = self._set_state(version_ref, "DESTROY_SCHEDULED")
        due = NOW + timedelta(days=30)
        return replace(version, destruction=DestructionInfo(due, PUBLISHER, READER, False, None))

    def restore(self, version_ref: str) -> VersionInfo:
        return self._set_state(version_ref, "DISABLED")

    def list_leases(
        self,
        project: str | None = None,
        principal: str | None = None,
        model: str | None = None,
        show_ended: bool = False,
    ) -> list[LeaseInfo]:
        self._fail()
        return [
            lease
            for lease in self._service.leases.values()
            if (show_ended or lease.state == "LIVE") and principal in (None, lease.principal)
        ]

    def revoke_leases(
        self,
        project: str | None = None,
        lease: str | None = None,
        principal: str | None = None,
        model: str | None = None,
        instance: str | None = None,
    ) -> int:
        self._fail()
        matching = [
            one
            for one in self._service.leases.values()
            if one.state == "LIVE" and lease in (None, one.id, one.name)
        ]
        for one in matching:
            self._service.leases[one.name] = replace(one, state="REVOKED")
        return len(matching)

    def block(self, principal: str, reason: str, until: datetime | None = None) -> int:
        self._fail()
        self._service.blocks[principal] = BlockInfo(principal, reason, PUBLISHER, NOW, until)
        return 1

    def unblock(self, principal: str) -> bool:
        return self._service.blocks.pop(principal, None) is not None

    def list_blocks(self) -> list[BlockInfo]:
        return list(self._service.blocks.values())

    def freeze(self, reason: str, project: str | None = None) -> int:
        self._fail()
        name = f"projects/{project}"
        self._service.freezes[name] = FreezeInfo(name, reason, PUBLISHER, NOW)
        return 2

    def unfreeze(self, project: str | None = None) -> bool:
        return self._service.freezes.pop(f"projects/{project}", None) is not None

    def list_freezes(self) -> list[FreezeInfo]:
        return list(self._service.freezes.values())

    def request_trim(self, oldest_version: int, project: str | None = None) -> TrimInfo:
        self._fail()
        return TrimInfo(
            name=f"projects/{project}/masterKey",
            vault_key=f"modelkms-{project}",
            oldest_version=oldest_version,
            requested_by=PUBLISHER,
            confirmed_by="",
            create_time=NOW,
            expire_time=NOW + timedelta(days=7),
        )

    def list_backups(self) -> list[BackupInfo]:
        return list(self._service.backups.values())

    def declare_backup_destroyed(self, backup: str, reason: str) -> BackupInfo:
        self._fail()
        declared = replace(
            self._service.backups[backup],
            destroyed_by=PUBLISHER,
            destroy_reason=reason,
            destroy_time=NOW,
        )
        self._service.backups[backup] = declared
        return declared

    def check_retirement(self, oldest_version: int, project: str | None = None) -> MasterKeyInfo:
        if oldest_version > self._service.oldest_used:
            raise KeysUnderOldVersion("1 data keys are under old versions", metadata={"v1": "1"})
        return self.get_master_key(project)

    def get_master_key(self, project: str | None = None) -> MasterKeyInfo:
        self._fail()
        return MasterKeyInfo(
            name=f"projects/{project}/masterKey",
            vault_key=f"modelkms-{project}",
            latest_version=2,
            min_decryption_version=1,
            latest_version_create_time=NOW,
            auto_rotate_period=timedelta(days=90),
            keys_under_version={1: 1, 2: 1234},
        )

    def rewrap_data_keys(self, project: str | None = None, keys_per_second: int = 0) -> RewrapInfo:
        self._fail()
        state = replace(
            self._service.rewrap, state="RUNNING", keys_per_second_limit=keys_per_second
        )
        self._service.rewrap = state
        return state

    def get_rewrap(self, project: str | None = None) -> RewrapInfo:
        self._fail()
        return self._service.rewrap

    def watch_rewrap(self, name: str) -> Iterator[RewrapInfo]:
        self._fail()
        assert name == self._service.rewrap.name
        for done in (0, self._service.rewrap.total_keys // 2):
            yield replace(
                self._service.rewrap,
                rewrapped_keys=done,
                keys_per_second=1000.0,
                remaining=timedelta(seconds=3),
            )
        failed = len(self._service.rewrap_failures)
        yield replace(
            self._service.rewrap,
            done=True,
            state="DONE",
            rewrapped_keys=self._service.rewrap.total_keys - failed,
            failed_keys=failed,
            left_keys=0,
            failures=self._service.rewrap_failures,
        )

    def pause_rewrap(self, name: str) -> RewrapInfo:
        self._fail()
        self._service.rewrap = replace(self._service.rewrap, state="PAUSED")
        return self._service.rewrap

    def get_policy_set(self) -> PolicySetInfo:
        self._fail()
        return PolicySetInfo("ab" * 32, (READS, WEAK), {"readers": (READER,)}, 3)

    def explain_decision(self, decision_id: str) -> ExplanationInfo:
        explained = self.explain_access(READER, "LeaseDataKey", "demo/file")
        return replace(explained, decided="NO", decide_time=NOW, decided_by=("weak",))

    def explain_access(self, principal: str, action: str, model_ref: str) -> ExplanationInfo:
        self._fail()
        return ExplanationInfo(
            principal=principal,
            action=action,
            resource=self.reference(model_ref).require_model(),
            verdict="DEPENDS",
            findings=(
                FindingInfo(READS, "YES", ""),
                FindingInfo(WEAK, "DEPENDS", "context has suite"),
            ),
            groups=("readers",),
            epoch="ab" * 32,
            decided="",
            decide_time=None,
            decided_by=(),
        )

    def who_can(self, action: str, model_ref: str) -> WhoCanInfo:
        self._fail()
        return WhoCanInfo(
            (
                PermittedInfo(READER, "YES", ("reads",), "", NOW, None),
                PermittedInfo(PUBLISHER, "DEPENDS", ("reads",), "context has source", None, None),
            ),
            5,
        )

    def dry_run_policies(self, path: str | Path) -> DryRunInfo:
        self._fail()
        change = DecisionChangeInfo(
            decision_id="0" * 32,
            decide_time=NOW,
            decisions=12,
            principal=READER,
            action="LeaseDataKey",
            resource=f"projects/{PROJECT}/models/file",
            permitted_now=True,
            permitted_then=False,
            policies=(),
            lease_ttl_now=None,
            lease_ttl_then=None,
        )
        let_in = replace(
            change, permitted_now=False, permitted_then=True, policies=("more",), decisions=1
        )
        hour, minutes = timedelta(hours=1), timedelta(minutes=5)
        shorter = replace(change, permitted_then=True, lease_ttl_now=hour, lease_ttl_then=minutes)
        return DryRunInfo("", (change, let_in, shorter), 1234, NOW, 2, False)

    def whoami(self) -> Identity:
        self._fail()
        return Identity(
            spiffe_id=READER,
            instance="ab" * 32,
            not_before=NOW,
            not_after=NOW + timedelta(days=1),
            issuer="CN=Example CA",
            endpoint="kms.example:8443",
            ca_file="/etc/modelkms/ca.pem",
            accepted=not self._service.refusal,
            refusal=self._service.refusal,
        )

    def reference(self, text: str) -> Reference:
        return Reference.parse(text, PROJECT)

    def close(self) -> None:
        self._service.clients_closed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_state(self, version_ref: str, state: str) -> VersionInfo:
        self._fail()
        name = self.reference(version_ref).require_version()
        self._service.versions[name] = replace(self._service.versions[name], state=state)
        return self._service.versions[name]

    def _aliases_of(self, version: VersionInfo) -> tuple[str, ...]:
        return tuple(
            alias.rsplit("/", 1)[-1]
            for alias, name in self._service.aliases.items()
            if name == version.name
        )

    def _fail(self) -> None:
        if self._service.failure is not None:
            raise self._service.failure


def lease(number: int, state: str = "LIVE") -> LeaseInfo:
    return LeaseInfo(
        name=f"projects/{PROJECT}/leases/{number:032x}",
        version=f"projects/{PROJECT}/models/file/versions/1",
        principal=READER,
        instance="ab" * 32,
        issue_time=NOW,
        expire_time=NOW + timedelta(hours=1),
        absolute_end_time=NOW + timedelta(hours=12),
        renewals=2,
        state=state,
        revoke_time=None,
    )


def _project(project: str) -> ProjectInfo:
    return ProjectInfo(f"projects/{project}", f"modelkms-{project}", NOW)
