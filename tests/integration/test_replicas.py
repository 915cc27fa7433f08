"""Replicas on one PostgreSQL, each a process of its own, before a real OpenBao."""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import modelkms
import pytest
from modelkms_api.v1 import (
    access_service_pb2,
    access_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    key_transport_pb2,
    master_key_service_pb2,
    master_key_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

from kms_service.adapters.audit_reading import read_records
from kms_service.adapters.database import SqlDatabase
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import Version
from kms_service.domain.names import ModelName
from tests.support import key_transport_opener as opener
from tests.support.certificates import TestAuthority
from tests.support.data_keys import fill
from tests.support.postgresql import PostgresServer
from tests.support.proxy import Proxy
from tests.support.server import refusal
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess
from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

TIMEOUT_S = 30.0
KEYS = 6000


@pytest.fixture(scope="module")
def vault(vault_of: Callable[[str], VaultRig]) -> VaultRig:
    return vault_of("openbao")


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(scope="module")
def replicas(
    tmp_path_factory: pytest.TempPathFactory, vault: VaultRig, url: str
) -> Iterator[list[ServiceProcess]]:
    """Two, running."""
    folder, authority = tmp_path_factory.mktemp("replicas"), TestAuthority(TRUST_DOMAIN)
    found = [
        ServiceProcess(
            folder / name,
            authority,
            vault.server.address,
            vault.server.ca_file,
            vault.roles.service,
            settings={
                "DATABASE__URL": url,
                "AUDIT__CHAIN": name,
                "STORE__FOLDER": str(folder / "artifacts"),
                "LOG__LEVEL": "info",
                "WATCH__LISTEN": "127.0.0.1:0",
            },
        )
        for name in ("one", "two")
    ]
    try:
        for replica in found:
            replica.start()
        yield found
    finally:
        for replica in found:
            replica.stop()


@pytest.fixture
def face(replicas: list[ServiceProcess], vault: VaultRig) -> ModelName:
    """A model of a project of its own, with a master key of its own."""
    model = ModelName(f"p-{secrets.token_hex(4)}", "face")
    vault.make_key(master_key_of(model))
    with replicas[0].channel("admin/a") as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        models.CreateProject(
            model_service_pb2.CreateProjectRequest(project_id=model.project), timeout=TIMEOUT_S
        )
        models.CreateModel(
            model_service_pb2.CreateModelRequest(parent=str(model.parent), model_id="face"),
            timeout=TIMEOUT_S,
        )
    return model


def master_key_of(model: ModelName) -> str:
    return f"modelkms-{model.project}"


def rewrap(
    channel: grpc.Channel, model: ModelName, rate: int = 0
) -> master_key_service_pb2.RewrapOperation:
    return master_key_service_pb2_grpc.MasterKeyServiceStub(channel).RewrapDataKeys(
        master_key_service_pb2.RewrapDataKeysRequest(
            parent=str(model.parent), keys_per_second_limit=rate
        ),
        timeout=TIMEOUT_S,
    )


def watched(
    channel: grpc.Channel,
    name: str,
    until: Callable[[master_key_service_pb2.RewrapOperation], bool],
) -> master_key_service_pb2.RewrapOperation:
    call = master_key_service_pb2_grpc.MasterKeyServiceStub(channel).WatchRewrap(
        master_key_service_pb2.WatchRewrapRequest(name=name), timeout=120
    )
    for operation in call:
        if until(operation):
            call.cancel()
            return operation
    raise AssertionError("the watch ended too early")


class Client:
    """Leases data keys and opens them by the reference opener."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self._key = opener.PrivateKey.from_seed(1, os.urandom(32))
        self.lease = ""

    def data_key(self, version: Version, principal: str) -> bytes:
        nonce = os.urandom(32)
        answer = self._keys.LeaseDataKey(
            key_service_pb2.LeaseDataKeyRequest(
                name=str(version.name),
                client_key=key_transport_pb2.ClientKey(
                    suite=key_transport_pb2.KeyTransportSuite.ValueType(1),
                    public_key=self._key.public_bytes,
                    request_nonce=nonce,
                ),
            ),
            timeout=TIMEOUT_S,
        )
        self.lease = answer.lease.name
        session = answer.data_key.session
        info = opener.info(1, principal, self._key.public_bytes, session.session_id)
        secret = self._key.open_secret(session.encrypted_secret, info)
        pin = version.pin
        assert pin is not None
        duration = answer.lease_duration
        aad = opener.aad(
            "lease",
            nonce,
            answer.lease.name,
            version.uid,
            opener.pin(pin.length_bytes, pin.floe_header_tag, pin.digest),
            duration.seconds * 1000 + duration.nanos // 1_000_000,
        )
        return opener.open_data_key(secret, answer.data_key.nonce, answer.data_key.ciphertext, aad)

    def renew(self) -> None:
        """The lease that was given last."""
        self._keys.RenewLease(key_service_pb2.RenewLeaseRequest(name=self.lease), timeout=TIMEOUT_S)


@pytest.mark.faults
def test_f59_a_replica_killed_in_a_rewrap_loses_nothing_and_every_key_opens_throughout(
    replicas: list[ServiceProcess], vault: VaultRig, face: ModelName, url: str
) -> None:
    master_key = master_key_of(face)
    published = list(fill(url, vault, master_key_of(face), face, KEYS))
    vault.root.secrets.transit.rotate_key(master_key)
    one, two = replicas
    stop, problems, opened = threading.Event(), [], []

    def read() -> None:
        """A client of the replica that stays: random versions, all the while."""
        try:
            with two.channel("reader/a") as channel:
                client = Client(channel)
                while not stop.is_set():
                    version, key = random.choice(published)
                    principal = f"spiffe://{TRUST_DOMAIN}/reader/a"
                    assert client.data_key(version, principal) == key
                    opened.append(version.name.number)
        except BaseException as error:
            problems.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with one.channel("admin/a") as channel:
            started = rewrap(channel, face, 1500)
            assert started.total_keys == KEYS
            watched(channel, started.name, lambda seen: seen.rewrapped_keys > KEYS // 6)
        one.signal(signal.SIGKILL)
        one.wait()
        with two.channel("admin/a") as channel:
            watched(channel, started.name, lambda seen: seen.rewrapped_keys > KEYS // 2)
            one.start()
            ended = watched(channel, started.name, lambda seen: seen.done)
    finally:
        stop.set()
        reader.join(60)
    assert problems == []
    assert len(opened) > 10
    assert (ended.rewrapped_keys, ended.failed_keys, ended.left_keys) == (KEYS, 0, 0)
    database = SqlDatabase(url)
    try:
        with database.read() as tx:
            assert tx.versions.count_by_master_key_version(face.parent) == {2: KEYS}
            # The old version retired in Vault: nothing needs it.
            vault.root.secrets.transit.update_key_configuration(
                master_key, min_decryption_version=2
            )
            with vault.master_keys() as keys:
                for version, key in random.sample(published, 50):
                    now = tx.versions.get(version.name)
                    assert now is not None
                    context = data_key_context(face, now.uid)
                    assert keys.unwrap(master_key, now.wrapped_key, context).reveal() == key
    finally:
        database.close()


@dataclass
class Opens:
    """A program that opens a model again and again, through whatever the balancer chooses."""

    client: modelkms.Client
    reference: str
    content: bytes
    times: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def opened_after(self, moment: float) -> bool:
        return bool(self.problems) or self.times[-1] > moment

    def __call__(self) -> None:
        try:
            while not self.stop.is_set():
                with self.client.open(self.reference) as model:
                    assert model.read() == self.content
                self.times.append(time.monotonic())
        except BaseException as error:
            self.problems.append(repr(error))


@pytest.mark.faults
def test_f64_a_replica_that_is_stopped_hands_over_rewrap_streams_and_sdk(
    replicas: list[ServiceProcess], vault: VaultRig, face: ModelName, url: str, tmp_path: Path
) -> None:
    """SIGTERM to the one that all use: while it rewraps, streams, and answers two programs."""
    one, two = replicas
    published = KEYS // 3
    list(fill(url, vault, master_key_of(face), face, published))
    vault.root.secrets.transit.rotate_key(master_key_of(face))
    content = os.urandom(300_000)
    reference = f"{face.project}/real"
    with ExitStack() as stack:
        calls = stack.enter_context(Proxy(one.grpc_port, two.grpc_port))
        watches = stack.enter_context(Proxy(one.watch_port, two.watch_port))

        def client(path: str) -> modelkms.Client:
            home = tmp_path / path.replace("/", "-")
            one.authority.client(path).write(home)
            client = modelkms.connect(
                None,
                endpoint=f"localhost:{calls.port}",
                watch_endpoint=f"localhost:{watches.port}",
                cache_dir=home / "cache",
                state_dir=home / "state",
                ca_file=home / "ca.pem",
                certificate_file=home / "certificate.pem",
                key_file=home / "key.pem",
            )
            return stack.enter_context(client)

        (tmp_path / "model").write_bytes(content)
        client("admin/publisher").push(tmp_path / "model", reference)
        held = stack.enter_context(client("reader/holder").open(reference))
        programs = [Opens(client(f"reader/{name}"), reference, content) for name in "ab"]
        threads = [threading.Thread(target=program) for program in programs]
        for thread in threads:
            thread.start()
        try:
            with one.channel("admin/a") as channel:
                started = rewrap(channel, face, 250)
                watched(channel, started.name, lambda seen: seen.rewrapped_keys > published // 8)
                following = master_key_service_pb2_grpc.MasterKeyServiceStub(channel).WatchRewrap(
                    master_key_service_pb2.WatchRewrapRequest(name=started.name), timeout=120
                )
                next(following)
                one.signal(signal.SIGTERM)
                with pytest.raises(grpc.RpcError) as ended:
                    for _ in following:
                        pass
                assert refusal(ended.value).code is grpc.StatusCode.UNAVAILABLE
            assert one.wait() == 0
            left = time.monotonic()
            with two.channel("admin/a") as channel:
                done = watched(channel, started.name, lambda seen: seen.done)
                for program in programs:
                    assert eventually_true(partial(program.opened_after, left))
        finally:
            for program in programs:
                program.stop.set()
            for thread in threads:
                thread.join(60)
        assert (done.rewrapped_keys, done.failed_keys, done.left_keys) == (published, 0, 0)
        assert [program.problems for program in programs] == [[], []]

        # What was open stayed open, and is watched by the other now.
        assert held.read() == content
        with two.channel("admin/a") as channel:
            key_service_pb2_grpc.KeyServiceStub(channel).RevokeLeases(
                key_service_pb2.RevokeLeasesRequest(
                    parent=str(face.parent), principal=f"spiffe://{TRUST_DOMAIN}/reader/holder"
                ),
                timeout=TIMEOUT_S,
            )
        assert eventually_true(lambda: held.ended is not None)
    *_, last = read_records(one.folder / "audit" / "one")
    assert (last["event"], last["details"]["all_calls_ended"]) == ("service_stopped", "yes")
    one.start()


def eventually_true(ask: Callable[[], object]) -> bool:
    end = time.monotonic() + TIMEOUT_S
    while not ask() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(ask())


def disable(admin: grpc.Channel, version: Version) -> None:
    model_service_pb2_grpc.ModelServiceStub(admin).DisableVersion(
        model_service_pb2.DisableVersionRequest(name=str(version.name)), timeout=TIMEOUT_S
    )


def block(admin: grpc.Channel, version: Version) -> None:
    del version
    access_service_pb2_grpc.AccessServiceStub(admin).BlockPrincipal(
        access_service_pb2.BlockPrincipalRequest(
            principal=f"spiffe://{TRUST_DOMAIN}/reader/a", reason="stolen"
        ),
        timeout=TIMEOUT_S,
    )


def freeze(admin: grpc.Channel, version: Version) -> None:
    access_service_pb2_grpc.AccessServiceStub(admin).FreezeProject(
        access_service_pb2.FreezeProjectRequest(
            name=f"projects/{version.name.project}", reason="incident"
        ),
        timeout=TIMEOUT_S,
    )


def unblock(admin: grpc.Channel) -> None:
    access_service_pb2_grpc.AccessServiceStub(admin).UnblockPrincipal(
        access_service_pb2.UnblockPrincipalRequest(principal=f"spiffe://{TRUST_DOMAIN}/reader/a"),
        timeout=TIMEOUT_S,
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("act", "lease_refused", "renewal_refused"),
    [
        (disable, "VERSION_DISABLED", "LEASE_REVOKED"),
        # Who is blocked sees what a stranger sees.
        (block, "MODEL_NOT_FOUND_OR_DENIED", "LEASE_NOT_FOUND_OR_DENIED"),
        (freeze, "PROJECT_FROZEN", "LEASE_REVOKED"),
    ],
)
def test_f19_f67_what_one_replica_ends_holds_on_the_other_at_once(
    replicas: list[ServiceProcess],
    vault: VaultRig,
    face: ModelName,
    url: str,
    act: Callable[[grpc.Channel, Version], None],
    lease_refused: str,
    renewal_refused: str,
) -> None:
    ((version, key),) = fill(url, vault, master_key_of(face), face, 1)
    one, two = replicas
    with one.channel("admin/a") as admin:
        try:
            with two.channel("reader/a") as reader:
                client = Client(reader)
                assert client.data_key(version, f"spiffe://{TRUST_DOMAIN}/reader/a") == key
                act(admin, version)
                assert reason_of(lambda: client.data_key(version, "")) == lease_refused
                assert reason_of(client.renew) == renewal_refused
            # Nor does another certificate of the same identity help, on either.
            for replica in replicas:
                with replica.channel("reader/a") as again:
                    ask = partial(Client(again).data_key, version, "")
                    assert reason_of(ask) == lease_refused
        finally:
            unblock(admin)


def reason_of(ask: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return refusal(caught.value).reason


@pytest.mark.faults
def test_f58_the_service_outlives_a_restart_of_its_database(
    postgres: PostgresServer,
    replicas: list[ServiceProcess],
    vault: VaultRig,
    face: ModelName,
    url: str,
) -> None:
    ((version, key),) = fill(url, vault, master_key_of(face), face, 1)
    with replicas[0].channel("reader/a") as channel:
        client = Client(channel)
        principal = f"spiffe://{TRUST_DOMAIN}/reader/a"
        assert client.data_key(version, principal) == key
        postgres.kill()
        with pytest.raises(grpc.RpcError) as caught:
            client.data_key(version, principal)
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STATE_UNAVAILABLE")
        assert told.retry_after_s is not None
        postgres.start_again()
        assert eventually(lambda: _opens(client, version, principal)) == key


def _opens(client: Client, version: Version, principal: str) -> bytes | None:
    """The data key; None while the database is away, told as such."""
    try:
        return client.data_key(version, principal)
    except grpc.RpcError as error:
        reason = refusal(error).reason
    if reason != "STATE_UNAVAILABLE":
        raise AssertionError(reason)
    return None


def eventually(ask: Callable[[], bytes | None]) -> bytes | None:
    end = time.monotonic() + TIMEOUT_S
    while (found := ask()) is None and time.monotonic() < end:
        time.sleep(0.1)
    return found
