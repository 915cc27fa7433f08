"""The audit log: what it costs a lease, how fast a million records are checked."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from kms_service.adapters.audit_chain import Link, render, segment_name, segments
from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.audit_reading import verify
from kms_service.development.stack import DevelopmentStack
from kms_service.domain.audit import ChainHead
from tests.bench.leases import (
    SERVER_CORE,
    lease_request,
    load,
    pin,
    publish_small_model,
    serve_with,
)
from tests.bench.measure import table
from tests.support.audit_logs import checkpoint, lease_record
from tests.support.tools import go_tool

RECORDS = 1_000_000
_CONCURRENCY = 64
_POOLS = (16, 64)  # as set by default; as many as the requests
_THREADS = 16
_SEGMENT_BYTES = 64 * 1024 * 1024


def run(folder: Path, rounds: int, seconds: float) -> str:
    """The tables as Markdown."""
    costs = [_cost(folder / str(pool), rounds, seconds, pool) for pool in _POOLS]
    return "\n\n".join(["## What the audit log costs", *costs, _log(folder / "log")])


# --- what it costs ------------------------------------------------------------------------------


def _cost(folder: Path, rounds: int, seconds: float, pool: int) -> str:
    folder.mkdir()
    ghz = go_tool("ghz")
    modules = {"audit off": "tests.bench.unaudited", "audit on": "kms_service"}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in modules}
    with ExitStack() as stack:
        services = {
            name: stack.enter_context(
                DevelopmentStack(folder / name.replace(" ", "-"), server_module=module)
            )
            for name, module in modules.items()
        }
        for name, service in services.items():
            serve_with(service, pool)
            publish_small_model(service, folder)
            pin(service.service.pid, SERVER_CORE)
            (folder / f"{name}.request").write_bytes(lease_request().SerializeToString())
        for _ in range(max(1, rounds - 2)):
            for name, service in services.items():
                request = folder / f"{name}.request"
                runs[name].append(
                    load(
                        *(ghz, service, service.grpc_port, request, seconds),
                        concurrency=_CONCURRENCY,
                    )
                )
    rate = {name: statistics.median(run["rate"] for run in done) for name, done in runs.items()}
    p99 = {name: statistics.median(run["p99"] for run in done) for name, done in runs.items()}
    rows = [
        (name, f"{rate[name]:,.0f}", f"{p99[name]:.1f}", f"{rate[name] / rate['audit off']:.2f}")
        for name in modules
    ]
    return (
        f"Leases of one pinned process with a pool of {pool} threads at {_CONCURRENCY} concurrent "
        "requests, each\ndurable in the log before its answer, against the same process without a "
        "log.\n\n" + table(("candidate", "leases/s", "p99 ms", "ratio"), rows)
    )


# --- the log by itself --------------------------------------------------------------------------


def _log(folder: Path) -> str:
    appended = _append_rate(folder / "appended")
    chain = folder / "main"
    end = _write(chain)
    size_mb = sum(path.stat().st_size for path in segments(chain)) / 1e6
    begun = time.perf_counter()
    found = verify(folder / "main", [checkpoint(end)])
    seconds = time.perf_counter() - begun
    assert not found.faulty, found
    rows = [
        (f"appended durably by {_THREADS} threads", f"{appended:,.0f}", ""),
        (
            f"verified: {RECORDS:,} records, {size_mb:,.0f} MB",
            f"{RECORDS / seconds:,.0f}",
            f"{size_mb / seconds:,.0f}",
        ),
    ]
    told = [(name, f"{summary}", f"{spent:.1f}") for name, summary, spent in _found_out(chain, end)]
    return (
        "## The audit log by itself\n\n"
        + table(("", "records/s", "MB/s"), rows)
        + "\n\nWhat `audit verify` says of that log once it was changed:\n\n"
        + table(("change", "told", "seconds"), told)
    )


def _append_rate(folder: Path) -> float:
    log = FileAuditLog(folder, lambda: datetime.now(UTC))
    record = lease_record(1)
    count = 500

    def append() -> None:
        for _ in range(count):
            log.append(record)

    threads = [threading.Thread(target=append) for _ in range(_THREADS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    log.close()
    return _THREADS * count / seconds


def _write(chain: Path) -> ChainHead:
    chain.mkdir(parents=True)
    last, lines, size = Link(), [], 0
    first = 1
    for number in range(RECORDS):
        line, last = render(lease_record(number), chain.name, last)
        lines.append(line)
        size += len(line)
        if size >= _SEGMENT_BYTES or number == RECORDS - 1:
            (chain / segment_name(first)).write_bytes(b"".join(lines))
            first, lines, size = last.sequence + 1, [], 0
    return ChainHead(chain.name, last.sequence, last.hash)


def _found_out(chain: Path, end: ChainHead) -> list[tuple[str, str, float]]:
    """Each change is made in the file it is in, looked for, and undone."""
    middle = segments(chain)[len(segments(chain)) // 2]
    last = segments(chain)[-1]

    def edit(lines: list[bytes]) -> list[bytes]:
        lines[1000] = lines[1000].replace(b'"outcome":"ok"', b'"outcome":"no"')
        return lines

    def delete(lines: list[bytes]) -> list[bytes]:
        return lines[:1000] + lines[1001:]

    def move(lines: list[bytes]) -> list[bytes]:
        lines[1000], lines[2000] = lines[2000], lines[1000]
        return lines

    def cut(lines: list[bytes]) -> list[bytes]:
        return lines[:-1]

    changes: list[tuple[str, Path, Callable[[list[bytes]], list[bytes]]]] = [
        ("one record edited", middle, edit),
        ("one record deleted", middle, delete),
        ("two records exchanged", middle, move),
        ("the last record cut", last, cut),
    ]
    told = []
    for name, path, change in changes:
        whole = path.read_bytes()
        path.write_bytes(b"".join(change(whole.splitlines(keepends=True))))
        told.append((name, *_verified(chain, end)))
        path.write_bytes(whole)
    aside = chain.with_name("taken-away")
    chain.rename(aside)
    told.append(("the chain taken away", *_verified(chain.parent, end)))
    aside.rename(chain)
    return told


def _verified(folder: Path, end: ChainHead) -> tuple[str, float]:
    begun = time.perf_counter()
    reports = verify(folder, [checkpoint(end)]).chains
    faulty = [report.summary for report in reports if report.fault]
    assert faulty, "a change was not found out"
    return faulty[0], time.perf_counter() - begun
