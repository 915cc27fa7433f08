"""The client: everything the SDK does, by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelkms import backups, catalogue, loaders, policy, publish, rewrap, standing
from modelkms.cache import ArtifactCache
from modelkms.download import Downloader
from modelkms.errors import IdentityError, ModelKmsError, ReferenceInvalid
from modelkms.materialize import sweep
from modelkms.observing import NoObserver, Observer
from modelkms.opened import OpenedModel, open_model
from modelkms.policy import DryRunInfo, ExplanationInfo, PolicySetInfo, WhoCanInfo
from modelkms.profile import Profile
from modelkms.reference import Reference
from modelkms.renewal import LeaseCallback
from modelkms.session import Session
from modelkms.stored import StoredArtifact, stored_artifact
from modelkms.timings import Timings
from modelkms.types import (
    AliasInfo,
    BackupInfo,
    BlockInfo,
    Exposure,
    FreezeInfo,
    Identity,
    LeaseInfo,
    MasterKeyInfo,
    ModelInfo,
    ProgressCallback,
    ProjectInfo,
    Pushed,
    Rekeyed,
    RewrapInfo,
    TrimInfo,
    VersionInfo,
)

_log = logging.getLogger("modelkms")


def connect(
    profile: str | Path | None = None, *, observer: Observer | None = None, **overrides: object
) -> Client:
    """A client of the service that a profile names. Nothing is sent until it is used.

    Args:
        profile: name or path of a profile; None: `MODELKMS_PROFILE`, else `default`.
        observer: told how long models take to be ready (`modelkms.metrics.ClientMetrics`).
        overrides: fields of the profile that win over file and environment
            (`endpoint="kms.example:8443"`, `project="camera"`).

    Raises:
        ProfileInvalid: the profile is missing or wrong.
        CredentialMissing, CredentialInvalid: certificate, key or CA file cannot be used.
    """
    return Client(Profile.load(profile, overrides), observer)


def load(ref: str, profile: str | Path | None = None, **options: Any) -> Any:
    """As `Client.load`, by a client of its own.

    Raises: as `connect` and `Client.load`.
    """
    with ExitStack() as stack:
        client = stack.enter_context(connect(profile))
        loaded = client.load(ref, **options)
        if isinstance(loaded, loaders.HeldModel):
            loaded.hold(stack)
        return loaded


class Client:
    """Publishes and opens models. Safe to use from several threads; close it when done.

    Every method raises `ModelKmsError` with a reason of its own kind (docs/faults.md): the
    families are in `modelkms.errors`. References are `[project/]model[@version|@alias]`; without
    a project the profile's default holds, and a bare model means its alias `stable`.
    """

    def __init__(self, profile: Profile, observer: Observer | None = None) -> None:
        self.profile = profile
        self._observer = observer or NoObserver()
        self._session = Session(profile)
        self._cache = ArtifactCache(profile.cache_folder / "artifacts", profile.cache_max_bytes)
        self._downloader = Downloader(
            self._session, self._cache, looked_up=self._observer.looked_up
        )
        _sweep(profile.insecure_plaintext_dir)

    # --- publishing and opening -----------------------------------------------------------------

    def push(
        self,
        path: str | Path,
        ref: str,
        *,
        promote: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Pushed:
        """Encrypt a file or folder and publish it as the next version of a model.

        The first version becomes `@stable`; later ones only with `promote`. An interrupted push
        of the same path to the same model goes on from its spooled ciphertext if that is whole;
        else it begins a new version.

        Raises:
            SourceRejected, SourceChanged, PathUnusable: nothing was published.
            LocalDiskFull, LocalDiskError, PushInProgress: the spool cannot be written.
        """
        target = self.reference(ref)
        return publish.push(
            self._session,
            self.profile.state_folder,
            Path(path),
            target.require_model(),
            promote=promote,
            progress=progress,
        )

    def resolve(self, ref: str, attributes: Mapping[str, str] | None = None) -> VersionInfo:
        """The version that a reference means now. No key is asked for."""
        return catalogue.resolve(self._session, self.reference(ref).resource_name, attributes)

    def open(
        self,
        ref: str,
        attributes: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        on_lease_event: LeaseCallback | None = None,
    ) -> OpenedModel:
        """Lease the data key, fetch the ciphertext (or find it in the cache), open the model.

        Args:
            on_lease_event: told, in a thread of the SDK's, when the lease is renewed, cannot be
                renewed for the service is away, or has ended.

        Raises:
            ModelNotFoundOrDenied: missing or forbidden.
            VersionDisabled, VersionNotFinalized, …: its state does not allow it.
            ArtifactCorrupt, ArtifactMismatch, KeyAnswerInvalid: something does not verify.
            UnavailableError: service, Vault or storage cannot be used right now.
        """
        name = self.reference(ref).resource_name
        try:
            model = open_model(
                self._session, self._downloader, name, attributes, progress, on_lease_event
            )
        except ModelKmsError as error:
            self._observer.not_opened(error.reason)
            raise
        self._observer.opened(model.timings)
        return model

    def load(
        self,
        ref: str,
        attributes: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        *,
        loader: str | None = None,
        trace: Callable[[Timings], object] | None = None,
        **options: Any,
    ) -> Any:
        """What the loader of this kind of model makes of it (docs/guides/loaders.md): an
        `InferenceSession`, a dict of arrays, `bytes`, …

        What lives on files in memory is a `modelkms.loaders.HeldModel`: close it when done.

        Args:
            loader: by name, instead of by what the model holds.
            trace: told in the end where the time went.
            options: for the loader.

        Raises:
            ModelNotLoadable: no loader takes it, or its files are not what they seem.
            LibraryMissing: the library that the loader needs is not installed.
            and as `open`.
        """
        with ExitStack() as stack:
            model = stack.enter_context(self.open(ref, attributes, progress))
            opened_s = model.timings.total_s
            with model.timing_load():
                loaded = loaders.load(model, loader, **options)
            ready_s = model.timings.total_s
            self._observer.loaded(ready_s - opened_s, ready_s)
            if trace is not None:
                trace(model.timings)
            if isinstance(loaded, loaders.HeldModel):
                loaded.hold(stack)
            return loaded

    def prefetch(self, ref: str, progress: ProgressCallback | None = None) -> VersionInfo:
        """Fetch the ciphertext into the cache. No key is asked for.

        Raises:
            LocalDiskFull, LocalDiskError, CacheUnsafe: the cache cannot hold it.
        """
        name = self.reference(ref).resource_name
        version, link = catalogue.resolve_located(self._session, name, None)
        self._downloader.prefetch(version, progress, link)
        return version

    def stored(self, path: str | Path) -> AbstractContextManager[StoredArtifact]:
        """Look into an artifact that lies somewhere as a file: a copy of the store's, a backup.

        The key of the version that its header names is leased; wiped at the end of the block.

        Raises:
            PathUnusable: it cannot be read.
            ArtifactCorrupt, ArtifactMismatch: it is not what was published. And as `open`.
        """
        return stored_artifact(self._session, Path(path))

    # --- the catalogue --------------------------------------------------------------------------

    def create_project(self, project: str) -> ProjectInfo:
        """Create a project. Its master key must exist in Vault (an officer makes it)."""
        return catalogue.create_project(self._session, project)

    def list_projects(self) -> list[ProjectInfo]:
        """The projects that this identity may see, by name."""
        return catalogue.list_projects(self._session)

    def list_models(self, project: str | None = None) -> list[ModelInfo]:
        """A project's models that this identity may see, by name."""
        return catalogue.list_models(self._session, self._project_name(project))

    def list_versions(self, model_ref: str) -> list[VersionInfo]:
        """A model's versions, newest first."""
        model = self.reference(model_ref).require_model()
        return catalogue.list_versions(self._session, model)

    def list_aliases(self, model_ref: str) -> list[AliasInfo]:
        """A model's aliases, by name."""
        model = self.reference(model_ref).require_model()
        return catalogue.list_aliases(self._session, model)

    def set_alias(self, version_ref: str, alias: str) -> AliasInfo:
        """Point an alias to a version, creating it if need be.

        Raises:
            ReferenceInvalid: `version_ref` names no version, or `alias` is no id.
        """
        return catalogue.set_alias(self._session, self.reference(version_ref), alias)

    def promote(self, version_ref: str) -> AliasInfo:
        """Point `@stable` to a version.

        Raises:
            ReferenceInvalid: `version_ref` names no version.
        """
        return self.set_alias(version_ref, "stable")

    def enable(self, version_ref: str) -> VersionInfo:
        """DISABLED → ENABLED."""
        version = self.reference(version_ref).require_version()
        return catalogue.enable(self._session, version)

    def disable(self, version_ref: str) -> VersionInfo:
        """ENABLED → DISABLED; the version's leases end."""
        version = self.reference(version_ref).require_version()
        return catalogue.disable(self._session, version)

    def rekey(self, version_ref: str, progress: ProgressCallback | None = None) -> Rekeyed:
        """Publish a version's content once more under a fresh data key: the answer to a key that
        leaked. As the new version is finalized, the old one is disabled, its leases end, and its
        aliases point to the new one.

        This identity must be permitted to read the version and to publish. The model is decrypted
        and encrypted in memory; only ciphertext touches a disk. Interrupted, it goes on.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
            VersionDisabled, …: it cannot be opened: enable it first.
        """
        return publish.rekey(
            self._session,
            self._downloader,
            self.profile.state_folder,
            self.reference(version_ref).require_version(),
            progress,
        )

    def destroy(
        self,
        version_ref: str,
        wait: timedelta | None = None,
        *,
        delete_artifact: bool = False,
    ) -> VersionInfo:
        """Schedule a version's destruction: it opens no more, and its leases end.

        Its data key is destroyed once another officer has confirmed it and `wait` is over; until
        then `restore` undoes it.

        Args:
            wait: 24 hours to 366 days; None: 30 days.
            delete_artifact: the stored ciphertext goes with the key.

        Raises:
            InvalidField: `wait`.
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed: its state.
        """
        version = self.reference(version_ref).require_version()
        return catalogue.destroy(self._session, version, wait, delete_artifact=delete_artifact)

    def confirm_destroy(self, version_ref: str) -> VersionInfo:
        """Confirm a destruction that another officer scheduled.

        Raises:
            SecondOfficerRequired: this identity scheduled it.
            DestroyConfirmed, VersionNotScheduled, VersionDestroyed: its state.
        """
        version = self.reference(version_ref).require_version()
        return catalogue.confirm_destroy(self._session, version)

    def restore(self, version_ref: str) -> VersionInfo:
        """DESTROY_SCHEDULED → DISABLED, until it is due.

        Raises:
            VersionNotScheduled, VersionDestroyed: its state.
        """
        version = self.reference(version_ref).require_version()
        return catalogue.restore(self._session, version)

    # --- leases and master keys -----------------------------------------------------------------

    def list_leases(
        self,
        project: str | None = None,
        principal: str | None = None,
        model: str | None = None,
        show_ended: bool = False,
    ) -> list[LeaseInfo]:
        """A project's leases, newest first.

        Args:
            principal: only those of this SPIFFE ID.
            model: only those of this model or version (a reference).
            show_ended: also those that have ended.
        """
        parent, model_name = self._lease_scope(project, model)
        return catalogue.list_leases(
            self._session, parent, principal or "", model_name, show_ended=show_ended
        )

    def renew_lease(self, name: str, ttl: timedelta | None = None) -> LeaseInfo:
        """Extend a live lease of ours.

        Raises:
            LeaseExpired, LeaseRevoked, LeaseMaxTtl: it cannot be.
        """
        return catalogue.renew_lease(self._session, name, ttl)

    def revoke_leases(
        self,
        project: str | None = None,
        lease: str | None = None,
        principal: str | None = None,
        model: str | None = None,
        instance: str | None = None,
    ) -> int:
        """End leases: one by name (or id), or all that match everything given. How many ended.

        Raises:
            UsageError: neither a lease nor anything to match is given.
        """
        parent, model_name = self._lease_scope(project, model, lease)
        return catalogue.revoke_leases(
            self._session,
            parent,
            lease=lease or "",
            principal=principal or "",
            model=model_name,
            instance=instance or "",
        )

    def block(self, principal: str, reason: str, until: datetime | None = None) -> int:
        """Block a principal: it sees what a stranger sees, and its leases end. How many ended.

        Args:
            principal: SPIFFE ID, or `oidc:{issuer}:{subject}`; not yourself.
            reason: for the officers.
            until: aware; when the block ends by itself. None: when it is taken off.
        """
        return standing.block(self._session, principal, reason, until)

    def unblock(self, principal: str) -> bool:
        """Take a block off; whether there was one. Leases that it ended stay ended."""
        return standing.unblock(self._session, principal)

    def list_blocks(self) -> list[BlockInfo]:
        """The blocks in force, by principal."""
        return standing.list_blocks(self._session)

    def freeze(self, reason: str, project: str | None = None) -> int:
        """Freeze a project: no data key of it is issued, and its leases end. How many ended."""
        return standing.freeze(self._session, self._project_name(project), reason)

    def unfreeze(self, project: str | None = None) -> bool:
        """Take a freeze off; whether there was one. Leases that it ended stay ended."""
        return standing.unfreeze(self._session, self._project_name(project))

    def list_freezes(self) -> list[FreezeInfo]:
        """The frozen projects, by name."""
        return standing.list_freezes(self._session)

    def exposure(self, principal: str, project: str | None = None) -> list[Exposure]:
        """The versions whose keys a holder has had, by its leases in a project, ended ones too;
        newest first. What it has had, it may have kept."""
        found: dict[str, list[LeaseInfo]] = {}
        for lease in self.list_leases(project, principal, show_ended=True):
            found.setdefault(lease.version, []).append(lease)  # newest first
        return [
            Exposure(
                version,
                len(leases),
                leases[-1].issue_time,
                leases[0].issue_time,
                any(lease.state == "LIVE" for lease in leases),
            )
            for version, leases in found.items()
        ]

    def list_backups(self) -> list[BackupInfo]:
        """The backups that the service's command made, newest first; also destroyed ones."""
        return backups.list_backups(self._session)

    def declare_backup_destroyed(self, backup: str, reason: str) -> BackupInfo:
        """Give your word that every copy of a backup is gone; nobody can check it.

        Args:
            backup: its id.
            reason: how it is known.
        """
        return backups.declare_destroyed(self._session, backup, reason)

    def check_retirement(self, oldest_version: int, project: str | None = None) -> MasterKeyInfo:
        """The state of a project's master key, if no data key is under a version below this.

        Raises:
            KeysUnderOldVersion: some are; its metadata tells how many under which.
        """
        return catalogue.check_retirement(
            self._session, self._project_name(project), oldest_version
        )

    def request_trim(self, oldest_version: int, project: str | None = None) -> TrimInfo:
        """Ask that the versions of a project's master key below this be destroyed in Vault.

        Raises:
            MasterKeyNotRetired, KeysUnderOldVersion, BackupsNeedOldVersion: they may be needed.
        """
        return catalogue.request_trim(self._session, self._project_name(project), oldest_version)

    def confirm_trim(self, oldest_version: int, project: str | None = None) -> TrimInfo:
        """Confirm what another officer asked for. It destroys nothing yet:
        `retirement.trim_master_key` does both.

        Raises:
            TrimNotRequested, SecondOfficerRequired, and as `request_trim`.
        """
        return catalogue.confirm_trim(self._session, self._project_name(project), oldest_version)

    def get_master_key(self, project: str | None = None) -> MasterKeyInfo:
        """State of a project's master key, and how many data keys are wrapped under it."""
        return catalogue.get_master_key(self._session, self._project_name(project))

    def rewrap_data_keys(self, project: str | None = None, keys_per_second: int = 0) -> RewrapInfo:
        """Start moving a project's data keys under the newest version of its master key. The
        service goes on by itself. If a rewrap is not done yet, it is that one, resumed.

        Args:
            keys_per_second: upper bound for all replicas together; 0: none.
        """
        return rewrap.start(self._session, self._project_name(project), keys_per_second)

    def get_rewrap(self, project: str | None = None) -> RewrapInfo:
        """A project's rewrap that was started last.

        Raises:
            ModelNotFoundOrDenied: there was none.
        """
        return rewrap.latest(self._session, self._project_name(project))

    def watch_rewrap(self, name: str) -> Iterator[RewrapInfo]:
        """How a rewrap goes, about every second, until it is done. Survives outages of a moment.

        Args:
            name: its resource name.
        """
        return rewrap.watch(self._session, name)

    def pause_rewrap(self, name: str) -> RewrapInfo:
        """Begin no further batch. `rewrap_data_keys` goes on with it.

        Raises:
            WrongStateError: it is done.
        """
        return rewrap.pause(self._session, name)

    # --- policy ---------------------------------------------------------------------------------

    def get_policy_set(self) -> PolicySetInfo:
        """The policy set in force."""
        return policy.get_policy_set(self._session)

    def explain_decision(self, decision_id: str) -> ExplanationInfo:
        """Why a recorded decision was taken, and how it would be now.

        Raises:
            DecisionNotFoundOrDenied: not recorded (any more), or not for this identity.
        """
        return policy.explain(self._session, decision_id=decision_id)

    def explain_access(self, principal: str, action: str, model_ref: str) -> ExplanationInfo:
        """How it stands if a principal does something to a model.

        Args:
            principal: SPIFFE ID, or `oidc:{issuer name}:{subject}`.
            action: verb of the policy schema (`LeaseDataKey`).
        """
        model = self.reference(model_ref).require_model()
        return policy.explain(self._session, principal=principal, action=action, resource=model)

    def who_can(self, action: str, model_ref: str) -> WhoCanInfo:
        """The known principals that may do something to a model."""
        return policy.who_can(self._session, action, self.reference(model_ref).require_model())

    def dry_run_policies(self, path: str | Path) -> DryRunInfo:
        """The recorded decisions that a policy set (a folder, or one file) would change.

        Raises:
            PathUnusable: it cannot be read.
        """
        return policy.dry_run(self._session, Path(path))

    # --- this client ----------------------------------------------------------------------------

    def whoami(self) -> Identity:
        """Who this client is, and whether the service takes it. Raises only if it is away.

        Raises:
            UnavailableError: the service did not answer, so nothing can be said.
        """
        refusal = ""
        try:
            self.list_projects()
        except IdentityError as error:
            refusal = error.reason
        return self._session.identity.described(self.profile, refusal)

    def reference(self, text: str) -> Reference:
        """`text` as a reference, with the profile's default project.

        Raises:
            ReferenceInvalid: it is none.
        """
        return Reference.parse(text, self.profile.project)

    def close(self) -> None:
        """Close the connection. Opened models stay readable. Idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _project_name(self, project: str | None) -> str:
        return catalogue.project_name(project or self.profile.project)

    def _lease_scope(
        self, project: str | None, model: str | None, lease: str | None = None
    ) -> tuple[str, str]:
        """The project whose leases are meant, and the resource name of `model` (or "")."""
        target = Reference.parse(model, project or self.profile.project) if model else None
        if lease and lease.startswith("projects/"):
            return catalogue.project_name(lease.split("/")[1]), ""
        if target is not None:
            if target.alias is not None:
                raise ReferenceInvalid(
                    f"{target} is an alias; leases are of a version",
                    hint="name the model, or a version of it",
                )
            return catalogue.project_name(target.project), target.resource_name
        return self._project_name(project), ""


def _sweep(insecure_folder: Path | None) -> None:
    """Remove plaintext that killed processes left where models are materialized."""
    try:
        sweep(insecure_folder=insecure_folder)
    except (ModelKmsError, OSError) as error:
        # Whoever materializes meets the same, and there it counts.
        _log.warning("leftovers of materialized models could not be looked at: %s", error)
