"""What a wrapped data key is bound to."""

from __future__ import annotations

from functools import lru_cache

from modelkms_api.encoding import length_prefixed

from kms_service.domain.names import ModelName

_UID_BYTES = 32
_FORMAT = b"modelkms-data-key-v1"


@lru_cache(maxsize=1024)
def data_key_context(model: ModelName, version_uid: str) -> bytes:
    """Derivation context of a version's data key in Vault transit (DESIGN §6).

    The uid is random, so a version number given twice (after a restore) never shares a context,
    and a wrapped key moved to another row fails to unwrap.
    """
    return _of_model(model.project, model.model) + length_prefixed(version_uid.encode())


@lru_cache(maxsize=1024)  # a rewrap asks for a million contexts of few models
def _of_model(project: str, model: str) -> bytes:
    return length_prefixed(_FORMAT, project.encode(), model.encode())


def uid_of(context: bytes) -> str:
    """The version uid in a context of `data_key_context`: its last part, 32 characters."""
    return context[-_UID_BYTES:].decode()
