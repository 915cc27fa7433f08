"""F17 in time: whether something is missing or forbidden cannot be told by how long it takes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import grpc
import pytest
from modelkms_api.v1 import key_service_pb2, key_service_pb2_grpc, key_transport_pb2

from kms_service.development.vault_setup import AppRoleFiles
from kms_service.domain.catalogue import Model, Project
from kms_service.domain.names import ModelName, ProjectName
from kms_service.domain.standing import Block
from kms_service.parts import open_database
from tests.support.certificates import TestAuthority
from tests.support.key_transport_opener import PrivateKey
from tests.support.server import Refusal, refusal
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess

PAIRS = 2000
WARM_UP = 100
EVEN = 0.5
TOLERANCE = 0.06
"""Of the chance that a forbidden answer takes longer than a missing one. Its standard error at
2,000 each is 0.009, whatever the machine is doing: both kinds are asked in random order."""

BLOCKED = "admin/blocked"
"""Policy permits it everything."""
LABELS = {f"label-{number}": "v" * 60 for number in range(8)}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """With a model `secret` that the stranger may not read; without a Vault."""
    folder = tmp_path_factory.mktemp("service")
    authority = TestAuthority(TRUST_DOMAIN)
    for name in ("role-id", "secret-id"):
        (folder / name).write_text("unused")
    (folder / "vault-ca.pem").write_bytes(authority.pem)
    service = ServiceProcess(
        folder / "service",
        authority,
        "https://127.0.0.1:1",
        folder / "vault-ca.pem",
        AppRoleFiles(folder / "role-id", folder / "secret-id"),
        settings={"LOG__LEVEL": "warning"},
    )
    service.start()
    with closing(open_database(service.config())) as database, database.write() as tx:
        now = datetime.now(UTC)
        tx.blocks.put(Block(f"spiffe://{TRUST_DOMAIN}/{BLOCKED}", "stolen", "officer", now))
        tx.projects.insert(Project(ProjectName("demo"), "modelkms-demo", now))
        tx.models.insert(Model(ModelName("demo", "secret"), now, LABELS))
    yield service
    service.stop()


class Stranger:
    """Asks for keys and measures how long the refusal takes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = key_service_pb2_grpc.KeyServiceStub(channel)
        self._key = PrivateKey.from_seed(1, os.urandom(32))

    def ask(self, name: str) -> tuple[float, Refusal]:
        client_key = key_transport_pb2.ClientKey(
            suite=key_transport_pb2.KeyTransportSuite.ValueType(1),
            public_key=self._key.public_bytes,
            request_nonce=os.urandom(32),
        )
        request = key_service_pb2.LeaseDataKeyRequest(name=name, client_key=client_key)
        began = time.perf_counter()
        try:
            self._stub.LeaseDataKey(request, timeout=30)
        except grpc.RpcError as error:
            return time.perf_counter() - began, refusal(error)
        raise AssertionError("a stranger was given a key")


def chance_that_longer(these: list[float], those: list[float]) -> float:
    """Of one of `these` over one of `those` (Mann and Whitney's U, divided by all pairs)."""
    ranked = sorted([(value, True) for value in these] + [(value, False) for value in those])
    ranks = sum(rank for rank, (_, mine) in enumerate(ranked, start=1) if mine)
    smallest = len(these) * (len(these) + 1) / 2
    return (ranks - smallest) / (len(these) * len(those))


FORBIDDEN = ("stranger", "projects/demo/models/secret")
OTHERS = {
    "missing model": ("stranger", "projects/demo/models/absent"),
    "missing project": ("stranger", "projects/nowhere/models/absent"),
    "missing version": ("stranger", "projects/demo/models/secret/versions/9"),
    "blocked principal": (BLOCKED, "projects/demo/models/secret"),
    "blocked principal, missing model": (BLOCKED, "projects/demo/models/absent"),
}


@pytest.mark.faults
def test_f17_missing_and_forbidden_and_blocked_take_alike(service: ServiceProcess) -> None:
    kinds = {"forbidden": FORBIDDEN, **OTHERS}
    order = list(kinds) * PAIRS
    random.Random(17).shuffle(order)
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    told = set()
    with service.channel("stranger") as channel, service.channel(BLOCKED) as blocked:
        askers = {"stranger": Stranger(channel), BLOCKED: Stranger(blocked)}
        for kind in order[:WARM_UP]:
            who, name = kinds[kind]
            askers[who].ask(name)
        for kind in order:
            who, name = kinds[kind]
            seconds, answer = askers[who].ask(name)
            took[kind].append(seconds)
            told.add((answer.code, answer.reason, answer.message, tuple(answer.metadata)))
    assert len(told) == 1
    for kind in OTHERS:
        chance = chance_that_longer(took["forbidden"], took[kind])
        assert abs(chance - EVEN) < TOLERANCE, f"{kind}: {chance:.3f}"


def test_the_measure_sees_a_difference() -> None:
    """A fifth more, under noise as large as the whole, is found."""
    rng = random.Random(1)
    some = [1 + rng.expovariate(1) for _ in range(PAIRS)]
    more = [1.2 + rng.expovariate(1) for _ in range(PAIRS)]
    same = [1 + rng.expovariate(1) for _ in range(PAIRS)]
    assert chance_that_longer(more, some) > EVEN + TOLERANCE
    assert abs(chance_that_longer(same, some) - EVEN) < TOLERANCE
