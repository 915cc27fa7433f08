"""Faults F23, F24, F26, F27, F29, F30, F32: odd requests, floods and failing handlers."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from modelkms_api.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    resources_pb2,
)
from prometheus_client import generate_latest

from kms_service.domain.errors import InvalidField, VaultUnavailable
from kms_service.rpc import reception, stalls
from kms_service.rpc.conversion import text
from kms_service.rpc.pipeline import Call
from kms_service.rpc.rates import Rates
from kms_service.rpc.server import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, ServerLimits
from tests.support.server import RunningServer, refusal, running_server

TIMEOUT_S = 20.0
CANARY = "0123456789abcdef" * 4


class Scripted:
    """Every unary method does what the test says; streams move bytes."""

    def __init__(self) -> None:
        self.behave: Callable[[Call], None] = lambda _call: None
        self.names: list[str] = []

    def get_project(
        self, request: model_service_pb2.GetProjectRequest, call: Call
    ) -> resources_pb2.Project:
        self.names.append(request.name)
        self.behave(call)
        return resources_pb2.Project(name=request.name)

    def get_model(
        self, request: model_service_pb2.GetModelRequest, call: Call
    ) -> resources_pb2.Model:
        return resources_pb2.Model(name=text(request.name, "name", 100))

    def read_artifact(
        self, request: artifact_service_pb2.ReadArtifactRequest, call: Call
    ) -> Iterator[artifact_service_pb2.ReadArtifactResponse]:
        self.behave(call)
        chunk = artifact_service_pb2.ReadArtifactResponse(data=bytes(1024 * 1024))
        for _ in range(max(1, request.length_bytes // 2**20)):
            call.check()
            yield chunk

    def write_artifact(
        self, requests: Iterator[artifact_service_pb2.WriteArtifactRequest], call: Call
    ) -> artifact_service_pb2.WriteArtifactResponse:
        stored = 0
        for request in requests:
            self.behave(call)
            stored += len(request.data)
        return artifact_service_pb2.WriteArtifactResponse(stored_bytes=stored)

    def get_write_status(
        self, request: artifact_service_pb2.GetWriteStatusRequest, call: Call
    ) -> artifact_service_pb2.WriteStatus:
        self.behave(call)
        return artifact_service_pb2.WriteStatus()

    def __getattr__(self, name: str) -> Callable[[object, Call], object]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get_project  # type: ignore[return-value]  # never asked


def services(scripted: Scripted) -> dict[ServiceDescriptor, object]:
    return {
        model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]: scripted,
        artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"]: scripted,
    }


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def server(tmp_path: Path, scripted: Scripted) -> Iterator[RunningServer]:
    with running_server(tmp_path, services(scripted)) as running:
        yield running


def get(
    channel: grpc.Channel, name: str = "x", metadata: tuple[tuple[str, str], ...] = ()
) -> resources_pb2.Project:
    return model_service_pb2_grpc.ModelServiceStub(channel).GetProject(
        model_service_pb2.GetProjectRequest(name=name), timeout=TIMEOUT_S, metadata=metadata
    )


def raw(channel: grpc.Channel, method: str, body: bytes) -> bytes:
    call: Any = channel.unary_unary(method)
    answer: bytes = call(body, timeout=TIMEOUT_S)
    return answer


GET_PROJECT = "/modelkms_api.v1.ModelService/GetProject"


def test_f23_a_field_is_named_and_not_echoed(server: RunningServer) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(server.channel("reader"))
    for bad in ("", "a" * 101, "a\x00b", "a\x1b[31m", "a\u202eb", "e\u0301"):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModel(model_service_pb2.GetModelRequest(name=bad), timeout=TIMEOUT_S)
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert [field for field, _ in told.violations] == ["name"]
        assert not bad or bad not in told.message


def test_f24_nothing_from_outside_forges_a_log_line(
    server: RunningServer, scripted: Scripted
) -> None:
    forged = '\n{"event": "forged"}\r\n\x1b[2J\u202e'

    def misbehave(_call: Call) -> None:
        raise InvalidField("name" + forged, forged)

    scripted.behave = misbehave
    with server.channel("reader") as channel, pytest.raises(grpc.RpcError):
        get(channel, forged, (("x-note", "a forged header"),))
    scripted.behave = lambda _call: _raise(RuntimeError(forged))
    with server.channel("reader") as channel, pytest.raises(grpc.RpcError):
        get(channel, forged)
    events = server.events()  # each line parses as one object
    assert "forged" not in {event["event"] for event in events}
    assert "\x1b" not in server.log.getvalue()
    assert "\u202e" not in server.log.getvalue()


def test_f26_message_too_large(server: RunningServer, scripted: Scripted) -> None:
    with server.channel("reader") as channel:
        get(channel, "x" * 1024 * 1024)
        with pytest.raises(grpc.RpcError) as caught:
            get(channel, "x" * MAX_MESSAGE_BYTES)
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        get(channel)


def test_f26_metadata_too_large(server: RunningServer) -> None:
    with server.channel("reader") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            get(channel, metadata=(("x-long", "x" * MAX_METADATA_BYTES),))
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        get(channel)


def test_f26_bad_protobuf(server: RunningServer, scripted: Scripted) -> None:
    with server.channel("reader") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            raw(channel, GET_PROJECT, b"\x0a\xff\xff\xff\xff\x7f")
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "")
        assert scripted.names == []


@pytest.mark.parametrize(
    "method",
    [
        "/modelkms_api.v1.ModelService/Nothing",
        "/modelkms_api.v1.NoService/GetProject",
        "/modelkms_api.v1.ModelService/getproject",
    ],
)
def test_f26_unknown_method(server: RunningServer, method: str) -> None:
    with server.channel("reader") as channel, pytest.raises(grpc.RpcError) as caught:
        raw(channel, method, b"")
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.UNIMPLEMENTED, "")


def _raise(error: Exception) -> None:
    raise error


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(CANARY)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CANARY),
        KeyError(CANARY),
        UnprintableError(),
        ExceptionGroup(CANARY, [OSError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_f27_unexpected_exception(
    server: RunningServer, scripted: Scripted, error: Exception
) -> None:
    scripted.behave = lambda _call: _raise(error)
    incidents = []
    with server.channel("reader") as channel:
        artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        for ask in (
            lambda: get(channel),
            lambda: list(
                artifacts.ReadArtifact(artifact_service_pb2.ReadArtifactRequest(), timeout=9)
            ),
            lambda: artifacts.WriteArtifact(
                iter([artifact_service_pb2.WriteArtifactRequest(data=b"x")]), timeout=9
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                ask()
            told = refusal(caught.value)
            assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")
            assert list(told.metadata) == ["incident_id"]
            assert CANARY not in repr(caught.value)
            assert type(error).__name__ not in repr(caught.value)
            incidents.append(told.metadata["incident_id"])
    assert len(set(incidents)) == 3
    # Operations find the incident; what looks like a key is not even told to them.
    logged = [event for event in server.events() if event["event"] == "rpc_internal_error"]
    assert [event["request_id"] for event in logged] == incidents
    assert CANARY not in server.log.getvalue()


def test_f28_nobody_waits_any_more(server: RunningServer, scripted: Scripted) -> None:
    seen: list[str] = []
    done = threading.Event()

    def outlive(call: Call) -> None:
        time.sleep(0.5)
        try:
            call.check()
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        finally:
            done.set()

    scripted.behave = outlive
    with server.channel("reader") as channel, pytest.raises(grpc.RpcError) as caught:
        model_service_pb2_grpc.ModelServiceStub(channel).GetProject(
            model_service_pb2.GetProjectRequest(), timeout=0.2
        )
    assert refusal(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert done.wait(TIMEOUT_S)
    assert seen == ["DeadlineExceeded"]


def test_f29_burst_is_refused_with_a_time_to_retry(
    server: RunningServer, scripted: Scripted
) -> None:
    gate = threading.Event()
    scripted.behave = lambda _call: _wait(gate)
    capacity, burst = 4 + 4 * 8, 120
    with server.channel("flood") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_service_pb2.GetProjectRequest()
        calls: list[Any] = [
            stub.GetProject.future(request, timeout=TIMEOUT_S) for _ in range(burst)
        ]
        # Those beyond the queue are told at once, while the others still wait …
        assert _eventually(lambda: sum(call.done() for call in calls) == burst - capacity)
        told = [refusal(call) for call in calls if call.done()]
        assert {each.code for each in told} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {each.reason for each in told} == {"OVERLOADED"}
        assert all(each.retry_after_s for each in told)
        # … and the service's health can be asked.
        with server.channel("monitor") as other:
            health_stub(other).Check(health_pb2.HealthCheckRequest(), timeout=5)
        gate.set()
        codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) == capacity


def _wait(event: threading.Event) -> None:
    event.wait(TIMEOUT_S)


def health_stub(channel: grpc.Channel) -> Any:
    """grpc's stubs for it are untyped."""
    return health_pb2_grpc.HealthStub(channel)


def test_f29_a_rate_is_kept_and_says_when_to_come_back(tmp_path: Path, scripted: Scripted) -> None:
    seconds = 0.0
    rates = Rates(None, 2, lambda: seconds)
    with (
        running_server(tmp_path, services(scripted), rates=rates) as server,
        server.channel("eager") as channel,
        server.channel("calm") as other,
    ):
        for _ in range(4):
            get(channel)
        with pytest.raises(grpc.RpcError) as caught:
            get(channel)
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert told.retry_after_s == 0.5
        # Others, and its own questions for health, are answered.
        get(other)
        health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=9)
        seconds += 0.5
        get(channel)


def test_f29_streams_and_calls_of_one_identity_are_bounded_at_once(
    tmp_path: Path, scripted: Scripted
) -> None:
    limits = ServerLimits(threads=4, streams=4)
    with (
        running_server(tmp_path, services(scripted), limits=limits, at_once=(2, None)) as server,
        server.channel("greedy") as channel,
        server.channel("calm") as other,
    ):
        request = artifact_service_pb2.ReadArtifactRequest(length_bytes=2**30)
        read = artifact_service_pb2_grpc.ArtifactServiceStub(channel).ReadArtifact
        held = [read(request) for _ in range(2)]
        for stream in held:
            next(stream)
        for ask in (
            lambda: get(channel),
            lambda: next(read(request, timeout=TIMEOUT_S)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                ask()
            told = refusal(caught.value)
            assert (told.code, told.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "QUOTA_EXCEEDED",
            )
            assert told.retry_after_s
        # Others have the rest, and health answers.
        get(other)
        next(artifact_service_pb2_grpc.ArtifactServiceStub(other).ReadArtifact(request))
        health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        for stream in held:
            stream.cancel()
        # A stream holds its place until the service hears that it ended.
        end = time.monotonic() + TIMEOUT_S
        while refused(channel):
            assert time.monotonic() < end
            time.sleep(0.01)


def refused(channel: grpc.Channel) -> bool:
    try:
        get(channel)
    except grpc.RpcError as error:
        return refusal(error).reason == "QUOTA_EXCEEDED"
    return False


def test_f29_one_flooding_principal_leaves_room(tmp_path: Path, scripted: Scripted) -> None:
    limits = ServerLimits(threads=4, streams=2)
    with running_server(tmp_path, services(scripted), limits=limits, share=2) as server:
        scripted.behave = lambda call: time.sleep(
            0.05 if call.caller.principal.path == "/flood" else 0
        )
        stop = threading.Event()
        told: set[str] = set()

        def flood() -> None:
            with server.channel("flood") as channel:
                while not stop.is_set():
                    try:
                        get(channel)
                    except grpc.RpcError as error:
                        told.add(refusal(error).reason)
                        time.sleep(0.005)

        with ThreadPoolExecutor(30) as flooders:
            for _ in range(30):
                flooders.submit(flood)
            time.sleep(0.5)
            with server.channel("polite") as channel:
                slowest = max(_timed(lambda: get(channel)) for _ in range(10))
            stop.set()
        assert told == {"QUOTA_EXCEEDED"}
        assert slowest < 2.0


def _timed(ask: Callable[[], object]) -> float:
    started = time.monotonic()
    ask()
    return time.monotonic() - started


def test_f30_streams_that_are_never_read_hold_no_unary_call(
    server: RunningServer, scripted: Scripted
) -> None:
    with server.channel("stuck") as channel, server.channel("reader") as other:
        artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        request = artifact_service_pb2.ReadArtifactRequest(length_bytes=2**30)
        stuck = [artifacts.ReadArtifact(request) for _ in range(2)]
        for stream in stuck:
            next(stream)
        # All stream threads are taken: the next stream is told when to come again …
        with pytest.raises(grpc.RpcError) as caught:
            next(artifacts.ReadArtifact(request, timeout=TIMEOUT_S))
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert told.retry_after_s
        # … and unary calls do not notice.
        assert max(_timed(lambda: get(other)) for _ in range(20)) < 2.0
        for stream in stuck:
            stream.cancel()
    # A thread comes free as soon as its stream is gone.
    with server.channel("reader") as channel:
        artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        assert _eventually(lambda: len(list(artifacts.ReadArtifact(small(), timeout=9))) == 1)


def small() -> artifact_service_pb2.ReadArtifactRequest:
    return artifact_service_pb2.ReadArtifactRequest(length_bytes=1)


def _eventually(ask: Callable[[], bool], within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if ask():
                return True
        except grpc.RpcError:
            time.sleep(0.05)
    return False


@pytest.mark.parametrize("method", ["ModelService/GetModel", "ArtifactService/ReadArtifact"])
def test_f30_calls_whose_request_never_comes_hold_nobody_up(
    tmp_path: Path, scripted: Scripted, method: str
) -> None:
    """Headers and nothing else, more of them than threads and queue take, of a client that answers
    to all that HTTP/2 asks of it."""
    limits = ServerLimits(threads=2, streams=1)
    with (
        running_server(tmp_path, services(scripted), limits=limits) as server,
        _raw_http2(server, tmp_path) as tls,
        server.channel("reader") as channel,
    ):
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        for number in range(100):
            tls.sendall(_frame(1, 4, 2 * number + 1, _headers(f"/modelkms_api.v1.{method}")))
        waiting = [pool._reception for pool in (server.pools.unary, server.pools.streams)]
        assert _eventually(lambda: sum(map(len, waiting)) == 100)
        artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        for _ in range(20):
            get(channel)
            assert len(list(artifacts.ReadArtifact(small(), timeout=TIMEOUT_S))) == 1
        # One of them, whole at last, is answered like any other.
        body = small().SerializeToString() if method.endswith("Artifact") else b""
        tls.sendall(_frame(0, 1, 199, b"\0" + struct.pack("!I", len(body)) + body))
        assert _eventually(lambda: sum(map(len, waiting)) == 99)


def test_f30_a_call_whose_request_does_not_come_is_ended(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "REQUEST_WITHIN_S", 0.2)
    with _raw_http2(server, tmp_path) as tls, server.channel("reader") as channel:
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        tls.sendall(_frame(1, 4, 1, _headers("/modelkms_api.v1.ModelService/GetModel")))
        waiting = server.pools.unary._reception
        assert _eventually(lambda: len(waiting) == 1)
        time.sleep(0.3)
        get(channel)  # whoever comes next clears the way
        assert len(waiting) == 0
        assert _frame_of(tls, stream=1) in (0x1, 0x3)  # HEADERS with a status, or RST_STREAM


def test_f30_those_that_wait_longest_go_first(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "_MOST_WAITING", 3)
    with _raw_http2(server, tmp_path) as tls, server.channel("reader") as channel:
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        for stream in range(1, 21, 2):
            headers = _headers("/modelkms_api.v1.ModelService/GetModel")
            tls.sendall(_frame(1, 4, stream, headers))
        # The seventh goes when the tenth has come.
        assert _frame_of(tls, stream=13) in (0x1, 0x3)
        for _ in range(10):
            get(channel)
        assert len(server.pools.unary._reception) <= 3


def test_f30_streams_that_do_not_move_are_ended(
    server: RunningServer, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is never read, and one that is never written to; what moves goes on."""
    monkeypatch.setattr(stalls, "STALLED_AFTER_S", 1.0)
    ended = threading.Event()
    with server.channel("stuck") as channel, server.channel("reader") as other:
        stuck = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        # What a test before this one has cancelled may be ending still.
        assert _eventually(lambda: not server.pools.streams._pending)
        unread = stuck.ReadArtifact(artifact_service_pb2.ReadArtifactRequest(length_bytes=2**30))
        next(unread)
        unwritten = stuck.WriteArtifact.future(_until_set(ended))
        artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(other)
        # All threads are theirs, and then they are not.
        assert _eventually(lambda: _overloaded(artifacts))
        assert _eventually(lambda: len(list(artifacts.ReadArtifact(small(), timeout=9))) == 1)
        with pytest.raises(grpc.RpcError) as caught:
            unwritten.result(TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        unread.cancel()
        ended.set()


def _until_set(ended: threading.Event) -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
    ended.wait(TIMEOUT_S)
    yield artifact_service_pb2.WriteArtifactRequest()


def test_a_call_without_a_request_is_told_so(server: RunningServer) -> None:
    """It ends where a request should be."""
    with server.channel("reader") as channel:
        call = channel.stream_unary(
            "/modelkms_api.v1.ModelService/GetModel",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=TIMEOUT_S)
        assert refusal(caught.value).code is grpc.StatusCode.UNIMPLEMENTED


def test_f30_stream_with_a_closed_window_ends_with_its_connection(
    tmp_path: Path, scripted: Scripted
) -> None:
    """Raw HTTP/2 with an initial window of 0: the stream can never be written to."""
    limits = ServerLimits(2, 1, max_connection_age_s=1.0, max_connection_age_grace_s=1.0)
    with (
        running_server(tmp_path, services(scripted), limits=limits) as server,
        _raw_http2(server, tmp_path) as tls,
    ):
        settings = struct.pack("!HI", 4, 0)  # INITIAL_WINDOW_SIZE = 0
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, settings))
        path = "/modelkms_api.v1.ArtifactService/ReadArtifact"
        tls.sendall(_frame(1, 4, 1, _headers(path)))
        body = small().SerializeToString()
        tls.sendall(_frame(0, 1, 1, b"\0" + struct.pack("!I", len(body)) + body))
        # It holds the only stream thread …
        with server.channel("reader") as channel:
            artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
            assert _eventually(lambda: _overloaded(artifacts), 3.0)
            # … until the age of its connection is over.
            assert _eventually(lambda: len(list(artifacts.ReadArtifact(small(), timeout=9))) == 1)


def _overloaded(artifacts: artifact_service_pb2_grpc.ArtifactServiceStub) -> bool:
    try:
        next(artifacts.ReadArtifact(small(), timeout=5))
    except grpc.RpcError as error:
        return refusal(error).reason == "OVERLOADED"
    return False


def _raw_http2(server: RunningServer, folder: Path) -> ssl.SSLSocket:
    server.authority.client("raw").write(folder / "raw")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "raw" / "ca.pem")
    context.load_cert_chain(folder / "raw" / "certificate.pem", folder / "raw" / "key.pem")
    context.set_alpn_protocols(["h2"])
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S)
    return context.wrap_socket(connection, server_hostname="127.0.0.1")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def _frame_of(tls: ssl.SSLSocket, stream: int) -> int:
    """Kind of the first frame that is about `stream`, but for how much may be sent on it."""
    tls.settimeout(TIMEOUT_S)
    got = b""
    while True:
        while len(got) < 9 or len(got) < 9 + int.from_bytes(got[:3], "big"):
            data = tls.recv(65536)
            assert data, "the connection ended"
            got += data
        length = int.from_bytes(got[:3], "big")
        if int.from_bytes(got[5:9], "big") == stream and got[3] != 0x8:  # WINDOW_UPDATE
            return got[3]
        got = got[9 + length :]


def _headers(path: str) -> bytes:
    """HPACK (RFC 7541 §6.2.2): literals without indexing, no Huffman."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "127.0.0.1",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def test_f32_labels_come_from_closed_sets(server: RunningServer, scripted: Scripted) -> None:
    with server.channel("reader") as channel:
        get(channel)
        before = generate_latest(server.metrics.registry).count(b"\n")
        for number in range(300):
            get(channel, f"name-{number}", (("x-anything", f"value-{number}"),))
        for number in range(20):
            with server.channel(f"principal-{number}") as other:
                get(other)
            with pytest.raises(grpc.RpcError):
                raw(channel, f"/modelkms_api.v1.ModelService/Method{number}", b"")
    after = generate_latest(server.metrics.registry)
    assert after.count(b"\n") == before
    assert b"principal-" not in after
    method = server.metrics.method("/never/Heard")
    for number in range(1000):
        method.observe(f"CODE_{number}", f"REASON_{number}", 0.1)
    sample = server.metrics.registry.get_sample_value
    labels = {"method": "other", "code": "other", "reason": "other"}
    assert sample("modelkms_rpc_requests_total", labels) == 1000


def test_outcomes_are_counted(server: RunningServer, scripted: Scripted) -> None:
    with server.channel("reader") as channel:
        get(channel)
        scripted.behave = lambda _call: _raise(VaultUnavailable())
        with pytest.raises(grpc.RpcError) as caught:
            get(channel)
    assert refusal(caught.value).retry_after_s == 1.0
    sample = server.metrics.registry.get_sample_value
    for code, reason in (("OK", ""), ("UNAVAILABLE", "VAULT_UNAVAILABLE")):
        labels = {"method": GET_PROJECT, "code": code, "reason": reason}
        assert sample("modelkms_rpc_requests_total", labels) == 1
    assert sample("modelkms_rpc_in_flight", {"method": GET_PROJECT}) == 0


def test_health_and_reflection_need_an_identity_and_answer(server: RunningServer) -> None:
    server.health.set("modelkms_api.v1.ModelService", health_pb2.HealthCheckResponse.SERVING)
    with server.channel("anybody") as channel:
        health = health_stub(channel)
        request = health_pb2.HealthCheckRequest(service="modelkms_api.v1.ModelService")
        assert health.Check(request, timeout=9).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request, timeout=9)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.health.set(request.service, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        reflection_stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection_stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=9
        )
        names = {item.name for item in next(listing).list_services_response.service}
    assert names == {
        "modelkms_api.v1.ModelService",
        "modelkms_api.v1.ArtifactService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    with server.channel("anybody") as channel, pytest.raises(grpc.RpcError) as caught:
        health_stub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=9, metadata=(("authorization", "Bearer x"),)
        )
    assert refusal(caught.value).reason == "CREDENTIAL_CONFLICT"


def test_health_watches_hold_no_thread(server: RunningServer) -> None:
    with server.channel("monitor") as channel:
        health = health_stub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(50)]
        assert all(next(watch).status for watch in watches)
        health.Check(health_pb2.HealthCheckRequest(), timeout=9)
        for watch in watches:
            watch.cancel()


def test_log_lines_are_json(server: RunningServer) -> None:
    with server.channel("reader") as channel:
        get(channel)
    for line in server.log.getvalue().splitlines():
        assert json.loads(line)["event"]
