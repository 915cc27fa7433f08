"""`make bench`: print the tables and write them to tests/bench/RESULTS.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import (
    artifacts,
    audit,
    catalogue_size,
    data_plane,
    leases,
    loading,
    object_store,
    rewrap,
    sizing,
)
from tests.bench.measure import describe_machine

RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--sizes-mib", default="256,1024,8192", help="of artifacts alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a load run")
    parser.add_argument("--keys", type=int, default=100_000, help="data keys to rewrap")
    parser.add_argument("--versions", type=int, default=1_000_000, help="of a large catalogue")
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelkms-bench-") as folder:
        sizes = [int(size) * 2**20 for size in options.sizes_mib.split(",")]
        sections = [
            artifacts.run(Path(folder), sizes, options.rounds),
            data_plane.run(Path(folder), options.size_mib * 2**20, options.rounds),
            loading.run(Path(folder), options.size_mib * 2**20 // 2, options.rounds),
            object_store.run(Path(folder), options.size_mib * 2**20 // 4, options.rounds),
            leases.run(Path(folder), options.rounds, options.seconds),
            audit.run(Path(folder), options.rounds, options.seconds),
            rewrap.run(Path(folder), options.keys),
            catalogue_size.run(Path(folder), options.versions),
            sizing.run(Path(folder) / "sizing", options.seconds),
        ]
    text = "\n\n".join([_head(), *sections]) + "\n"
    sys.stdout.write(text)
    if not options.no_write:
        RESULTS.write_text(text)
    return 0


def _head() -> str:
    today = datetime.now(UTC).date().isoformat()
    return (
        "# Benchmarks\n\n"
        f"`make bench` on {today}: {describe_machine()}. Every row of a table comes from one run,\n"
        "its candidates interleaved; the figure is the median, the ratio is throughput against\n"
        "the row it names. Shared machines are noisy: ratios are worth more than seconds."
    )


if __name__ == "__main__":
    sys.exit(main())
