"""The first open of a model in S3 against a plain parallel download of the same object."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import urllib3

from kms_service.adapters.bucket_storage import BucketArtifactStore
from tests.bench.measure import describe_machine, interleave, table
from tests.support.s3_gateway import running_gateway
from tests.support.sdk_world import sdk_world
from tests.unit.usecases.real_parts import migrated_database

_BLOCK = 1 << 20
_RANGE_BYTES = 8 << 20
_THREADS = 4


def run(folder: Path, size_bytes: int, rounds: int) -> str:
    """The table as Markdown."""
    home = folder / "s3"
    home.mkdir()
    source = home / "model.bin"
    with source.open("wb") as file:
        for _ in range(size_bytes // _BLOCK):
            file.write(secrets.token_bytes(_BLOCK))
    with running_gateway(home / "gateway") as gateway:
        settings = gateway.make_bucket()
        store = BucketArtifactStore(settings)
        (home / "world").mkdir()
        with sdk_world(home / "world", migrated_database(home), store) as world:
            section = {
                "kind": "s3",
                "bucket": settings.bucket,
                "endpoint": settings.endpoint,
                "region": settings.region,
                "credentials_file": settings.credentials_file,
            }
            version = world.client("publisher", store=section).push(source, "demo/large").version
            assert version.pin is not None
            length = version.pin.length_bytes
            url = store.link(version.artifact_id, timedelta(hours=1))
            assert url is not None
            link = url
            reader = world.client("reader")
            cache = Path(str(world.profile("reader")["cache_dir"]))

            def first_open(read: bool) -> None:
                shutil.rmtree(cache, ignore_errors=True)
                with reader.open("demo/large") as model:
                    if read and len(model.memory()) != size_bytes:
                        raise RuntimeError("short read")

            series = interleave(
                {
                    "plain parallel download": lambda: _download(link, length, home / "plain"),
                    "the same, hashed while it is read": lambda: _download(
                        link, length, home / "plain", hashlib.sha256
                    ),
                    "first open": lambda: first_open(False),
                    "first open, all of it decrypted": lambda: first_open(True),
                },
                rounds,
            )
    plain = series["plain parallel download"].median
    rows = [
        (
            name,
            f"{each.median:.2f} s",
            each.spread,
            f"{length / each.median / 2**20:,.0f}",
            f"{plain / each.median:.2f}",
        )
        for name, each in series.items()
    ]
    return (
        f"## The first open of {size_bytes / 2**20:,.0f} MiB from S3\n\n"
        f"{rounds} rounds, interleaved, versitygw on this machine. The plain download is the\n"
        f"same {_THREADS} connections and ranges into a file, nothing verified, no fsync; hashed,\n"
        "as the pin's digest needs it, it shows what SHA-256 costs where client and gateway share\n"
        "the cores. The first open leases the key, verifies the pin's digest and begins to make\n"
        "the cache entry durable.\n"
        "\n" + table(("candidate", "median", "spread", "MiB/s", "ratio of throughput"), rows)
    )


def _download(
    url: str, length: int, target: Path, hasher: Callable[[], hashlib._Hash] | None = None
) -> None:
    target.unlink(missing_ok=True)
    with target.open("wb") as file, urllib3.PoolManager(maxsize=_THREADS) as pool:

        def fetch(start: int) -> None:
            end = min(start + _RANGE_BYTES, length)
            answer = pool.request(
                "GET", url, headers={"Range": f"bytes={start}-{end - 1}"}, preload_content=False
            )
            at, hashed = start, hasher() if hasher is not None else None
            while data := answer.read(1 << 18):
                at += os.pwrite(file.fileno(), data, at)
                if hashed is not None:
                    hashed.update(data)
            answer.release_conn()
            if at != end:
                raise RuntimeError("short read")

        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(fetch, range(0, length, _RANGE_BYTES)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.object_store")
    parser.add_argument("--size-mib", type=int, default=256, help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelkms-bench-") as folder:
        text = run(Path(folder), options.size_mib * 2**20, options.rounds)
    sys.stdout.write(f"{describe_machine()}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
