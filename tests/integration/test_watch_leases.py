"""Ends of leases, told to those who hold them: the watch port, and the SDK on it (F22, F31)."""

from __future__ import annotations

import gc
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from modelkms import watching
from modelkms.errors import LeaseExpired, LeaseRevoked
from modelkms.keeper import LeaseKeeper
from modelkms.key_transport import boottime_s
from modelkms.opened import OpenedModel
from modelkms.watching import LeaseWatcher
from modelkms_api.v1 import key_service_pb2, key_service_pb2_grpc
from modelkms_api.v1 import watch_service_pb2 as pb
from modelkms_api.v1.watch_service_pb2_grpc import (
    WatchServiceServicer,
    WatchServiceStub,
    add_WatchServiceServicer_to_server,
)

from kms_service.domain.leases import Lease, LeaseBounds
from kms_service.domain.names import LeaseName, VersionName
from kms_service.domain.ports import LeaseFilter
from kms_service.rpc.authentication import Authenticator
from kms_service.rpc.tls import ReloadingCredentials, TlsFiles
from kms_service.rpc.watch_server import WatchLimits, WatchServer
from tests.support.certificates import Issued, uris
from tests.support.proxy import Proxy
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.support.server import TRUST_DOMAIN, refusal
from tests.support.watch_load import many_watchers
from tests.unit.usecases.real_parts import migrated_database

TIMEOUT_S = 30.0
READER = f"spiffe://{TRUST_DOMAIN}/reader"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def service(tmp_path: Path, template: Path) -> Iterator[SdkWorld]:
    with sdk_world(tmp_path, template) as world:
        (tmp_path / "model.onnx").write_bytes(b"weights")
        world.client("publisher").push(tmp_path / "model.onnx", "onnx")
        yield world


@contextmanager
def watch_server(service: SdkWorld, limits: WatchLimits | None = None) -> Iterator[WatchServer]:
    files = (service.server.tls_folder / name for name in ("certificate.pem", "key.pem", "ca.pem"))
    server = WatchServer(
        "127.0.0.1:0",
        ReloadingCredentials(TlsFiles(*files), service.server.metrics).grpc,
        Authenticator([TRUST_DOMAIN], service.server.clock),
        service.world.own_leases,
        service.world.database,
        service.server.metrics,
        limits or WatchLimits(heartbeat_s=1.0),
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@pytest.fixture
def watches(service: SdkWorld) -> Iterator[WatchServer]:
    with watch_server(service) as server:
        yield server


def lease(service: SdkWorld, holder: Issued, number: int, **changes: object) -> LeaseName:
    """A live one of `reader`, past all use cases."""
    now = service.world.clock.now()
    name = LeaseName("demo", f"{number:032x}")
    fields: dict[str, object] = {
        "name": name,
        "version": VersionName("demo", "onnx", 1),
        "version_uid": "1" * 32,
        "principal": READER,
        "instance": holder.instance,
        "issue_time": now,
        "expire_time": now + timedelta(hours=1),
        "absolute_end_time": now + timedelta(hours=12),
        **changes,
    }
    with service.world.database.write() as tx:
        tx.leases.insert(Lease(**fields))  # type: ignore[arg-type]
    return name


def revoke(service: SdkWorld, which: LeaseName | LeaseFilter) -> None:
    with service.world.database.write() as tx:
        tx.leases.revoke(which, service.world.clock.now())


class Stream:
    """One watch of an identity."""

    def __init__(self, stack: ExitStack, who: Issued, port: int, *leases: LeaseName | str) -> None:
        channel = stack.enter_context(who.channel(port))
        request = pb.WatchLeasesRequest(leases=map(str, leases))
        self.call = WatchServiceStub(channel).WatchLeases(request, timeout=TIMEOUT_S)
        stack.callback(self.call.cancel)

    def next(self) -> pb.WatchLeasesResponse:
        message: pb.WatchLeasesResponse = next(self.call)
        return message

    def until_ended(self) -> list[str]:
        """Past heartbeats."""
        while True:
            if ended := list(self.next().ended):
                return ended


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


# --- the port ------------------------------------------------------------------------------------


def test_f22_ends_are_told_in_sequence_between_heartbeats(
    service: SdkWorld, watches: WatchServer, stack: ExitStack
) -> None:
    holder = service.server.authority.client("reader")
    one, two, three, ended = (lease(service, holder, number) for number in range(4))
    revoke(service, ended)
    stream = Stream(stack, holder, watches.port, one, two, three, ended)

    first = stream.next()
    assert (first.sequence, list(first.ended)) == (1, [str(ended)])
    assert first.heartbeat_interval.ToTimedelta() == timedelta(seconds=1)
    following = [stream.next() for _ in range(3)]  # one may tell of the same end again
    assert [message.sequence for message in following] == [2, 3, 4]
    assert list(following[-1].ended) == []
    revoke(service, two)
    assert stream.until_ended() == [str(two)]
    revoke(service, LeaseFilter("demo"))
    assert stream.until_ended() == [str(one), str(three)]
    assert stream.next().sequence > 4
    assert len(watches) == 1


@pytest.mark.parametrize("act", ["block", "freeze", "disable", "revoke"])
def test_f67_watchers_are_told_whatever_ends_a_lease(
    service: SdkWorld, watches: WatchServer, stack: ExitStack, act: str
) -> None:
    holder = service.server.authority.client("reader")
    name = lease(service, holder, 1)
    stream = Stream(stack, holder, watches.port, name)
    assert list(stream.next().ended) == []
    security = service.client("security")
    match act:
        case "block":
            security.block(READER, "why")
        case "freeze":
            security.freeze("why")
        case "disable":
            security.disable("onnx@1")
        case "revoke":
            security.revoke_leases(principal=READER)
    assert stream.until_ended() == [str(name)]


def test_nobody_hears_of_anothers_lease(
    service: SdkWorld, watches: WatchServer, stack: ExitStack
) -> None:
    holder, stranger = (service.server.authority.client(who) for who in ("reader", "stranger"))
    other_instance = service.server.authority.client("reader")
    name, missing = lease(service, holder, 1), LeaseName("demo", "f" * 32)
    for who in (stranger, other_instance):
        told = Stream(stack, who, watches.port, name, missing).next()
        assert set(told.ended) == {str(name), str(missing)}
    # The same by asking.
    with other_instance.channel(service.server.port) as channel:
        answer = key_service_pb2_grpc.KeyServiceStub(channel).CheckLeases(
            key_service_pb2.CheckLeasesRequest(leases=[str(name)]), timeout=TIMEOUT_S
        )
        assert list(answer.ended) == [str(name)]


@pytest.mark.parametrize("names", [[], ["projects/demo/leases/1"], ["x" * 300], [""] * 1001])
def test_f23_names_that_are_none(
    service: SdkWorld, watches: WatchServer, stack: ExitStack, names: list[str]
) -> None:
    holder = service.server.authority.client("reader")
    with pytest.raises(grpc.RpcError) as caught:
        Stream(stack, holder, watches.port, *names).next()
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


def test_f03_another_trust_domain_watches_nothing(
    service: SdkWorld, watches: WatchServer, stack: ExitStack
) -> None:
    outsider = service.server.authority.issue(uris("spiffe://other.example/reader"))
    with pytest.raises(grpc.RpcError) as caught:
        Stream(stack, outsider, watches.port, LeaseName("demo", "f" * 32)).next()
    assert refusal(caught.value).reason == "TRUST_DOMAIN_UNKNOWN"


def test_f31_beyond_the_bounds_a_watch_is_told_when_to_come_back(
    service: SdkWorld, stack: ExitStack
) -> None:
    holder, other = (service.server.authority.client("reader") for _ in range(2))
    names = lease(service, holder, 1), lease(service, other, 2)
    limits = WatchLimits(streams=3, streams_of_instance=2, heartbeat_s=1.0)
    with watch_server(service, limits) as server:
        streams = [Stream(stack, holder, server.port, names[0]) for _ in range(2)]
        for stream in streams:
            stream.next()
        with pytest.raises(grpc.RpcError) as caught:
            Stream(stack, holder, server.port, names[0]).next()
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAM_LIMIT")
        assert told.retry_after_s == 30
        Stream(stack, other, server.port, names[1]).next()
        with pytest.raises(grpc.RpcError):
            Stream(stack, other, server.port, names[1]).next()
        # One that leaves makes room.
        streams[0].call.cancel()
        _until(lambda: len(server) == 2)
        Stream(stack, holder, server.port, names[0]).next()


def test_f31_no_principal_takes_all_the_watches_however_many_its_instances(
    service: SdkWorld, stack: ExitStack
) -> None:
    instances = [service.server.authority.client("reader") for _ in range(3)]
    stranger = service.server.authority.client("stranger")
    limits = WatchLimits(streams=3, streams_of_principal=2, heartbeat_s=1.0)
    with watch_server(service, limits) as server:
        first, *_ = [
            Stream(stack, who, server.port, lease(service, who, number))
            for number, who in enumerate(instances[:2])
        ]
        _until(lambda: len(server) == 2)
        with pytest.raises(grpc.RpcError) as caught:
            Stream(stack, instances[2], server.port, lease(service, instances[2], 3)).next()
        assert refusal(caught.value).reason == "STREAM_LIMIT"
        Stream(stack, stranger, server.port, LeaseName("demo", "f" * 32)).next()
        first.call.cancel()
        _until(lambda: len(server) == 2)
        Stream(stack, instances[2], server.port, lease(service, instances[2], 4)).next()


def test_f22_while_the_database_is_away_there_are_no_heartbeats(
    service: SdkWorld, watches: WatchServer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms_service.rpc.watch_server._STALE_AFTER_S", 0.5)
    holder = service.server.authority.client("reader")
    stream = Stream(stack, holder, watches.port, lease(service, holder, 1))
    stream.next()
    stream.next()

    def fail(_self: object) -> int:
        raise OSError

    with monkeypatch.context() as broken:
        broken.setattr(WatchServer, "_last_revocation", fail)
        heard = threading.Event()

        def listen() -> None:
            stream.next()
            heard.set()

        _until(lambda: time.monotonic() - watches._fed_s > 1)
        listener = threading.Thread(target=listen)
        listener.start()
        assert not heard.wait(2.5)
    assert heard.wait(TIMEOUT_S)
    listener.join()


def test_f64_stopping_ends_the_streams_and_says_nothing_about_it(
    service: SdkWorld, stack: ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    holder = service.server.authority.client("reader")
    with watch_server(service) as server:
        streams = [
            Stream(stack, holder, server.port, lease(service, holder, number))
            for number in range(8)
        ]
        for stream in streams:
            stream.next()
        revoke(service, LeaseFilter("demo", principal=READER))  # some are just being told
    for stream in streams:
        with pytest.raises(grpc.RpcError):
            list(stream.call)
    server.stop(0)
    gc.collect()
    assert capfd.readouterr().err == ""


# --- the SDK -------------------------------------------------------------------------------------


def opened(service: SdkWorld, port: int) -> OpenedModel:
    client = service.client("reader", watch_endpoint=f"localhost:{port}")
    return service.clients.enter_context(client.open("onnx"))


def assert_ends(model: OpenedModel) -> None:
    _until(lambda: model.ended is not None)
    with pytest.raises(LeaseRevoked):
        model.read()


def test_a_client_hears_of_its_revoked_lease(service: SdkWorld, watches: WatchServer) -> None:
    model = opened(service, watches.port)
    other = service.clients.enter_context(
        service.client("reader", watch_endpoint=f"localhost:{watches.port}").open("onnx")
    )
    _until(lambda: len(watches) == 2)
    service.client("security").revoke_leases(lease=model.lease.name)
    assert_ends(model)
    assert other.read() == b"weights"


def test_models_opened_later_are_watched_too(service: SdkWorld, watches: WatchServer) -> None:
    client = service.client("reader", watch_endpoint=f"localhost:{watches.port}")
    models = [service.clients.enter_context(client.open("onnx")) for _ in range(3)]
    _until(lambda: _watched(watches) == {model.lease.name for model in models})
    models[0].close()
    service.client("security").revoke_leases(lease=models[2].lease.name)
    assert_ends(models[2])
    assert models[1].read() == b"weights"


def test_a_model_opened_while_the_stream_begins_is_watched_too() -> None:
    """Its lease came after the leases were read, and before there was a call to cancel."""
    asked: queue.Queue[set[str]] = queue.Queue()

    class Watched(WatchServiceServicer):
        def WatchLeases(  # noqa: N802 - the API's name
            self, request: pb.WatchLeasesRequest, context: grpc.ServicerContext
        ) -> Iterator[pb.WatchLeasesResponse]:
            asked.put(set(request.leases))
            ended = threading.Event()
            context.add_callback(ended.set)
            yield pb.WatchLeasesResponse(sequence=1, heartbeat_interval=Duration(seconds=60))
            ended.wait()

    class Keeper:
        names: ClassVar[list[str]] = ["early"]

        def leases(self) -> dict[str, object]:
            return dict.fromkeys(self.names, object())

    server = grpc.server(ThreadPoolExecutor(4))
    add_WatchServiceServicer_to_server(Watched(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    keeper = cast(LeaseKeeper, Keeper())

    def open_watch() -> grpc.Channel:
        if "late" not in Keeper.names:
            Keeper.names.append("late")
            watcher.watch(keeper)
        return grpc.insecure_channel(f"127.0.0.1:{port}")

    watcher = LeaseWatcher(open_watch, lambda _names: [])
    try:
        watcher.watch(keeper)
        while asked.get(timeout=TIMEOUT_S) != {"early", "late"}:
            pass
    finally:
        watcher.close()
        server.stop(None)


def test_f22_a_half_open_stream_forces_a_resync(service: SdkWorld, watches: WatchServer) -> None:
    """The connection stays, and nothing comes through: after three heartbeats it is given up, and
    the first message of the next stream tells what was missed."""
    with Proxy(watches.port) as proxy:
        model = opened(service, proxy.port)
        _until(lambda: len(watches) == 1)
        time.sleep(0.5)
        proxy.swallow_replies = True
        service.client("security").revoke_leases(lease=model.lease.name)
        time.sleep(1)
        assert model.ended is None
        proxy.swallow_replies = False  # for new connections: the old one is broken by now
        assert_ends(model)


def test_f22_a_gap_in_the_sequence_forces_a_resync(
    service: SdkWorld, watches: WatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_ASK_EVERY_S", 1000)
    real, skipped = WatchServer._message, threading.Event()

    def message(self: WatchServer, sequence: int, ended: list[LeaseName]) -> object:
        if ended and sequence > 1 and not skipped.is_set():
            skipped.set()
            return real(self, sequence + 1, [])  # an event is lost on the way
        return real(self, sequence, ended)

    monkeypatch.setattr(WatchServer, "_message", message)
    model = opened(service, watches.port)
    _until(lambda: len(watches) == 1)
    service.client("security").revoke_leases(lease=model.lease.name)
    assert_ends(model)
    assert skipped.is_set()


def test_f31_beyond_the_bound_the_sdk_asks(
    service: SdkWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watch_server(service, WatchLimits(streams=1, heartbeat_s=1.0)) as server:
        first = opened(service, server.port)
        _until(lambda: len(server) == 1)
        second = opened(service, server.port)
        service.client("security").revoke_leases(lease=second.lease.name)
        assert_ends(second)
        assert first.read() == b"weights"


def test_without_a_watch_port_the_sdk_asks(
    service: SdkWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_ASK_EVERY_S", 0.2)
    model = service.clients.enter_context(service.client("reader").open("onnx"))
    service.client("security").revoke_leases(lease=model.lease.name)
    assert_ends(model)


@pytest.mark.faults
def test_f22_a_client_that_hears_nothing_stops_at_the_end_of_its_lease(
    service: SdkWorld, watches: WatchServer
) -> None:
    """Half-open for good: connections stay, new ones are taken, and nothing comes through, neither
    by the watch nor by renewals."""
    ttl = timedelta(seconds=6)
    service.world.policy.bounds = LeaseBounds(ttl, 12 * ttl, max_offline=timedelta(0))
    with Proxy(watches.port) as watch, Proxy(service.server.port) as calls, ExitStack() as opened:
        client = service.client(
            "reader",
            endpoint=f"localhost:{calls.port}",
            watch_endpoint=f"localhost:{watch.port}",
        )
        model = opened.enter_context(client.open("onnx"))
        assert model.read() == b"weights"
        _until(lambda: len(watches) == 1)
        watch.silent = calls.silent = True
        service.client("security").revoke_leases(lease=model.lease.name)
        end_s = model._leased.end_s
        while True:
            began_s = boottime_s()
            try:
                model.read()
            except LeaseExpired:
                break
            assert began_s < end_s, "it read on after the end of its lease"
            time.sleep(0.05)
        assert boottime_s() >= end_s
        # Its key is wiped once the renewal under way has been given up.
        _until(lambda: model.ended is not None, 3 * TIMEOUT_S)
        assert model._leased.data_key.reveal() == bytes(32)


def test_f09_a_stream_ends_with_the_age_of_its_connection_and_the_sdk_opens_another(
    service: SdkWorld, stack: ExitStack
) -> None:
    """So that whose CA was removed, or whose certificate has ended, hears nothing for ever."""
    limits = WatchLimits(heartbeat_s=1.0, max_connection_age_s=1.0, max_connection_age_grace_s=1.0)
    with watch_server(service, limits) as server:
        holder = service.server.authority.client("reader")
        stream = Stream(stack, holder, server.port, lease(service, holder, 1))
        stream.next()
        with pytest.raises(grpc.RpcError):
            list(stream.call)
        assert stream.call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        model = opened(service, server.port)
        _until(lambda: len(server) == 1)
        time.sleep(3)  # past the age of its first connection
        _until(lambda: len(server) == 1)
        service.client("security").revoke_leases(lease=model.lease.name)
        assert_ends(model)


# --- many ----------------------------------------------------------------------------------------


@pytest.mark.faults
def test_f31_ten_thousand_idle_watchers(service: SdkWorld, tmp_path: Path) -> None:
    """All at once, from several processes; held with bounded memory, key requests unharmed, and
    all are told."""
    processes, holders, of_one = 4, 25, 100
    count = processes * holders * of_one
    wishes = [_held_leases(service, tmp_path / str(n), holders, of_one) for n in range(processes)]
    limits = WatchLimits(streams=count, streams_of_instance=of_one, heartbeat_s=60.0)
    with watch_server(service, limits) as server, ExitStack() as running:
        before_kib = _resident_kib()
        watchers = [running.enter_context(many_watchers(server.port, each)) for each in wishes]
        for each in watchers:
            assert each.readline() == "ready\n"
        assert len(server) == count
        used_kib = (_resident_kib() - before_kib) / count
        assert used_kib < 100, f"{used_kib:.0f} KiB a watcher"
        service.client("publisher").open("onnx").close()  # keys are issued as ever
        revoke(service, LeaseFilter("demo", principal=READER))
        assert sum(len(json.loads(each.readline())) for each in watchers) == count


def _held_leases(
    service: SdkWorld, folder: Path, holders: int, of_one: int
) -> list[dict[str, object]]:
    """What `watch_load` is to watch: as many leases of each of so many holders."""
    now = service.world.clock.now()
    wishes: list[dict[str, object]] = []
    with service.world.database.write() as tx:
        for number in range(holders):
            holder = service.server.authority.client("reader").write(folder / str(number))
            names = [LeaseName("demo", secrets.token_hex(16)) for _ in range(of_one)]
            wishes.append({"folder": str(folder / str(number)), "leases": list(map(str, names))})
            for name in names:
                tx.leases.insert(
                    Lease(
                        name=name,
                        version=VersionName("demo", "onnx", 1),
                        version_uid="1" * 32,
                        principal=READER,
                        instance=holder.instance,
                        issue_time=now,
                        expire_time=now + timedelta(hours=1),
                        absolute_end_time=now + timedelta(hours=12),
                    )
                )
    return wishes


def _resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def _watched(server: WatchServer) -> set[str]:
    return {str(name) for name in list(server._watches._by_lease)}


def _until(condition: Callable[[], bool], within_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
