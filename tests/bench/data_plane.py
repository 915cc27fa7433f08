"""Encrypting, publishing and opening against copying and reading the same bytes."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import modelkms
from modelkms.artifact import write_artifact

from kms_service.development.stack import PROJECT, DevelopmentStack
from tests.bench.measure import Series, interleave, table

_BLOCK = 1 << 20


def run(folder: Path, size_bytes: int, rounds: int) -> str:
    """The table as Markdown."""
    source, copy = folder / "model.bin", folder / "copy.bin"
    with source.open("wb") as file:
        for _ in range(size_bytes // _BLOCK):
            file.write(secrets.token_bytes(_BLOCK))
    with DevelopmentStack(folder / "data-stack") as stack:
        profile = stack.paths.profile
        with (
            modelkms.connect(profile("developer")) as publisher,
            modelkms.connect(profile("reader")) as reader,
        ):
            pushed = publisher.push(source, f"{PROJECT}/large")
            reader.prefetch(f"{PROJECT}/large")

            def push() -> None:
                publisher.push(source, f"{PROJECT}/large")
                _forget_newest(stack, publisher)

            def open_and_read() -> None:
                with reader.open(f"{PROJECT}/large@{pushed.version.number}") as model:
                    if len(model.read()) != size_bytes:
                        raise RuntimeError("short read")

            series = interleave(
                {
                    "cp --reflink=never": lambda: _cp(source, copy),
                    "encrypt file → file": lambda: _encrypt(source, copy),
                    "push (encrypt, upload, check, finalize)": push,
                    "read into fresh memory": source.read_bytes,
                    "open and read, warm cache": open_and_read,
                },
                rounds,
            )
    return _report(series, size_bytes, rounds)


def _forget_newest(stack: DevelopmentStack, client: modelkms.Client) -> None:
    """Free the disk of what was just pushed; the first version is the one that is opened."""
    newest = client.list_versions(f"{PROJECT}/large")[0]
    for path in stack.paths.artifacts.rglob(newest.artifact_id):
        path.unlink()


def _encrypt(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with target.open("wb", buffering=0) as sink:
        write_artifact(
            source,
            sink,
            secrets.token_bytes(32),
            version=f"projects/{PROJECT}/models/large/versions/1",
            version_uid="0" * 32,
            artifact_id="1" * 32,
        )


def _cp(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=never", source, target], check=True)


def _report(series: dict[str, Series], size_bytes: int, rounds: int) -> str:
    bases = {
        "cp --reflink=never": "cp --reflink=never",
        "encrypt file → file": "cp --reflink=never",
        "push (encrypt, upload, check, finalize)": "cp --reflink=never",
        "read into fresh memory": "read into fresh memory",
        "open and read, warm cache": "read into fresh memory",
    }
    rows = [
        (
            name,
            f"{series[name].median:.2f} s",
            series[name].spread,
            f"{size_bytes / series[name].median / 2**20:,.0f}",
            f"{series[base].median / series[name].median:.2f} of {base.split()[0]}",
        )
        for name, base in bases.items()
    ]
    return (
        f"## A model of {size_bytes / 2**20:,.0f} MiB\n\n"
        f"{rounds} rounds, interleaved, page cache warm, no fsync in `cp`; `push` is durable on\n"
        "the client's spool and in the service's store.\n\n"
        + table(("candidate", "median", "spread", "MiB/s", "ratio"), rows)
    )
