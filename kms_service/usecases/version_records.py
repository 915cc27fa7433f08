"""What the audit log holds of each change of a version's state: enough to tell, from the log
alone, what state a version must be in (`verify_state`)."""

from __future__ import annotations

from kms_service.domain.catalogue import Version

CHANGES = frozenset(
    {
        "CreateVersion",
        "FinalizeVersion",
        "EnableVersion",
        "DisableVersion",
        "DestroyVersion",
        "ConfirmDestroyVersion",
        "RestoreVersion",
        "ShredVersion",
        "ExpireVersion",
        "WithholdVersion",
    }
)
"""Events whose records have these details."""


def state_of(version: Version) -> dict[str, str]:
    """Details of a record: which version, and what it is from now on."""
    return {
        "version": str(version.name),
        "version_uid": version.uid,
        "state": version.state.value,
        "revision": str(version.revision),
    }
