"""Loaders: from a pushed model to what a library makes of it, without plaintext on a disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modelkms
import numpy
import pytest
import safetensors.numpy
from modelkms import loaders
from modelkms.errors import (
    LibraryMissing,
    LocalDiskFull,
    MemberNotFound,
    MemoryStorageMissing,
    ModelClosed,
    ModelNotLoadable,
    UsageError,
)
from modelkms.loaders import HeldModel
from modelkms.loaders.huggingface import LoraAdapter
from modelkms.loaders.safetensors import SafetensorsFile
from modelkms.materialize import materialized
from modelkms.timings import STEPS

from tests.support.onnx_models import adder
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.support.tools import REPOSITORY
from tests.unit.usecases.real_parts import migrated_database

GUIDE = REPOSITORY / "docs" / "guides" / "loaders.md"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkWorld]:
    template = migrated_database(tmp_path_factory.mktemp("schema"))
    with sdk_world(tmp_path_factory.mktemp("world"), template) as world:
        yield world


@pytest.fixture(scope="module")
def publisher(service: SdkWorld) -> modelkms.Client:
    return service.client("publisher")


@pytest.fixture(scope="module")
def reader(service: SdkWorld) -> modelkms.Client:
    return service.client("reader")


@pytest.fixture
def push(publisher: modelkms.Client, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Push files as a model and give its reference: `push({"a/b": b"…"})`, or one by its name."""

    def pushed(files: dict[str, bytes], *, folder: bool = False) -> str:
        root = tmp_path / "model"
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        source = root if folder or len(files) > 1 else root / next(iter(files))
        model = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60].strip("-")
        return publisher.push(source, f"demo/{model}").version.reference

    return pushed


# --- ONNX ----------------------------------------------------------------------------------------


def run(session: Any, values: list[float]) -> list[float]:
    (output,) = session.run(None, {"x": numpy.array(values, dtype=numpy.float32)})
    return [float(value) for value in output]


def adder_files() -> dict[str, bytes]:
    model, weights = adder([1.0, 2.0], external="w.bin")
    return {"adder.onnx": model, "w.bin": weights}


def test_an_onnx_file(push: Any, reader: modelkms.Client) -> None:
    model, _ = adder([1.0, 2.0])
    session = reader.load(push({"adder.onnx": model}))
    assert run(session, [10.0, 20.0]) == [11.0, 22.0]


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("name", ["adder.onnx", "onnx/adder.onnx"])
def test_an_onnx_model_with_external_data(
    push: Any, reader: modelkms.Client, name: str, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder in memory, of which nothing stays; without room for one from memory."""
    used: list[dict[str, int]] = []

    @contextmanager
    def kept(sizes: dict[str, int], *arguments: Any, **options: Any) -> Iterator[Path]:
        if not room:
            raise LocalDiskFull("no room")
        with materialized(sizes, *arguments, **options) as folder:
            used.append(sizes)
            yield folder
        assert not folder.exists()

    monkeypatch.setattr("modelkms.opened.materialized", kept)
    values = [float(number) for number in range(4096)]
    model, weights = adder(values, external="weights/w.bin")
    folder = Path(name).parent
    ref = push(
        {
            name: model,
            (folder / "weights" / "w.bin").as_posix(): weights,
            "README.md": b"# not the model's",
        }
    )
    session = reader.load(ref)
    assert run(session, [1.0] * 4096) == [value + 1.0 for value in values]
    assert [sorted(sizes) for sizes in used] == (
        [sorted([name, (folder / "weights" / "w.bin").as_posix()])] if room else []
    )


def test_what_onnxruntime_refuses(push: Any, reader: modelkms.Client) -> None:
    with pytest.raises(ModelNotLoadable, match=r"onnxruntime refuses broken\.onnx"):
        reader.load(push({"broken.onnx": b"not a model"}))


def test_of_several_onnx_files_one_is_named(push: Any, reader: modelkms.Client) -> None:
    ref = push({"a.onnx": adder([1.0])[0], "b.onnx": adder([2.0])[0]})
    with pytest.raises(ModelNotLoadable):
        reader.load(ref)
    assert run(reader.load(ref, loader="onnx", file="b.onnx"), [1.0]) == [3.0]
    with pytest.raises(ModelNotLoadable, match=r"2 \.onnx files"):
        reader.load(ref, loader="onnx")


# --- safetensors ---------------------------------------------------------------------------------

ARRAYS: dict[str, Any] = {
    "layer.0.weight": numpy.arange(300_000, dtype=numpy.float32).reshape(600, 500),
    "layer.0.bias": numpy.array([1, -1], dtype=numpy.int64),
    "half": numpy.arange(7, dtype=numpy.float16),
    "scalar": numpy.array(3.5),
    "empty": numpy.zeros((0, 4), dtype=numpy.uint8),
    "mask": numpy.array([[True], [False]]),
}


def same(loaded: dict[str, Any], expected: dict[str, Any]) -> bool:
    return loaded.keys() == expected.keys() and all(
        loaded[name].dtype == expected[name].dtype
        and numpy.array_equal(loaded[name], expected[name])
        and loaded[name].shape == expected[name].shape
        for name in expected
    )


def test_safetensors_give_the_arrays_of_the_library(push: Any, reader: modelkms.Client) -> None:
    ref = push({"model.safetensors": safetensors.numpy.save(ARRAYS, {"format": "np"})})
    assert same(reader.load(ref), ARRAYS)
    some = reader.load(ref, tensors=["half", "scalar"])
    assert same(some, {name: ARRAYS[name] for name in ("half", "scalar")})
    loaded = reader.load(ref)["layer.0.weight"]
    loaded += 1  # the memory is ours alone
    with pytest.raises(ModelNotLoadable, match="no tensor 'none'"):
        reader.load(ref, tensors=["none"])
    with reader.open(ref) as model:
        file = SafetensorsFile(model)
        assert file.metadata == {"format": "np"}
        assert sorted(file.names()) == sorted(ARRAYS)
        assert numpy.array_equal(file.tensor("layer.0.bias"), [1, -1])
        with pytest.raises(ModelNotLoadable):
            file.tensor("none")


def test_shards_with_their_index(push: Any, reader: modelkms.Client) -> None:
    names = sorted(ARRAYS)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    files = {
        shard: safetensors.numpy.save({name: ARRAYS[name] for name in members})
        for shard, members in shards.items()
    }
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    assert same(reader.load(push(files)), ARRAYS)


def test_bfloat16_and_small_floats(push: Any, reader: modelkms.Client) -> None:
    header = json.dumps(
        {
            "b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
            "f": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [4, 5]},
        }
    ).encode()
    data = b"\x80\x3f\x00\x40" + b"\x38"
    loaded = reader.load(
        push({"model.safetensors": len(header).to_bytes(8, "little") + header + data})
    )
    assert [float(value) for value in loaded["b"]] == [1.0, 2.0]
    assert float(loaded["f"][0]) == 1.0


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (5).to_bytes(8, "little") + b"{nope",
        *(
            len(text).to_bytes(8, "little") + text + b"1234"
            for text in (
                json.dumps({"a": entry(dtype="X9")}).encode(),
                json.dumps({"a": entry(shape=[5])}).encode(),
                json.dumps({"a": entry(shape=[-4])}).encode(),
                json.dumps({"a": entry(shape=[True, 4])}).encode(),
                json.dumps({"a": entry(data_offsets=[1, 5])}).encode(),
                json.dumps({"a": entry(data_offsets=[0])}).encode(),
                json.dumps({"a": entry(), "b": entry()}).encode(),
                json.dumps({"a": entry(shape=[2], data_offsets=[0, 2])}).encode(),
                b'{"a":'
                + json.dumps(entry()).encode()
                + b',"a":'
                + json.dumps(entry()).encode()
                + b"}",
            )
        ),
    ],
    ids=range(13),
)
def test_what_is_no_safetensors_is_refused(
    push: Any, reader: modelkms.Client, content: bytes
) -> None:
    with pytest.raises(ModelNotLoadable):
        reader.load(push({"model.safetensors": content}))


@pytest.mark.parametrize(
    "index", [b"", b"{}", b'{"weight_map": 5}', b'{"weight_map": {"a": "../none.safetensors"}}']
)
def test_a_wrong_index_is_refused(push: Any, reader: modelkms.Client, index: bytes) -> None:
    ref = push({"model.safetensors.index.json": index, "other.bin": b""})
    with pytest.raises(ModelNotLoadable, match="index"):
        reader.load(ref)


# --- Hugging Face, LoRA, Core ML -----------------------------------------------------------------


def test_a_hugging_face_folder_is_a_path_until_it_is_closed(
    push: Any, reader: modelkms.Client
) -> None:
    files = {
        "config.json": b'{"model_type": "bert"}',
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors.numpy.save(ARRAYS),
    }
    with reader.load(push(files)) as held:
        assert isinstance(held, HeldModel)
        assert os.fspath(held).startswith("/dev/shm/")
        assert {path.name: path.read_bytes() for path in held.path.iterdir()} == files
        path = held.path
    assert not path.exists()
    with pytest.raises(ModelClosed):
        os.fspath(held)
    held.close()


def test_a_config_that_is_no_json_is_refused(push: Any, reader: modelkms.Client) -> None:
    with pytest.raises(ModelNotLoadable, match=r"config\.json"):
        reader.load(push({"config.json": b"[]", "model.safetensors": b""}))


def test_a_lora_adapter(push: Any, reader: modelkms.Client) -> None:
    arrays = {"base.lora_A.weight": ARRAYS["half"]}
    files = {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 8}',
        "adapter_model.safetensors": safetensors.numpy.save(arrays),
    }
    ref = push(files)
    adapter = reader.load(ref)
    assert isinstance(adapter, LoraAdapter)
    assert adapter.config["r"] == 8
    assert same(adapter.tensors, arrays)
    with reader.load(ref, path=True) as held:
        assert {path.name for path in held.path.iterdir()} == set(files)


def package(**changes: Any) -> dict[str, bytes]:
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            "A": {"path": "com.apple.CoreML/model.mlmodel"},
            "B": {"path": "com.apple.CoreML/weights"},
        },
        "rootModelIdentifier": "A",
    }
    return {
        "Manifest.json": json.dumps(manifest | changes).encode(),
        "Data/com.apple.CoreML/model.mlmodel": b"model",
        "Data/com.apple.CoreML/weights/weight.bin": b"weights",
    }


def test_a_core_ml_package_is_a_path(push: Any, reader: modelkms.Client) -> None:
    with reader.load(push(package())) as held:
        assert held.path.suffix == ".mlpackage"
        assert (held.path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes() == b"weights"


def test_a_path_where_there_is_no_memory_to_have_one_in(
    push: Any, service: SdkWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: refused, unless the profile allows a disk. What needs no path stays off it."""
    adding, core_ml = push(adder_files()), push(package())
    disk = tmp_path / "disk"
    monkeypatch.setattr("modelkms.materialize.is_memory_backed", lambda _: False)

    with pytest.raises(MemoryStorageMissing, match="no memory-backed folder") as caught:
        service.client("reader").load(core_ml)
    assert "insecure_plaintext_dir" in (caught.value.hint or "")

    allowed = service.client("reader", insecure_plaintext_dir=str(disk))
    assert run(allowed.load(adding), [1.0, 2.0]) == [2.0, 4.0]
    assert not disk.exists()
    with allowed.load(core_ml) as held:
        assert held.path.is_relative_to(disk)
        assert (held.path / "Data/com.apple.CoreML/model.mlmodel").read_bytes() == b"model"
    assert not held.path.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"rootModelIdentifier": "C"},
        {"rootModelIdentifier": "B"},
        {"itemInfoEntries": {"A": {"path": "com.apple.CoreML/none"}}},
        {"itemInfoEntries": 5},
    ],
)
def test_a_package_that_is_none_is_refused(
    push: Any, reader: modelkms.Client, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelNotLoadable, match=r"Manifest\.json"):
        reader.load(push(package(**changes)))


def test_a_real_core_ml_package_is_read_by_its_library(
    push: Any, reader: modelkms.Client, tmp_path: Path
) -> None:
    import coremltools
    from coremltools.models.neural_network import NeuralNetworkBuilder
    from coremltools.models.utils import save_spec

    features = [("x", coremltools.models.datatypes.Array(2))]
    builder = NeuralNetworkBuilder(features, [("y", coremltools.models.datatypes.Array(2))])
    builder.add_activation("relu", "RELU", "x", "y")
    target = tmp_path / "made.mlpackage"
    save_spec(builder.spec, str(target))
    files = {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }
    with reader.load(push(files)) as held:
        assert coremltools.models.utils.load_spec(str(held.path)) == builder.spec


# --- paths and bytes -----------------------------------------------------------------------------


def test_gguf_is_a_path_in_memory(push: Any, reader: modelkms.Client) -> None:
    content = b"GGUF" + os.urandom(700_000)
    with reader.load(push({"llm.bin": content})) as held:
        assert held.path.read_bytes() == content
        path = held.path
    assert not path.exists()


def test_what_is_no_gguf_by_its_content(push: Any, reader: modelkms.Client) -> None:
    ref = push({"llm.gguf": b"nothing"})
    assert reader.load(ref) == b"nothing"
    with pytest.raises(ModelNotLoadable, match="GGUF"):
        reader.load(ref, loader="gguf")


def test_a_path_is_valid_while_the_model_is_open(push: Any, reader: modelkms.Client) -> None:
    files = {"a.bin": os.urandom(300_000), "b/c.bin": b"", "d": b"d"}
    with reader.open(push(files)) as model:
        paths = {name: model.path(name) for name in files}
        assert {name: Path(path).read_bytes() for name, path in paths.items()} == files
        assert model.path("d") == paths["d"]
        with pytest.raises(MemberNotFound):
            model.path("none")
        with pytest.raises(MemberNotFound):
            model.path()
        with pytest.raises(PermissionError):
            Path(paths["d"]).write_bytes(b"changed")
    assert not any(Path(path).exists() for path in paths.values())
    with pytest.raises(ModelClosed):
        model.path("d")


def test_f52_memory_that_is_too_small_for_a_path_is_told(
    push: Any, reader: modelkms.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelkms.memory_file.available_memory", lambda: 10)
    with reader.open(push({"a.bin": b"x" * 11})) as model, pytest.raises(LocalDiskFull, match="11"):
        model.path()


def test_any_file_is_bytes(push: Any, reader: modelkms.Client) -> None:
    assert reader.load(push({"weights.xyz": b"anything"})) == b"anything"
    with pytest.raises(ModelNotLoadable, match="no loader knows"):
        reader.load(push({"weights.xyz": b"anything", "more.xyz": b""}))
    assert reader.load(push({"a": b"1", "b": b"2"}), loader="bytes", file="b") == b"2"


# --- choosing and adding -------------------------------------------------------------------------


class CsvLoader:
    name = "csv"

    def takes(self, model: modelkms.OpenedModel) -> bool:
        return model.files()[0].endswith(".csv")

    def load(self, model: modelkms.OpenedModel) -> list[str]:
        return model.read().decode().split(",")


class Impostor(CsvLoader):
    name = "onnx"


def installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    entry_point = importlib.metadata.EntryPoint(name, f"{__name__}:{name}", loaders.ENTRY_POINTS)
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [entry_point] * (group == loaders.ENTRY_POINTS),
    )


def test_an_installed_loader_is_asked_before_bytes(
    push: Any, reader: modelkms.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = push({"table.csv": b"a,b"})
    assert reader.load(ref) == b"a,b"
    installed(monkeypatch, "CsvLoader")
    assert reader.load(ref) == ["a", "b"]
    assert loaders.available()[-2:] == ["csv", "bytes"]


def test_an_installed_loader_takes_no_name_of_ours(
    push: Any, reader: modelkms.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "Impostor")
    with pytest.raises(UsageError, match="its name is taken"):
        reader.load(push({"table.csv": b"a,b"}))


def test_a_loader_that_is_not_there(push: Any, reader: modelkms.Client) -> None:
    with pytest.raises(UsageError, match="no loader 'none'"):
        reader.load(push({"a": b""}), loader="none")


def test_a_library_that_is_not_installed(
    push: Any, reader: modelkms.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"no module named {name}")

    ref = push({"adder.onnx": adder([1.0])[0]})
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(LibraryMissing) as told:
        reader.load(ref)
    assert told.value.hint == "pip install 'modelkms[onnx]'"


def test_load_with_a_client_of_its_own(
    push: Any, service: SdkWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = push({"llm": b"GGUF and more"})
    profile = tmp_path / "profile.toml"
    profile.write_text(
        "".join(
            f"{name} = {json.dumps(str(value))}\n"
            for name, value in service.profile("reader").items()
        )
    )
    with modelkms.load(ref, profile) as held:
        assert held.path.read_bytes() == b"GGUF and more"
    assert modelkms.load(ref, profile, loader="bytes") == b"GGUF and more"


def test_the_split_of_the_time_is_told(push: Any, reader: modelkms.Client) -> None:
    ref = push({"model.safetensors": safetensors.numpy.save(ARRAYS)})
    told: list[modelkms.Timings] = []
    reader.load(ref, trace=told.append)
    reader.load(ref, trace=told.append)
    for timings in told:
        assert timings.resolve_s == 0.0  # leasing finds the version too
        assert all(
            seconds > 0
            for seconds in (
                timings.lease_s,
                timings.download_s,
                timings.decrypt_s,
                timings.load_s,
            )
        )
    assert told[0].as_dict().keys() == {f"{step}_s" for step in STEPS}
    with reader.open(ref) as model:
        before = model.timings
        model.read()
        assert model.timings.decrypt_s > before.decrypt_s
        assert model.timings.lease_s == before.lease_s
        assert str(before).startswith("resolve 0.000 s, lease ")


def test_the_guide(reader: modelkms.Client, publisher: modelkms.Client, tmp_path: Path) -> None:
    """Its commands run, one after the other."""
    gguf = tmp_path / "speech" / "model.gguf"
    llm = tmp_path / "llm"
    for path, content in {
        tmp_path / "digits.onnx": adder([1.0])[0],
        tmp_path / "weights.safetensors": safetensors.numpy.save(
            ARRAYS | {"layer.0.bias": ARRAYS["half"]}
        ),
        llm / "config.json": b"{}",
        llm / "model.safetensors": safetensors.numpy.save(ARRAYS),
        gguf: b"GGUF",
        gguf.with_name("README.md"): b"",
    }.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for name, source in {
        "digits": "digits.onnx",
        "weights": "weights.safetensors",
        "llm": "llm",
        "speech": "speech",
    }.items():
        publisher.push(tmp_path / source, f"demo/{name}")

    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"client": reader}
    for block in blocks:
        exec(re.sub('(["/])camera/', r"\1demo/", block), names)  # the project of the tests
    assert names["names"] == ["y"]
    assert names["two"].keys() == {"layer.0.bias", "layer.0.weight"}
    assert (names["config"], names["magic"]) == ("{}", b"GGUF")
    assert isinstance(names["CsvLoader"](), loaders.Loader)
    assert names["listing"] == ["demo/llm/config.json", "demo/llm/model.safetensors"]
    assert len(blocks) == 8
