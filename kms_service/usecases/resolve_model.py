"""Resolving a reference to one version and where to read its artifact. No key is touched."""

from __future__ import annotations

from collections.abc import Mapping

from kms_service.domain.attributes import check_attributes
from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.names import Reference
from kms_service.domain.ports import ArtifactStore, Clock
from kms_service.usecases.answers import ResolvedModel, VersionView
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.resolution import locate, resolve_openable


class ResolveModel:
    def __init__(self, *, gate: Gate, store: ArtifactStore, clock: Clock) -> None:
        self._gate = gate
        self._store = store
        self._clock = clock

    def __call__(
        self, caller: Caller, reference: Reference, attributes: Mapping[str, str]
    ) -> ResolvedModel:
        """The version that the reference means now.

        Raises:
            InvalidField: `attributes`.
            ModelNotFoundOrDenied: missing, or not permitted.
            NoStableVersion, VersionNotFinalized, VersionDisabled, VersionDestroyScheduled,
            VersionDestroyed.
        """
        claims = check_attributes(attributes, "attributes")
        with self._gate.admit(caller, Action.RESOLVE_MODEL, reference, attributes=claims) as permit:
            _, version, _ = resolve_openable(permit, reference)
            location = locate(self._store, self._clock, version)
            permit.record()
            return ResolvedModel(VersionView(version, permit.found.aliases), location)
