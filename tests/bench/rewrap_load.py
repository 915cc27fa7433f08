"""What fifty clients notice of a rewrap that is limited in its rate: leases of random versions,
before it and while it runs."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from modelkms_api.v1 import master_key_service_pb2, master_key_service_pb2_grpc

from kms_service.adapters.database import SqlDatabase
from kms_service.domain.catalogue import Model, Project
from kms_service.domain.names import ModelName
from tests.bench.measure import table
from tests.support import postgresql, vault_servers
from tests.support.certificates import TestAuthority
from tests.support.data_keys import fill
from tests.support.lease_load import leasing
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess
from tests.support.vault_servers import VaultRig

_CLIENTS = 50
_EVERY_S = 1.0
_KEYS_PER_SECOND = 500
_MODEL = ModelName("demo", "bench")
_TIMEOUT_S = 30.0


def run(folder: Path, seconds: float) -> str:
    """The table as Markdown."""
    rows: list[tuple[str, ...]] = []
    keys = int(_KEYS_PER_SECOND * seconds)
    with vault_servers.running("openbao", folder / "vault") as vault, _databases(folder) as urls:
        for kind, url in urls.items():
            quiet, during = observe(folder / kind, url, vault, keys, seconds)
            rows += [
                (kind, "quiet", *quiet.columns, "1.00"),
                (kind, "during the rewrap", *during.columns, f"{during.p99_s / quiet.p99_s:.2f}"),
            ]
    return (
        "## Leases during a rewrap\n\n"
        f"{_CLIENTS} clients, each over a connection of its own, lease a data key a second, of\n"
        f"random ones of {keys:,} versions: most are not in the service's memory, and Vault\n"
        f"unwraps them. For {seconds:.0f} s, and while all are rewrapped at {_KEYS_PER_SECOND}\n"
        "keys a second. Service, database, Vault and clients on the same cores.\n\n"
        + table(("database", "run", "leases", "errors", "p50 ms", "p99 ms", "p99 ratio"), rows)
    )


@dataclass(frozen=True)
class Observed:
    """What clients saw.

    Attributes:
        seconds: of each lease, in order of length.
        errors: of those that were refused.
    """

    seconds: list[float]
    errors: list[str]

    @property
    def p99_s(self) -> float:
        return self._percentile_s(0.99)

    @property
    def columns(self) -> tuple[str, str, str, str]:
        p50_ms, p99_ms = (self._percentile_s(share) * 1000 for share in (0.5, 0.99))
        return f"{len(self.seconds):,}", f"{len(self.errors)}", f"{p50_ms:.1f}", f"{p99_ms:.1f}"

    def _percentile_s(self, share: float) -> float:
        return self.seconds[round((len(self.seconds) - 1) * share)]


def observe(
    folder: Path, url: str, vault: VaultRig, keys: int, seconds: float
) -> tuple[Observed, Observed]:
    """Clients of a service of its own: for so many seconds before a rewrap of so many keys, and
    while it runs.

    Raises:
        RuntimeError: the rewrap did not move every key.
    """
    authority = TestAuthority(TRUST_DOMAIN)
    service = ServiceProcess(
        folder,
        authority,
        vault.server.address,
        vault.server.ca_file,
        vault.roles.service,
        settings={"DATABASE__URL": url, "LOG__LEVEL": "info"},
    )
    service.migrate()
    _fill(url, vault, keys)
    try:
        service.start()
        reader, model = authority.client("reader/a"), str(_MODEL)
        with (
            leasing(service.grpc_port, reader, model, keys, _CLIENTS, _EVERY_S) as load,
            service.channel("admin/a") as officer,
        ):
            time.sleep(min(seconds, 5.0))  # sessions, statements and connections are there
            load.since_last()
            time.sleep(seconds)
            quiet = Observed(*load.since_last())
            _rewrap(officer)
            during = Observed(*load.since_last())
    finally:
        service.stop()
    return quiet, during


def _fill(url: str, vault: VaultRig, keys: int) -> None:
    """With data keys under the version of the master key before the newest."""
    master_key = vault.make_key(f"modelkms-{secrets.token_hex(4)}")
    database = SqlDatabase(url)
    with database.write() as tx:
        tx.projects.insert(Project(_MODEL.parent, master_key, datetime.now(UTC)))
        tx.models.insert(Model(_MODEL, datetime.now(UTC)))
    database.close()
    deque(fill(url, vault, master_key, _MODEL, keys), maxlen=0)
    vault.root.secrets.transit.rotate_key(master_key)


def _rewrap(officer: grpc.Channel) -> None:
    stub = master_key_service_pb2_grpc.MasterKeyServiceStub(officer)
    started = stub.RewrapDataKeys(
        master_key_service_pb2.RewrapDataKeysRequest(
            parent=str(_MODEL.parent), keys_per_second_limit=_KEYS_PER_SECOND
        ),
        timeout=_TIMEOUT_S,
    )
    watch = stub.WatchRewrap(master_key_service_pb2.WatchRewrapRequest(name=started.name))
    ended = list(watch)[-1]
    if not ended.done or ended.failed_keys or ended.rewrapped_keys != started.total_keys:
        raise RuntimeError(f"the rewrap ended otherwise: {ended}")


@contextmanager
def _databases(folder: Path) -> Iterator[dict[str, str]]:
    with postgresql.running() as server:
        yield {"sqlite": f"sqlite:///{folder}/rewrap.db", "postgresql": server.new_database()}
