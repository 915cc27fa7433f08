"""The data plane alone, without a service: encrypting, opening, random reads, peak memory."""

from __future__ import annotations

import os
import random
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from modelkms.artifact import ArtifactReader, write_artifact
from modelkms.artifact.buffers import FreshMemory
from modelkms.artifact.floe import Decryptor, Encryptor
from modelkms.artifact.parallel import CHUNK_BYTES, THREADS, Work
from modelkms.artifact.sources import FileSource
from modelkms_api.artifact import DEFAULT_SEGMENT_BYTES

from tests.bench.measure import Series, interleave, table
from tests.support.tools import go_tool

_MIB = 1 << 20
_KEY = bytes(range(32))
_BLOCK_BYTES = 64 << 20
_SMALL_READ_BYTES = 64 << 10
_SMALL_READS = 2000
_PEAK_BYTES = 96_000_000
_PEAK_BYTES_A_MEMBER = 1024
_FEWER_ROUNDS_FROM = 4 << 30


def run(folder: Path, sizes_bytes: list[int], rounds: int) -> str:
    """The tables as Markdown."""
    sections: list[str] = []
    peers, block = _Peers(folder), secrets.token_bytes(_BLOCK_BYTES)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for size in sizes_bytes:
        source = folder / f"model-{size}"
        with source.open("wb") as file:
            for at in range(0, size, len(block)):
                file.write(block[: size - at])
        fewer = min(rounds, 2) if size >= _FEWER_ROUNDS_FROM else rounds
        sections.append(_encrypting(folder, source, size, fewer, peers))
        stored = folder / "artifact"
        _encrypt(source, stored)
        if size <= memory_bytes // 6:  # else not all of it stays in the page cache
            sections.append(_opening(source, stored, size, fewer, peers, folder))
        if size == sizes_bytes[-1]:
            sections.append(_random_reads(source, stored))
            sections.append(_peak_memory(folder, source, stored))
        source.unlink()
    return "\n\n".join(sections)


# --- encrypting ----------------------------------------------------------------------------------


def _encrypting(folder: Path, source: Path, size: int, rounds: int, peers: _Peers) -> str:
    target = folder / "target"

    def synced(act: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            act()
            with target.open("rb") as file:
                os.fsync(file.fileno())

        return run

    def cp() -> None:
        target.unlink(missing_ok=True)
        subprocess.run(["cp", "--reflink=never", source, target], check=True)

    def encrypt() -> None:
        _encrypt(source, target)

    def without_digest() -> None:
        with mock.patch("modelkms.artifact.writer.ParallelDigest", _NoDigest):
            _encrypt(source, target)

    def ceiling() -> None:
        with _without_cryptography():
            _encrypt(source, target)

    base = "cp --reflink=never"
    series = interleave(
        {
            base: cp,
            "the same loop without cryptography": ceiling,
            "encrypt, without the pin's digest": without_digest,
            "encrypt, with the pin (as push does)": encrypt,
            "age": lambda: peers.age_encrypt(source, target),
            "Tink, AES256_GCM_HKDF_1MB": lambda: peers.tink("encrypt", source, target),
            f"{base}, fsync": synced(cp),
            "encrypt, without the pin's digest, fsync": synced(without_digest),
            "encrypt, with the pin, fsync": synced(encrypt),
        },
        rounds,
    )
    target.unlink()
    bases = {name: f"{base}, fsync" if name.endswith("fsync") else base for name in series}
    return (
        f"## Encrypting a file of {size / _MIB:,.0f} MiB into a file\n\n"
        f"{rounds} rounds. The pin's digest is SHA-256 over the whole artifact; neither age nor\n"
        "Tink has one.\n\n" + _table(series, bases, size)
    )


def _encrypt(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with target.open("wb", buffering=0) as sink:
        write_artifact(
            source,
            sink,
            _KEY,
            version="projects/bench/models/large/versions/1",
            version_uid="0" * 32,
            artifact_id="1" * 32,
        )


class _NoDigest:
    """In the place of ParallelDigest: what encrypting costs without it."""

    length_bytes = 0

    def add(self, offset: int, data: memoryview) -> None:
        pass

    def digest(self) -> bytes:
        return bytes(32)


@contextmanager
def _without_cryptography() -> Iterator[None]:
    """Reads into one buffer, writes from the other: what the layout itself costs."""

    def nothing(_self: Encryptor, _at: int, _last: bool, _plain: memoryview, _: memoryview) -> None:
        pass

    with (
        mock.patch.object(Encryptor, "encrypt_into", nothing),
        mock.patch("modelkms.artifact.writer.ParallelDigest", _NoDigest),
    ):
        yield


# --- opening -------------------------------------------------------------------------------------


def _opening(
    source: Path, stored: Path, size: int, rounds: int, peers: _Peers, folder: Path
) -> str:
    aged, tinked = folder / "aged", folder / "tinked"
    peers.age_encrypt(source, aged)
    peers.tink("encrypt", source, tinked)

    def opened(act: Callable[[ArtifactReader], object]) -> None:
        with ArtifactReader(stored, _KEY) as reader:
            act(reader)

    def ceiling() -> None:
        with _without_decryption():
            opened(ArtifactReader.memory)

    base = "parallel preadv into the same memory"
    series = interleave(
        {
            base: lambda: _read_plain(source, size),
            "memory() without cryptography": ceiling,
            "open, memory()": lambda: opened(ArtifactReader.memory),
            "open, read()": lambda: opened(ArtifactReader.read),
            "verify only": lambda: opened(ArtifactReader.verify),
            "age, to /dev/null": lambda: peers.age_decrypt(aged),
            "Tink, to /dev/null": lambda: peers.tink("decrypt", tinked, Path("/dev/null")),
        },
        rounds,
    )
    aged.unlink()
    tinked.unlink()
    return (
        f"## Opening {size / _MIB:,.0f} MiB into fresh memory\n\n"
        f"{rounds} rounds, page cache warm, two threads, pages of 2 MiB on both sides.\n\n"
        + _table(series, dict.fromkeys(series, base), size)
    )


@contextmanager
def _without_decryption() -> Iterator[None]:
    """Reads into scratch and has the pages (of 2 MiB) of fresh memory come: what the layout itself
    costs."""

    def touch(_: Decryptor, _at: int, _last: bool, segment: memoryview, out: memoryview) -> None:
        out[0], out[-1] = segment[0], segment[-1]

    with mock.patch.object(Decryptor, "decrypt_into", touch):
        yield


def _read_plain(source: Path, size: int) -> None:
    memory, work = FreshMemory(size), Work(range(0, size, CHUNK_BYTES))
    with source.open("rb", buffering=0) as file:

        def read() -> None:
            while (taken := work.take()) is not None:
                at = taken[0]
                os.preadv(file.fileno(), [memory.view[at : at + CHUNK_BYTES]], at)

        work.run(read, THREADS, "plain")


# --- random reads --------------------------------------------------------------------------------


class _CountingSource:
    def __init__(self, inner: FileSource) -> None:
        self._inner = inner
        self.length_bytes = inner.length_bytes
        self.read_bytes = 0

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self.read_bytes += len(buffer)
        return self._inner.read_into(offset, buffer)


def _random_reads(source: Path, stored: Path) -> str:
    size, chance = source.stat().st_size, random.Random(1)
    offsets = [chance.randrange(size - _SMALL_READ_BYTES) for _ in range(_SMALL_READS)]
    with source.open("rb") as plain, stored.open("rb") as encrypted:
        counting = _CountingSource(FileSource(encrypted.fileno()))
        with ArtifactReader(counting, _KEY) as reader, reader.open() as file:
            before = counting.read_bytes
            ours = _latencies(offsets, lambda at: file.pread(_SMALL_READ_BYTES, at))
            each = (counting.read_bytes - before) / len(offsets)
        theirs = _latencies(offsets, lambda at: os.pread(plain.fileno(), _SMALL_READ_BYTES, at))
    rows = [
        (name, f"{p50:,.0f}", f"{p99:,.0f}", read)
        for name, (p50, p99), read in (
            ("pread of the plain file", theirs, f"{_SMALL_READ_BYTES / 1024:.0f} KiB"),
            ("pread of a member", ours, f"{each / 1024:,.0f} KiB"),
        )
    ]
    return (
        f"## Random reads of 64 KiB from {size / _MIB:,.0f} MiB\n\n"
        f"{_SMALL_READS:,} reads, page cache warm, segments of {DEFAULT_SEGMENT_BYTES >> 10} KiB."
        "\n\n" + table(("candidate", "p50 µs", "p99 µs", "read and decrypted for each"), rows)
    )


def _latencies(offsets: list[int], read: Callable[[int], bytes]) -> tuple[float, float]:
    seconds = []
    for at in offsets:
        started = time.perf_counter()
        read(at)
        seconds.append(time.perf_counter() - started)
    hundredths = statistics.quantiles(seconds, n=100)
    return statistics.median(seconds) * 1e6, hundredths[98] * 1e6


# --- peak memory ---------------------------------------------------------------------------------

_IMPORTS = "import sys, modelkms\nfrom modelkms.artifact import ArtifactReader, write_artifact\n"
_WRITE = """
with open(sys.argv[2], "wb", buffering=0) as sink:
    write_artifact(
        sys.argv[1], sink, bytes(range(32)), version="projects/a/models/b/versions/1",
        version_uid="0" * 32, artifact_id="0" * 32,
    )
"""
_READ = """
with ArtifactReader(sys.argv[1], bytes(range(32))) as reader:
    reader.verify()
    file = reader.open(reader.files()[0])
    while file.read(1 << 20):
        pass
"""
_PEAK = """
with open("/proc/self/status") as lines:
    print(next(line for line in lines if line.startswith("VmHWM")).split()[1])
"""


def _peak_memory(folder: Path, source: Path, stored: Path) -> str:
    size = f"{source.stat().st_size / _MIB:,.0f} MiB"
    sparse, many, archive = folder / "sparse", folder / "many", folder / "archive"
    with sparse.open("wb") as file:
        file.truncate(16 << 30)
    for number in range(100):
        part = many / f"layer-{number:03}"
        part.mkdir(parents=True)
        for shard in range(1000):
            (part / f"tensor-{shard:05}-of-01000.bin").write_bytes(b"%d" % shard)
    sink = Path("/dev/null")
    rows = [
        (
            what,
            f"{_peak(program, *paths) / _MIB:,.0f} MiB",
            f"{(_PEAK_BYTES + members * _PEAK_BYTES_A_MEMBER) / _MIB:,.0f} MiB",
        )
        for what, program, paths, members in (
            ("the SDK imported, nothing done", "", (), 0),
            (f"encrypt {size}", _WRITE, (source, folder / "target"), 1),
            ("encrypt a sparse file of 16 GiB, to /dev/null", _WRITE, (sparse, sink), 1),
            (f"open {size}, verify, read in order", _READ, (stored,), 1),
            ("encrypt a folder of 100,000 files", _WRITE, (many, archive), 100_000),
            ("open it, verify, list", _READ, (archive,), 100_000),
        )
    ]
    (folder / "target").unlink()
    return (
        "## Peak memory\n\nResident at most (VmHWM), of a process of its own. It may be 96 MB\n"
        "and 1 KiB for each member.\n\n" + table(("process", "peak", "bound"), rows)
    )


def _peak(program: str, *arguments: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS + program + _PEAK, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout) * 1024


# --- what it is measured beside ------------------------------------------------------------------


class _Peers:
    """age and Tink, each a program of its own: starting one is in its time, a few milliseconds."""

    def __init__(self, folder: Path) -> None:
        self._age, self._tink = go_tool("age"), go_tool("tinkstream")
        self._identity = folder / "age-identity"
        subprocess.run(
            [go_tool("age-keygen"), "-o", self._identity], check=True, capture_output=True
        )
        shown = subprocess.run(
            [go_tool("age-keygen"), "-y", self._identity], check=True, capture_output=True
        )
        self._recipient = shown.stdout.decode().strip()

    def age_encrypt(self, source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        subprocess.run([self._age, "-r", self._recipient, "-o", target, source], check=True)

    def age_decrypt(self, stored: Path) -> None:
        subprocess.run(
            [self._age, "-d", "-i", self._identity, stored],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def tink(self, verb: str, source: Path, target: Path) -> None:
        if target.is_file():
            target.unlink()
        subprocess.run([self._tink, verb, source, target], check=True)


def _table(series: dict[str, Series], bases: dict[str, str], size: int) -> str:
    rows = [
        (
            name,
            f"{each.median:.2f} s",
            each.spread,
            f"{size / each.median / _MIB:,.0f}",
            f"{series[bases[name]].median / each.median:.2f}",
        )
        for name, each in series.items()
    ]
    return table(("candidate", "median", "spread", "MiB/s", "ratio to the first"), rows)
