"""What an installation must be sized for: CPU, memory and disk of a lease, and where its time goes.

CPU time and bytes, not requests a second: they hold on any machine and beside other load.
"""

from __future__ import annotations

import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from kms_service.development.stack import DevelopmentStack
from tests.bench.leases import lease_request, load, publish_small_model
from tests.bench.measure import table
from tests.support.tools import go_tool

_CONCURRENCY = 64


def run(folder: Path, seconds: float) -> str:
    """The table as Markdown."""
    ghz = go_tool("ghz")
    folder.mkdir()
    with DevelopmentStack(folder / "stack") as stack:
        publish_small_model(stack, folder)
        (folder / "request").write_bytes(lease_request().SerializeToString())
        load(ghz, stack, stack.grpc_port, folder / "request", 1.0)  # caches, sessions
        before, bytes_before = _scrape(stack), _bytes(stack)
        load(*(ghz, stack, stack.grpc_port, folder / "request", seconds), concurrency=_CONCURRENCY)
        after, bytes_after = _scrape(stack), _bytes(stack)

    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    leases = spent["modelkms_leases_issued_total"]
    rows = [
        ("CPU time of a lease", f"{spent['process_cpu_seconds_total'] / leases * 1e6:.0f} µs"),
        ("memory, idle", f"{before['process_resident_memory_bytes'] / 2**20:.0f} MiB"),
        (
            f"memory, {_CONCURRENCY} requests at once",
            f"{after['process_resident_memory_bytes'] / 2**20:.0f} MiB",
        ),
    ]
    rows += [
        (f"{what}, a lease", f"{(bytes_after[what] - bytes_before[what]) / leases:.0f} B")
        for what in bytes_after
    ]
    return (
        "## Sizing\n\n"
        f"One process, {leases:,.0f} leases by {_CONCURRENCY} requests at once; caches warm.\n\n"
        + table(("of", "measured"), rows)
    )


def _scrape(stack: DevelopmentStack) -> dict[str, float]:
    """Samples without labels, by name."""
    url = f"http://127.0.0.1:{stack.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def _bytes(stack: DevelopmentStack) -> dict[str, int]:
    database = stack.paths.service.glob("modelkms.db*")
    audit = (path for path in stack.paths.audit.rglob("*") if path.is_file())
    return {
        "database (SQLite, with its log)": sum(path.stat().st_size for path in database),
        "audit log": sum(path.stat().st_size for path in audit),
    }
