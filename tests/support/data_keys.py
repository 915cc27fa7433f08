"""Many versions with real wrapped data keys, straight into a database: publishing each would take
days."""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert

from kms_service.adapters.database import schema
from kms_service.adapters.database.engine import EngineOptions, transactions_of
from kms_service.adapters.database.version_table import version_columns
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import ArtifactPin, Version, VersionState, WrappedDataKey
from kms_service.domain.names import ModelName, VersionName
from tests.support.planted_secrets import DATA_KEY, plant
from tests.support.vault_servers import VaultRig

PIN = ArtifactPin(1000, bytes(32), bytes(32))
_BATCH = 200


def fill(
    url: str, vault: VaultRig, master_key: str, model: ModelName, count: int
) -> Iterator[tuple[Version, bytes]]:
    """ENABLED versions 1 to `count` of a model that exists; each with its data key."""
    transactions = transactions_of(url, EngineOptions(connections=1))
    try:
        for first in range(1, count + 1, _BATCH):
            numbers = range(first, min(first + _BATCH, count + 1))
            made = _wrapped(vault, master_key, model, numbers)
            with transactions.write() as connection:
                rows = [version_columns(version) for version, _ in made]
                connection.execute(insert(schema.versions), rows)
            yield from made
        with transactions.write() as connection:
            models = schema.models
            connection.execute(
                models.update()
                .where(models.c.project == model.project, models.c.model == model.model)
                .values(last_number=count)
            )
            connection.exec_driver_sql("ANALYZE")  # PostgreSQL does it by itself, soon
    finally:
        transactions.close()


def _wrapped(
    vault: VaultRig, master_key: str, model: ModelName, numbers: range
) -> list[tuple[Version, bytes]]:
    keys = [(uuid.uuid4().hex, os.urandom(32)) for _ in numbers]
    for _, key in keys:
        plant(DATA_KEY, key)
    items = [
        {"plaintext": _base64(key), "context": _base64(data_key_context(model, uid))}
        for uid, key in keys
    ]
    reply: Any = vault.root.write_data(f"transit/encrypt/{master_key}", data={"batch_input": items})
    ciphertexts = [result["ciphertext"] for result in reply["data"]["batch_results"]]
    return [
        (_version(model, number, uid, ciphertext), key)
        for number, (uid, key), ciphertext in zip(numbers, keys, ciphertexts, strict=True)
    ]


def _version(model: ModelName, number: int, uid: str, ciphertext: str) -> Version:
    return Version(
        name=VersionName(model.project, model.model, number),
        uid=uid,
        state=VersionState.ENABLED,
        publisher="spiffe://test.example/admin/a",
        request_id=str(uuid.uuid4()),
        artifact_id=uuid.uuid4().hex,
        wrapped_key=WrappedDataKey(ciphertext, int(ciphertext.split(":")[1][1:])),
        create_time=datetime.now(UTC),
        finalize_time=datetime.now(UTC),
        pin=PIN,
        revision=1,
    )


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
