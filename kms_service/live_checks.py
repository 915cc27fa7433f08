"""`check-config --live`: tries, one after the other, what the configuration names."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from kms_service.adapters.vault_tombstones import VaultTombstones
from kms_service.config import Config
from kms_service.domain.errors import ConfigurationError, MasterKeyMisconfigured, VaultBadReply
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

_NO_PROJECT = "no-such-project-live-check"
_FORBIDDEN = 403
_CLOCKS_APART_S = 30.0
Request = tuple[str, str, dict[str, str] | None]


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
    yield "Vault: what the service may, and what it must not", lambda: _vault_paths(config)
    yield "clock: this machine's and Vault's", lambda: _clocks_agree(config)
    if config.audit.checkpoints is not None:
        yield "audit checkpoints: signed, and the place to ship them", lambda: _checkpoints(config)
    yield "Vault: tombstones of destroyed versions", lambda: _tombstones_readable(config)


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


def _tombstones_readable(config: Config) -> None:
    with closing(open_vault_session(config)) as session:
        VaultTombstones(session, config.vault.kv_mount).uids()


def _master_keys_usable(config: Config) -> None:
    """Log in, and read the state of each project's key, as the service will."""
    template = config.vault.master_key_template
    with closing(open_vault(config)) as vault:
        with suppress(MasterKeyMisconfigured):  # not there, as it should be: we were let in to look
            vault.describe(template.replace("{project}", _NO_PROJECT))
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
    """Try each path: what the service needs, and what it must be refused. Only on the key of a
    project that does not exist, so that nothing happens whatever the answer is."""
    vault = config.vault
    key = vault.master_key_template.replace("{project}", _NO_PROJECT)
    mount = vault.transit_mount
    wrapped = {"ciphertext": "vault:v1:aGk=", "context": "aGk="}
    needed: list[Request] = [
        ("GET", f"{mount}/keys/{key}", None),
        ("POST", f"{mount}/datakey/plaintext/{key}", {"context": "aGk="}),
        ("POST", f"{mount}/decrypt/{key}", wrapped),
        ("POST", f"{mount}/rewrap/{key}", wrapped),
        ("GET", "auth/token/lookup-self", None),
    ]
    if config.audit.checkpoints is not None:
        signing = config.audit.checkpoints.key
        needed += [
            ("GET", f"{mount}/keys/{signing}", None),
            ("POST", f"{mount}/sign/{signing}", {"input": "aGk="}),
        ]
    forbidden: list[Request] = [
        # Without a plaintext Vault makes no key, but tells whether it would be let to ("create").
        ("POST", f"{mount}/encrypt/{key}", {}),
        ("POST", f"{mount}/keys/{key}/rotate", {}),
        ("POST", f"{mount}/keys/{key}/config", {}),
        ("POST", f"{mount}/keys/{key}/trim", {}),
        ("DELETE", f"{mount}/keys/{key}", None),
        ("GET", f"{mount}/export/encryption-key/{key}", None),
        ("GET", f"{mount}/backup/{key}", None),
        ("GET", f"{mount}/keys?list=true", None),
        ("GET", f"{mount}/keys/{_NO_PROJECT}", None),
        ("GET", "sys/mounts", None),
        ("GET", "sys/policies/acl/modelkms-service", None),
    ]
    problems = []
    with closing(open_vault_session(config)) as session:
        for requests, expected in ((needed, True), (forbidden, False)):
            for method, path, body in requests:
                allowed = session.attempt(method, path, body).status != _FORBIDDEN
                if allowed != expected:
                    what = "is refused, and needed" if expected else "is allowed, and must not be"
                    problems.append(f"{method} {path} {what}")
    if problems:
        raise ConfigurationError(
            f"vault: {'; '.join(problems)}; write deploy/vault/policies/service.hcl to Vault"
        )


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
    """Signs, and ships nothing: what is written there stays for good."""
    place = config.audit.checkpoints
    assert place is not None
    open_checkpoint_store(place)
    if place.folder is not None:
        _can_be_written("audit.checkpoints.folder", place.folder)
    with closing(open_vault(config)) as vault:
        note_signer(vault, place).sign("live check\n")
