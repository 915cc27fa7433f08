"""The data keys that a service of a test keeps, for the check that they are nowhere else."""

from __future__ import annotations

import base64
from contextlib import suppress

import hvac
import hvac.exceptions
import requests

from kms_service.adapters.database import SqlDatabase
from kms_service.config import Config
from kms_service.domain.binding import data_key_context
from kms_service.domain.errors import ServiceError
from kms_service.parts import database_options
from tests.support.planted_secrets import DATA_KEY, plant

_UNWRAPPED = 250
_PATIENCE_S = 1.0


def plant_data_keys_of(config: Config) -> None:
    """Those that a service keeps, its newest 250: it and its clients, in processes of their own,
    had them in hand. None of a service whose database or Vault does not answer any more."""
    with suppress(ServiceError, hvac.exceptions.VaultError, requests.RequestException, OSError):
        wrapped = _wrapped_keys(config)
        vault = _vault(config) if wrapped else None
        for master_key, items in wrapped.items():
            assert vault is not None
            path = f"{config.vault.transit_mount}/decrypt/{master_key}"
            reply = vault.write_data(path, data={"batch_input": items[-_UNWRAPPED:]})
            for result in reply["data"]["batch_results"]:
                plant(DATA_KEY, base64.b64decode(result.get("plaintext", "")))


def _wrapped_keys(config: Config) -> dict[str, list[dict[str, str]]]:
    """As Vault takes them, by master key."""
    database = SqlDatabase(config.database.url, database_options(config))
    try:
        with database.read() as tx:
            keys = {each.name.project: each.master_key for each in tx.projects.list(100, "").items}
            items: dict[str, list[dict[str, str]]] = {key: [] for key in keys.values()}
            for version in tx.versions.scan(None, 10_000):
                context = data_key_context(version.name.parent, version.uid)
                if version.wrapped_key.ciphertext:
                    items[keys[version.name.project]].append(
                        {
                            "ciphertext": version.wrapped_key.ciphertext,
                            "context": base64.b64encode(context).decode(),
                        }
                    )
    finally:
        database.close()
    return {key: found for key, found in items.items() if found}


def _vault(config: Config) -> hvac.Client:
    section = config.vault
    client = hvac.Client(url=section.address, verify=str(section.ca_file), timeout=_PATIENCE_S)
    if section.role_id_file is not None and section.secret_id_file is not None:
        client.auth.approle.login(
            section.role_id_file.read_text(), section.secret_id_file.read_text()
        )
    return client
