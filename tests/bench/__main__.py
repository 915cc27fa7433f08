"""`make bench`: print the tables and write them to tests/bench/RESULTS.md.

Each section is one run, dated with its machine; `--only NAME` measures and replaces that one.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import (
    artifacts,
    audit,
    catalogue_size,
    data_plane,
    fleet,
    leases,
    loading,
    object_store,
    policies,
    rewrap,
    rewrap_load,
    sizing,
)
from tests.bench.measure import describe_machine

RESULTS = Path(__file__).with_name("RESULTS.md")
_MIB = 2**20
_HEAD = (
    "# Benchmarks\n\n"
    "Written by `make bench`. Every row of a table is of one run, its candidates interleaved;\n"
    "the figure is the median, the ratio is throughput against the row it names. Shared machines\n"
    "are noisy: ratios are worth more than seconds."
)


def main() -> int:
    options = _options()
    measured = {}
    for name, run in _sections(options).items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix="modelkms-bench-") as folder:
            measured[name] = _dated(run(Path(folder)))
        sys.stdout.write(measured[name] + "\n\n")
        sys.stdout.flush()
        if not options.no_write:
            _write(measured)
            if name == "sizing":
                sizing.write_guide(measured[name])
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--sizes-mib", default="256,1024,8192", help="of artifacts alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a load run")
    parser.add_argument("--clients", type=int, default=1000, help="of a fleet")
    parser.add_argument("--keys", type=int, default=100_000, help="data keys to rewrap")
    parser.add_argument("--versions", type=int, default=1_000_000, help="of a large catalogue")
    parser.add_argument("--only", choices=list(_ORDER), action="append", help="these sections")
    parser.add_argument("--no-write", action="store_true", help="only print")
    return parser.parse_args()


_ORDER = (
    "artifacts",
    "data-plane",
    "loading",
    "object-store",
    "leases",
    "fleet",
    "policies",
    "audit",
    "rewrap",
    "rewrap-load",
    "catalogue-size",
    "sizing",
)


def _sections(options: argparse.Namespace) -> Mapping[str, Callable[[Path], str]]:
    sizes = [int(size) * _MIB for size in options.sizes_mib.split(",")]
    size, rounds, seconds = options.size_mib * _MIB, options.rounds, options.seconds
    runs: tuple[Callable[[Path], str], ...] = (
        lambda folder: artifacts.run(folder, sizes, rounds),
        lambda folder: data_plane.run(folder, size, rounds),
        lambda folder: loading.run(folder, size // 2, rounds),
        lambda folder: object_store.run(folder, size // 4, rounds),
        lambda folder: leases.run(folder, rounds, seconds),
        lambda folder: fleet.run(folder, options.clients),
        lambda folder: policies.run(folder, rounds),
        lambda folder: audit.run(folder, rounds, seconds),
        lambda folder: rewrap.run(folder, options.keys),
        lambda folder: rewrap_load.run(folder, 5 * seconds),
        lambda folder: catalogue_size.run(folder, options.versions),
        lambda folder: sizing.run(folder / "sizing", seconds),
    )
    return dict(zip(_ORDER, runs, strict=True))


def _dated(text: str) -> str:
    """The section, with when and where it was measured below its heading."""
    heading, _, rest = text.partition("\n")
    today = datetime.now(UTC).date().isoformat()
    return f"{heading}\n\n*{today}, {describe_machine()}.*\n{rest}"


def _write(measured: Mapping[str, str]) -> None:
    """Replace these sections in the file, and keep the others."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    found = re.split(r"^<!-- section: (\S+) -->\n", old, flags=re.MULTILINE)[1:]
    kept = dict(zip(found[::2], (text.strip() for text in found[1::2]), strict=True))
    sections = {**kept, **measured}
    parts = [
        f"<!-- section: {name} -->\n{sections[name].strip()}" for name in _ORDER if name in sections
    ]
    RESULTS.write_text("\n\n".join([_HEAD, *parts]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
