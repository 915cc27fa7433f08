"""Time to a model that is ready, encrypted against plain: warm caches, every weight touched.

`python -m tests.bench.loading` prints this table alone, with PyTorch's rows where it is installed
(make bench-torch).
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modelkms
import numpy
import onnxruntime
import safetensors.numpy

from tests.bench.measure import Series, describe_machine, interleave, table
from tests.support.onnx_models import adder_of
from tests.support.sdk_world import sdk_world
from tests.unit.usecases.real_parts import migrated_database

_TENSORS = 16
_PLAIN = {
    "safetensors → numpy": "load_file",
    "safetensors → numpy, from memory": "load(bytes)",
    "ONNX, external data": "session from bytes, data from memory",
    "ONNX, external data, by path": "session from a path",
    "safetensors → torch": "load_file, which maps the page cache",
    "safetensors → torch, memory of its own": "load_file, each tensor cloned",
    "safetensors → torch, from memory": "load(bytes)",
    ".pt → torch": "torch.load from a path",
    ".pt → torch, from memory": "torch.load from bytes",
}


def run(folder: Path, size_bytes: int, rounds: int) -> str:
    """The table as Markdown."""
    home = folder / "loading"
    home.mkdir()
    with sdk_world(home, migrated_database(home)) as world:
        publisher, reader = world.client("publisher"), world.client("reader")
        candidates = _numpy(home, publisher, reader, size_bytes)
        candidates |= _onnx(home, publisher, reader, size_bytes)
        if importlib.util.find_spec("torch") is not None:
            candidates |= _torch(home, publisher, reader, size_bytes)
        series: dict[str, Series] = {}
        for pair, (encrypted, plain) in candidates.items():
            measured = interleave({"encrypted": encrypted, "plain": plain}, rounds)
            series |= {f"{pair}/{name}": each for name, each in measured.items()}
    rows = [
        (
            pair,
            f"{series[f'{pair}/encrypted'].median:.3f} s",
            f"{series[f'{pair}/plain'].median:.3f} s ({_PLAIN[pair]})",
            f"{series[f'{pair}/encrypted'].median / series[f'{pair}/plain'].median:.2f}",
            series[f"{pair}/encrypted"].spread,
        )
        for pair in candidates
    ]
    return (
        f"## A ready model of {size_bytes / 2**20:,.0f} MiB\n\n"
        f"{rounds} rounds, interleaved; ciphertext in the cache, plain files in the page cache;\n"
        "lease, decryption and loading included; every weight is touched on both sides. What\n"
        "maps a file copies no byte of it until it is written to; a decrypted model has memory\n"
        "of its own, which is compared with a plain one in memory of its own.\n\n"
        + table(("model", "encrypted", "plain", "ratio of time", "spread"), rows)
    )


Pair = tuple[Callable[[], object], Callable[[], object]]


def _numpy(
    home: Path, publisher: modelkms.Client, reader: modelkms.Client, size_bytes: int
) -> dict[str, Pair]:
    path = home / "numpy.safetensors"
    safetensors.numpy.save_file(_arrays(size_bytes), path)
    ref = publisher.push(path, "demo/numpy").version.reference

    def encrypted() -> None:
        _touch(reader.load(ref))

    return {
        "safetensors → numpy": (encrypted, lambda: _touch(safetensors.numpy.load_file(path))),
        "safetensors → numpy, from memory": (
            encrypted,
            lambda: _touch(safetensors.numpy.load(path.read_bytes())),
        ),
    }


def _onnx(
    home: Path, publisher: modelkms.Client, reader: modelkms.Client, size_bytes: int
) -> dict[str, Pair]:
    folder = home / "onnx"
    folder.mkdir()
    weights = numpy.ones(size_bytes // 4, dtype="<f4")
    model, data = adder_of(weights.tobytes(), external="weights.bin")
    (folder / "adder.onnx").write_bytes(model)
    (folder / "weights.bin").write_bytes(data)
    ref = publisher.push(folder, "demo/onnx").version.reference
    feed = {"x": weights}

    def use(session: Any) -> None:
        (output,) = session.run(None, feed)
        if output[-1] != 2.0:
            raise RuntimeError("a wrong answer")

    def from_memory() -> None:
        content = (folder / "weights.bin").read_bytes()
        options = onnxruntime.SessionOptions()
        options.add_external_initializers_from_files_in_memory(
            ["weights.bin"], [content], [len(content)]
        )
        use(onnxruntime.InferenceSession((folder / "adder.onnx").read_bytes(), options))

    def encrypted() -> None:
        use(reader.load(ref))

    return {
        "ONNX, external data": (encrypted, from_memory),
        "ONNX, external data, by path": (
            encrypted,
            lambda: use(onnxruntime.InferenceSession(folder / "adder.onnx")),
        ),
    }


def _torch(
    home: Path, publisher: modelkms.Client, reader: modelkms.Client, size_bytes: int
) -> dict[str, Pair]:
    import torch
    from safetensors.torch import load, load_file, save_file

    state = {name: torch.from_numpy(array) for name, array in _arrays(size_bytes).items()}
    save_file(state, home / "torch.safetensors")
    torch.save(state, home / "state.pt")
    refs = {
        name: publisher.push(home / name, f"demo/{Path(name).stem}").version.reference
        for name in ("torch.safetensors", "state.pt")
    }

    def touch(loaded: dict[str, Any]) -> None:
        sum(float(tensor.sum()) for tensor in loaded.values())

    def checkpoint() -> None:
        touch(reader.load(refs["state.pt"]))

    def from_bytes() -> None:
        content = io.BytesIO((home / "state.pt").read_bytes())
        touch(torch.load(content, weights_only=True))

    path = home / "torch.safetensors"

    def tensors() -> None:
        touch(reader.load(refs["torch.safetensors"], framework="torch"))

    def cloned() -> None:
        touch({name: tensor.clone() for name, tensor in load_file(path).items()})

    return {
        "safetensors → torch": (tensors, lambda: touch(load_file(path))),
        "safetensors → torch, memory of its own": (tensors, cloned),
        "safetensors → torch, from memory": (tensors, lambda: touch(load(path.read_bytes()))),
        ".pt → torch": (
            checkpoint,
            lambda: touch(torch.load(home / "state.pt", weights_only=True)),
        ),
        ".pt → torch, from memory": (checkpoint, from_bytes),
    }


def _arrays(size_bytes: int) -> dict[str, Any]:
    generator = numpy.random.default_rng(1)
    length = size_bytes // 4 // _TENSORS
    return {
        f"layer.{number}": generator.random(length, dtype=numpy.float32)
        for number in range(_TENSORS)
    }


def _touch(arrays: dict[str, Any]) -> None:
    sum(float(array.sum()) for array in arrays.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loading")
    parser.add_argument("--size-mib", type=int, default=512, help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelkms-bench-") as folder:
        text = run(Path(folder), options.size_mib * 2**20, options.rounds)
    sys.stdout.write(f"{describe_machine()}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
