"""`make demo`: the main job on real parts, in about 20 lines, each a result of this run."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import modelkms
from modelkms.officer import Officer

from kms_service.adapters.audit_reading import read_records, verify
from kms_service.development.stack import PROJECT, DevelopmentStack

_WINDOW_BYTES = 32
_WINDOWS_A_FILE = 64
_WIDTH = 11


class DemoFailed(Exception):
    """A line of the story did not come out as it must."""


def main() -> int:
    """Run the story in a temporary folder; 0 if every line held."""
    started = time.monotonic()
    # onnxruntime's official builds report their use to their vendor once imported (its Privacy.md).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with _temporary_folder() as folder:
        say("ModelKMS", "real OpenBao, real service, real models; all in a temporary folder")
        with DevelopmentStack(folder / "stack") as stack:
            say(
                "setup",
                f"OpenBao {stack.vault.version} at {stack.vault.address}, service at "
                f"localhost:{stack.grpc_port} (mTLS 1.3), artifacts in a local folder",
            )
            models = RealModels(folder / "models")
            publish(stack, models)
            open_as_reader(stack, models)
            look_for_plaintext(stack, models)
            refuse_the_stranger(stack)
            revoke_a_lease(stack)
            rotate_the_master_key(stack, models)
            show_evidence(stack)
    say("done", f"everything above was computed in this run, in {time.monotonic() - started:.0f} s")
    return 0


class RealModels:
    """A Core ML package made with coremltools, and the ONNX model that magika ships."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.package = folder / "digits.mlpackage"
        _make_core_ml_package(self.package)
        self.onnx = _magika_model()


def publish(stack: DevelopmentStack, models: RealModels) -> None:
    with connect(stack, "publisher") as publisher:
        for source, reference in ((models.package, "digits"), (models.onnx, "magika")):
            version = publisher.push(source, f"{PROJECT}/{reference}").version
            if version.pin is None:
                raise DemoFailed("a pushed version has its pin")
            say(
                "publisher",
                f"pushed {PROJECT}/{reference}@{version.number}: {source.name}, "
                f"{_plain_bytes(source):,} bytes, stored as {version.pin.length_bytes:,} "
                "bytes of ciphertext",
            )


def open_as_reader(stack: DevelopmentStack, models: RealModels) -> None:
    with connect(stack, "reader") as reader:
        with reader.open(f"{PROJECT}/digits") as digits, digits.materialize() as folder:
            names = digits.files()
            for name in names:
                require((folder / name).read_bytes() == (models.package / name).read_bytes(), name)
            say("reader", f"opened digits@{digits.version.number}; {len(names)} files, same bytes")
        require(not folder.exists(), "the materialized folder is gone")
        say("reader", f"its memory-backed folder {folder.parent}/… is gone again")
        started = time.monotonic()
        with reader.open(f"{PROJECT}/magika") as magika:
            content = magika.read()
            elapsed_ms = 1000 * (time.monotonic() - started)
        largest = _compare_outputs(models.onnx, content)
        say("reader", f"opened magika in {elapsed_ms:.0f} ms and ran it in onnxruntime from memory")
        say("reader", f"its outputs and the plain file's differ by at most {largest:g}")


def look_for_plaintext(stack: DevelopmentStack, models: RealModels) -> None:
    """Slide over every stored byte: no window of 32 plaintext bytes may be there."""
    sources = [models.onnx, *(path for path in models.package.rglob("*") if path.is_file())]
    windows: set[bytes] = set()
    for content in (path.read_bytes() for path in sources):
        step = max(1, (len(content) - _WINDOW_BYTES) // _WINDOWS_A_FILE)
        windows |= {
            content[at : at + _WINDOW_BYTES]
            for at in range(0, len(content) - _WINDOW_BYTES + 1, step)
        }
    windows = {window for window in windows if len(set(window)) > _WINDOW_BYTES // 4}
    roots = (stack.paths.artifacts, stack.paths.root / "cache")
    stored = [path for root in roots for path in root.rglob("*") if path.is_file()]
    searched = 0
    for path in stored:
        content = path.read_bytes()
        searched += len(content)
        require(not any(window in content for window in windows), f"plaintext in {path}")
    require(searched > sum(path.stat().st_size for path in sources), "the artifacts were found")
    say(
        "storage",
        f"searched {searched:,} stored and cached bytes for {len(windows):,} pieces of plaintext: "
        "none",
    )


def refuse_the_stranger(stack: DevelopmentStack) -> None:
    with connect(stack, "stranger") as stranger:
        told = []
        for reference in ("magika", "no-such-model"):
            error = refused(partial(stranger.open, f"{PROJECT}/{reference}"))
            told.append(error.reason)
        require(told[0] == told[1], "missing and forbidden look alike")
        say("stranger", f"refused: {told[0]}; for a model that does not exist: {told[1]}")


def revoke_a_lease(stack: DevelopmentStack) -> None:
    with (
        connect(stack, "reader") as reader,
        connect(stack, "security") as security,
        reader.open(f"{PROJECT}/magika") as model,
    ):
        lease = model.lease
        live = security.list_leases(PROJECT)
        ended = security.revoke_leases(PROJECT, lease=lease.name)
        say("security", f"{len(live)} leases out; revoked {ended}, of {model.lease.principal}")
        error = refused(lambda: reader.renew_lease(lease.name))
        require(error.reason == "LEASE_REVOKED", error.reason)
        say("reader", f"cannot renew it: {error.reason}")


def rotate_the_master_key(stack: DevelopmentStack, models: RealModels) -> None:
    with connect(stack, "security") as security:
        before = security.get_master_key(PROJECT).latest_version
        with Officer.from_profile(security.profile) as officer:
            officer.rotate_master_key(PROJECT)
        after = security.get_master_key(PROJECT).latest_version
        require(after == before + 1, "rotated once")
        say("security", f"rotated the master key under its own Vault login: v{before} → v{after}")
    with connect(stack, "reader") as reader:
        with reader.open(f"{PROJECT}/magika") as magika:
            require(magika.read() == models.onnx.read_bytes(), "magika opens")
        with reader.open(f"{PROJECT}/digits") as digits:
            for name in digits.files():
                require(digits.read(name) == (models.package / name).read_bytes(), name)
        say("reader", "both models still open, and read the same")


def show_evidence(stack: DevelopmentStack) -> None:
    url = f"http://127.0.0.1:{stack.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        lines = response.read().decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    wanted = ("modelkms_leases_issued_total", "modelkms_leases_revoked_total")
    for name in wanted:
        require(float(samples.get(name, "0")) > 0, f"{name} is in the metrics")
    shown = ", ".join(f"{name} {float(samples[name]):.0f}" for name in wanted)
    say("metrics", f"{shown}, and {len(samples) - len(wanted)} further series")
    records = list(read_records(stack.paths.audit / "main"))
    counts = Counter(f"{record['event']} {record['outcome']}" for record in records)
    shown = ", ".join(
        f"{count} {event}" for event, count in sorted(counts.items()) if "Lease" in event
    )
    say("audit", f"{len(records)} records, among them {shown}")
    (chain,) = verify(stack.paths.audit).chains
    require(not chain.fault, "the audit chain is whole")
    say("audit", f"chain verified: {chain.summary}")


def connect(stack: DevelopmentStack, identity: str) -> modelkms.Client:
    return modelkms.connect(stack.paths.profile(identity))


def refused(act: Callable[[], object]) -> modelkms.ModelKmsError:
    """The error that `act` must end in."""
    try:
        act()
    except modelkms.ModelKmsError as error:
        return error
    raise DemoFailed("this should have been refused")


def require(held: bool, what: str) -> None:
    if not held:
        raise DemoFailed(what)


def say(who: str, what: str) -> None:
    sys.stdout.write(f"{who:<{_WIDTH}}{what}\n")
    sys.stdout.flush()


def _plain_bytes(source: Path) -> int:
    files = source.rglob("*") if source.is_dir() else [source]
    return sum(path.stat().st_size for path in files if path.is_file())


def _make_core_ml_package(path: Path) -> None:
    """A small digit classifier as a Core ML ML Program, with its weights."""
    with _quiet():
        import coremltools
        import numpy
        from coremltools.converters.mil import Builder

        random = numpy.random.default_rng(7)

        def weights(*shape: int) -> Any:
            return random.standard_normal(shape).astype(numpy.float32)

        @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 784))])  # type: ignore[untyped-decorator]
        def digits(image: Any) -> Any:
            hidden = Builder.relu(
                x=Builder.linear(x=image, weight=weights(256, 784), bias=weights(256))
            )
            scores = Builder.linear(x=hidden, weight=weights(10, 256), bias=weights(10))
            return Builder.softmax(x=scores, axis=-1, name="probabilities")

        model = coremltools.convert(digits, convert_to="mlprogram", skip_model_load=True)
        model.save(str(path))


def _magika_model() -> Path:
    import magika

    (path,) = Path(magika.__file__).parent.glob("models/*/model.onnx")
    return path


def _compare_outputs(plain: Path, decrypted: bytes) -> float:
    """Largest difference between the outputs of both models on real bytes: this very file."""
    import numpy
    import onnxruntime

    content = Path(__file__).read_bytes()[:2048].ljust(2048, b"\0")
    feed = {"bytes": numpy.frombuffer(content, dtype=numpy.uint8).astype(numpy.int32)[None]}
    (expected,) = onnxruntime.InferenceSession(str(plain)).run(None, feed)
    (actual,) = onnxruntime.InferenceSession(decrypted).run(None, feed)
    difference = float(numpy.abs(expected - actual).max())
    require(difference == 0 and float(expected.max()) > 0, "the outputs are equal")
    return difference


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="modelkms-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """coremltools writes progress bars and version warnings that are not part of the story."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    sys.exit(main())
