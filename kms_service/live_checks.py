"""`check-config --live`: tries, one after the other, what the configuration names."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from kms_service import vault_paths
from kms_service.adapters.vault_tombstones import VaultTombstones
from kms_service.config import Config
from kms_service.domain.errors import (
    ConfigurationError,
    MasterKeyMisconfigured,
    VaultAccessRefused,
    VaultBadReply,
)
from kms_service.parts import (
    issuer_of,
    note_signer,
    open_checkpoint_store,
    open_database,
    open_policy,
    open_store,
    open_vault,
    open_vault_session,
    tls_files,
)
from kms_service.rpc.tls import load_tls_material
from kms_service.telemetry.metrics import Metrics

_CLOCKS_APART_S = 30.0


def live_checks(config: Config) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each check's name and the check, which raises a ServiceError if it fails."""
    yield "certificate, key and client CA", lambda: load_tls_material(tls_files(config))
    for section in config.issuers:
        yield f"keys of the token issuer {section.name}", issuer_of(section).keys.current
    yield "policies", lambda: open_policy(config, Metrics([], [], []))
    yield "database and its schema", lambda: open_database(config).close()
    yield "artifact store", lambda: _store_can_be_written(config)
    yield "audit folder", lambda: _can_be_written("audit.folder", config.audit.folder)
    yield "Vault: answers, unsealed", lambda: _vault_answers(config)
    yield "Vault: login, and every project's master key", lambda: _master_keys_usable(config)
    yield "Vault: tombstones; what the service may, what not", lambda: _vault_paths(config)
    yield "clock: this machine's and Vault's", lambda: _clocks_agree(config)
    if config.audit.checkpoints is not None:
        yield "audit checkpoints: signed, and the place to ship them", lambda: _checkpoints(config)


def _store_can_be_written(config: Config) -> None:
    store = open_store(config)
    store.probe()
    if config.store.folder is not None:
        _can_be_written("store.folder", config.store.folder)
        return
    # An artifact of nobody, written as an upload is.
    artifact_id = secrets.token_hex(16)
    with store.resume(artifact_id, 0) as upload:
        upload.append(b"live check")
        upload.commit()
    store.delete(artifact_id)


def _can_be_written(field: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"live check")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(
            f"{field}: cannot write to {folder}: {error.strerror}; mend it, or name another folder"
        ) from error


def _vault_answers(config: Config) -> None:
    with closing(open_vault(config)) as vault:
        vault.probe()


def _master_keys_usable(config: Config) -> None:
    """Log in, and read the state of each project's key, as the service will."""
    template = config.vault.master_key_template
    with closing(open_vault(config)) as vault:
        with suppress(MasterKeyMisconfigured):  # not there, as it should be: we were let in to look
            vault.describe(template.replace("{project}", vault_paths.NO_PROJECT))
        with closing(open_database(config)) as database:
            token = ""
            while True:
                with database.read() as transaction:
                    page = transaction.projects.list(1000, token)
                for project in page.items:
                    vault.describe(project.master_key)
                token = page.next_page_token
                if not token:
                    return


def _vault_paths(config: Config) -> None:
    with closing(open_vault_session(config)) as session:
        tombstones: frozenset[str] = frozenset()
        unread: VaultAccessRefused | None = None
        try:
            tombstones = VaultTombstones(session, config.vault.kv_mount).uids()
        except VaultAccessRefused as error:  # the path is named below, with all others
            unread = error
        found = list(vault_paths.problems(config, session, sorted(tombstones)))
    if found:
        raise ConfigurationError(
            f"vault: {'; '.join(found)}; write deploy/vault/policies/service.hcl to Vault"
        )
    if unread is not None:  # every path is allowed, and there is no such engine
        raise ConfigurationError(
            f"vault.kv_mount: Vault has no key-value engine at {config.vault.kv_mount}; "
            "run deploy/vault/setup"
        ) from unread


def _clocks_agree(config: Config) -> None:
    """Certificates and tokens are judged by this machine's clock."""
    with closing(open_vault_session(config)) as session:
        theirs = session.attempt("GET", "sys/health").body.get("server_time_utc")
    if not isinstance(theirs, int):
        raise VaultBadReply
    ahead_s = time.time() - theirs
    if abs(ahead_s) > _CLOCKS_APART_S:
        how = "ahead of" if ahead_s > 0 else "behind"
        raise ConfigurationError(
            f"clock: this machine is {abs(ahead_s):.0f} s {how} Vault; set both by NTP"
        )


def _checkpoints(config: Config) -> None:
    """Signs, and ships no checkpoint: what is written there stays for good."""
    place = config.audit.checkpoints
    assert place is not None
    open_checkpoint_store(place).probe()
    with closing(open_vault(config)) as vault:
        note_signer(vault, place).sign("live check\n")
