"""Leases a second of one pinned process, beside a bare echo over the same mTLS and pool."""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import modelkms
from google.protobuf.message import Message
from modelkms.key_transport import KeyTransport
from modelkms_api.v1 import key_service_pb2, key_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from kms_service.development.process import ChildProcess
from kms_service.development.stack import PROJECT, DevelopmentStack
from tests.bench.measure import table
from tests.support.tools import go_tool

_CALL = "modelkms_api.v1.KeyService.LeaseDataKey"
_PROTOS = Path(__file__).parents[2] / "protos"
_IN_FLIGHT = (16, 64)
_CALM = 0.7
SERVER_CORE, _LOAD_CORE = 0, 1


def run(folder: Path, rounds: int, seconds: float) -> str:
    """The tables as Markdown."""
    ghz = go_tool("ghz")
    with DevelopmentStack(folder / "stack") as stack:
        publish_small_model(stack, folder)
        request = lease_request()
        (folder / "request").write_bytes(request.SerializeToString())
        (folder / "answer").write_bytes(_lease(stack, request).SerializeToString())
        tables = []
        for threads in _IN_FLIGHT:
            serve_with(stack, threads)
            _lease(stack, request)  # what is cached is, as after the first
            with _echo(stack, folder, threads) as (echo, port):
                for process in (echo, stack.service):
                    pin(process.pid, SERVER_CORE)
                tables.append(
                    _side_by_side(ghz, stack, folder, rounds, seconds, threads, echo, port)
                )
    return _head(seconds, max(1, rounds - 2)) + "".join(tables)


def serve_with(stack: DevelopmentStack, threads: int) -> None:
    """Start the service again with a pool of so many."""
    file = stack.paths.config_file
    lines = [line for line in file.read_text().splitlines() if not line.startswith("threads = ")]
    lines.insert(lines.index("[server]") + 1, f"threads = {threads}")
    file.write_text("\n".join(lines) + "\n")
    stack.restart_service()


@contextmanager
def _echo(
    stack: DevelopmentStack, folder: Path, threads: int
) -> Iterator[tuple[ChildProcess, int]]:
    """The echo server, and its port."""
    port_file = folder / f"echo-{threads}.port"
    tls = stack.paths.service / "tls"
    echo = ChildProcess(
        "echo server",
        [
            *(sys.executable, "-m", "tests.bench.echo_server"),
            *(str(tls / "certificate.pem"), str(tls / "key.pem")),
            str(stack.paths.root / "authority" / "ca.pem"),
            *(str(folder / "answer"), str(port_file), str(threads)),
        ],
        log_file=folder / f"echo-{threads}.log",
    )
    try:
        echo.wait_until(port_file.exists, 20)
        yield echo, int(port_file.read_text())
    finally:
        echo.stop(2)


def _side_by_side(
    ghz: Path,
    stack: DevelopmentStack,
    folder: Path,
    rounds: int,
    seconds: float,
    in_flight: int,
    echo: ChildProcess,
    echo_port: int,
) -> str:
    ports = {"bare echo": echo_port, "leases": stack.grpc_port}
    pids = {"bare echo": echo.pid, "leases": stack.service.pid}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
    request = folder / "request"
    before = _steps(stack)
    for _ in range(max(1, rounds - 2)):
        for name, port in ports.items():
            began_s = _cpu_s(pids[name])
            run = load(ghz, stack, port, request, seconds, concurrency=in_flight)
            used_s = _cpu_s(pids[name]) - began_s
            results[name].append(run | {"cpu_us": used_s / (run["rate"] * seconds) * 1e6})
    steps = _steps(stack)
    most = statistics.median(run["rate"] for run in results["leases"])
    calm = load(
        ghz,
        stack,
        ports["leases"],
        request,
        seconds,
        concurrency=in_flight,
        rate=int(most * _CALM),
    )
    return (
        f"\n\n### {in_flight} in flight, pools of {in_flight} threads\n\n"
        + _report(results)
        + f"\n\nAt {_CALM:.0%} of that rate, {calm['rate']:,.0f} leases a second: "
        f"p50 {calm['p50']:.1f} ms, p99 {calm['p99']:.1f} ms." + _report_steps(before, steps)
    )


def publish_small_model(stack: DevelopmentStack, folder: Path) -> None:
    source = folder / "weights.bin"
    source.write_bytes(secrets.token_bytes(1 << 20))
    with modelkms.connect(stack.paths.profile("publisher")) as publisher:
        publisher.push(source, f"{PROJECT}/bench")


def lease_request() -> key_service_pb2.LeaseDataKeyRequest:
    return key_service_pb2.LeaseDataKeyRequest(
        name=f"projects/{PROJECT}/models/bench",
        client_key=KeyTransport().offer().message,
    )


def _lease(stack: DevelopmentStack, request: key_service_pb2.LeaseDataKeyRequest) -> Message:
    identity = stack.paths.root / "identities" / "reader"
    credentials = grpc.ssl_channel_credentials(
        (stack.paths.root / "authority" / "ca.pem").read_bytes(),
        (identity / "key.pem").read_bytes(),
        (identity / "certificate.pem").read_bytes(),
    )
    with grpc.secure_channel(f"localhost:{stack.grpc_port}", credentials) as channel:
        return key_service_pb2_grpc.KeyServiceStub(channel).LeaseDataKey(request, timeout=10)


def load(
    ghz: Path,
    stack: DevelopmentStack,
    port: int,
    request: Path,
    seconds: float,
    *,
    concurrency: int = _IN_FLIGHT[0],
    rate: int = 0,
) -> dict[str, float]:
    """What ghz measured: requests a second, p50 and p99 in milliseconds.

    Args:
        rate: of requests a second that are sent, for latency below saturation; 0: as many as go.
    """
    identity = stack.paths.root / "identities" / "reader"
    command = [
        *(str(ghz), "--call", _CALL, "--import-paths", str(_PROTOS)),
        *("--proto", str(_PROTOS / "modelkms_api/v1/key_service.proto")),
        *("--cacert", str(stack.paths.root / "authority" / "ca.pem")),
        *("--cert", str(identity / "certificate.pem"), "--key", str(identity / "key.pem")),
        *("--binary-file", str(request), "-c", str(concurrency), "--connections", "4"),
        *("--rps", str(rate)),
        *("-z", f"{seconds}s", "--duration-stop", "wait", "-O", "json"),
        f"localhost:{port}",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {_LOAD_CORE}),
    )
    report = json.loads(done.stdout)
    refused = {code: n for code, n in report["statusCodeDistribution"].items() if code != "OK"}
    if refused:
        raise RuntimeError(f"the load run was refused: {refused}")
    percentiles = {entry["percentage"]: entry["latency"] for entry in report["latencyDistribution"]}
    return {"rate": report["rps"], "p50": percentiles[50] / 1e6, "p99": percentiles[99] / 1e6}


def pin(pid: int, core: int) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _cpu_s(pid: int) -> float:
    """User and system time of all its threads."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def _steps(stack: DevelopmentStack) -> dict[str, tuple[float, float]]:
    """Seconds and count of each step so far, by the service's own metrics."""
    url = f"http://127.0.0.1:{stack.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found = {
            (sample.labels["step"], sample.name.rpartition("_")[2]): sample.value
            for family in families
            if family.name == "modelkms_step_seconds"
            for sample in family.samples
            if "le" not in sample.labels
        }
    steps = {step for step, _ in found}
    return {step: (found[step, "sum"], found[step, "count"]) for step in sorted(steps)}


def _report_steps(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> str:
    rows = []
    for step, (sum_s, count) in after.items():
        spent_s, times = sum_s - before[step][0], count - before[step][1]
        if times:
            rows.append((step, f"{times:,.0f}", f"{spent_s / times * 1e3:.2f}"))
    return (
        "\n\nWhere a lease waits, by the service's `modelkms_step_seconds`; what threads wait for\n"
        "each other, for the interpreter's lock and for the disk is in it.\n\n"
        + table(("step", "times", "ms each"), rows)
    )


def _head(seconds: float, runs: int) -> str:
    return (
        f"## Leases a second\n\n"
        f"One server process pinned to one core, ghz on the other over 4 mTLS connections,\n"
        f"{seconds:.0f} s a run, {runs} runs of each.\n"
        "A lease here: identity, policy, lease row, durable audit record, hybrid key transport;\n"
        "decisions, data key and transport session are cached, as they are after the first."
    )


def _report(results: dict[str, list[dict[str, float]]]) -> str:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in results.items()
    }
    base = medians["bare echo"]["rate"]
    rows = [
        (
            name,
            f"{value['rate']:,.0f}",
            f"{value['p50']:.1f}",
            f"{value['p99']:.1f}",
            f"{value['rate'] / base:.2f}",
            f"{value['cpu_us']:,.0f}",
        )
        for name, value in medians.items()
    ]
    return table(
        ("candidate", "requests/s", "p50 ms", "p99 ms", "ratio to echo", "CPU µs each"), rows
    )
