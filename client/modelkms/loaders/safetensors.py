"""Safetensors, tensor by tensor: decrypted into memory that the arrays are made on.

The format is read here: the library maps a file, or copies from bytes. A header is taken only if it
is wholly right: offsets without gap or overlap, lengths that fit shape and type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from modelkms.errors import ModelNotLoadable
from modelkms.loaders import require
from modelkms.opened import OpenedModel

Framework = Literal["numpy", "torch"]

_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
_MAX_INDEX_BYTES = 100_000_000

# By the format's name: bytes an element, numpy's name (None: none of its own), torch's name.
_TYPES: Mapping[str, tuple[int, str | None, str]] = {
    "BOOL": (1, "bool", "bool"),
    "U8": (1, "uint8", "uint8"),
    "I8": (1, "int8", "int8"),
    "I16": (2, "<i2", "int16"),
    "U16": (2, "<u2", "uint16"),
    "F16": (2, "<f2", "float16"),
    "BF16": (2, None, "bfloat16"),
    "I32": (4, "<i4", "int32"),
    "U32": (4, "<u4", "uint32"),
    "F32": (4, "<f4", "float32"),
    "F64": (8, "<f8", "float64"),
    "I64": (8, "<i8", "int64"),
    "U64": (8, "<u8", "uint64"),
    "C64": (8, "<c8", "complex64"),
    "F8_E4M3": (1, None, "float8_e4m3fn"),
    "F8_E5M2": (1, None, "float8_e5m2"),
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


class SafetensorsLoader:
    """Safetensors, one file or shards with their index: a dict of arrays by name."""

    name = "safetensors"

    def takes(self, model: OpenedModel) -> bool:
        files = model.files()
        return any(name.endswith(_INDEX_SUFFIX) for name in files) or (
            sum(name.endswith(_SUFFIX) for name in files) == 1
        )

    def load(
        self,
        model: OpenedModel,
        *,
        framework: Framework = "numpy",
        tensors: Iterable[str] | None = None,
        file: str | None = None,
    ) -> dict[str, Any]:
        """
        Args:
            framework: what the arrays are of. Numpy has no bfloat16 and 8-bit floats of its own:
                those are of `ml_dtypes`, if that is installed.
            tensors: only these; None: all.
            file: which file, where there are several and no index.

        Raises:
            ModelNotLoadable: the files are no safetensors, or have no such tensor.
        """
        make = _maker(framework)
        by_file = {file: None} if file else _files(model)
        wanted = None if tensors is None else set(tensors)
        loaded: dict[str, Any] = {}
        for name, of_index in by_file.items():
            opened = SafetensorsFile(model, name)
            names = opened.names() if of_index is None else of_index
            for tensor, view, info in opened.views(
                each for each in names if wanted is None or each in wanted
            ):
                loaded[tensor] = make(view, info)
        if wanted is not None and (missing := sorted(wanted - loaded.keys())):
            raise ModelNotLoadable(f"the model has no tensor {missing[0]!a}")
        return loaded


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`dtype` as the format names it; `offset` and `length` in bytes, in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class SafetensorsFile:
    """One file of a model. Its header is read and checked now, a tensor when it is asked for.

    Attributes:
        metadata: what the file says of itself.
    """

    def __init__(self, model: OpenedModel, file: str | None = None) -> None:
        self._model = model
        self._file = file
        self.metadata, self._tensors = _header(model, file)

    def names(self) -> list[str]:
        """Of the tensors, in the order of the file."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """
        Raises:
            ModelNotLoadable: no such tensor.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelNotLoadable(f"the model has no tensor {name!a}") from None

    def tensor(self, name: str, framework: Framework = "numpy") -> Any:
        """One tensor, decrypted now; nothing else of the file is."""
        ((_, view, info),) = self.views([name])
        return _maker(framework)(view, info)

    def views(self, names: Iterable[str]) -> list[tuple[str, memoryview, TensorInfo]]:
        """The plaintext of tensors: of all of them in one piece of memory, of some each in its
        own, so that what is kept keeps no more alive."""
        wanted = [(name, self.info(name)) for name in names]
        if len(wanted) < len(self._tensors):
            return [
                (name, self._model.memory(self._file, info.offset, info.length), info)
                for name, info in wanted
            ]
        if not wanted:
            return []
        start = min(info.offset for _, info in wanted)
        whole = self._model.memory(self._file, start)
        return [
            (name, whole[info.offset - start : info.offset - start + info.length], info)
            for name, info in wanted
        ]


def _files(model: OpenedModel) -> dict[str, list[str] | None]:
    """Files, and the tensors of each that the index names (None: no index, so all)."""
    files = model.files()
    indexes = [name for name in files if name.endswith(_INDEX_SUFFIX)]
    if len(indexes) == 1:
        return _shards(model, indexes[0])
    alone = [name for name in files if name.endswith(_SUFFIX)]
    if len(alone) != 1 or indexes:
        raise ModelNotLoadable(
            f"the model has {len(alone)} .safetensors files and {len(indexes)} indexes",
            hint="name one of them: file=…",
        )
    return {alone[0]: None}


def _shards(model: OpenedModel, index: str) -> dict[str, list[str] | None]:
    with model.open(index) as stream:
        text = stream.read(_MAX_INDEX_BYTES + 1)
    folder = PurePosixPath(index).parent
    by_file: dict[str, list[str] | None] = {}
    try:
        weight_map = json.loads(text)["weight_map"]
        for tensor, shard in weight_map.items():
            by_file.setdefault((folder / shard).as_posix(), []).append(tensor)  # type: ignore[union-attr]  # a list, or new
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotLoadable(f"{index} is no index of shards") from error
    if missing := sorted(by_file.keys() - set(model.files())):
        raise ModelNotLoadable(f"{index} names a file that the model does not have: {missing[0]!a}")
    return by_file


# --- the header ----------------------------------------------------------------------------------


def _header(model: OpenedModel, file: str | None) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    with model.open(file) as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) != 8 or not 2 <= length <= _MAX_HEADER_BYTES:
            raise ModelNotLoadable("the file is no safetensors: its header has no sane length")
        text = stream.read(length)
        size = stream.seek(0, 2)
    try:
        fields = json.loads(text, object_pairs_hook=_no_name_twice)
        metadata = fields.pop("__metadata__", {})
        tensors = {name: _info(value, 8 + length) for name, value in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotLoadable(f"the file is no safetensors: {error}") from error
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].length)):
        if info.offset != end:
            raise ModelNotLoadable(f"the file is no safetensors: {name!a} does not follow on")
        end += info.length
    if end != size:
        raise ModelNotLoadable("the file is no safetensors: it does not end with its last tensor")
    return metadata, tensors


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name comes twice")
    return fields


def _info(value: Mapping[str, Any], data_start: int) -> TensorInfo:
    dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    numbers = (*shape, start, end)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("shape and offsets are not all whole numbers")
    if dtype not in _TYPES:
        raise ValueError(f"unknown type {dtype!a}")
    if end - start != math.prod(shape) * _TYPES[dtype][0]:
        raise ValueError("a tensor's length does not fit its shape and type")
    return TensorInfo(dtype, shape, data_start + start, end - start)


# --- arrays --------------------------------------------------------------------------------------


def _maker(framework: Framework) -> Any:
    """view, info → array on that view."""
    if framework == "numpy":
        return _numpy_array
    if framework == "torch":
        return _torch_tensor
    raise ModelNotLoadable(f"unknown framework {framework!a}", hint="there are numpy and torch")


def _numpy_array(view: memoryview, info: TensorInfo) -> Any:
    numpy = require("numpy", "safetensors")
    name = _TYPES[info.dtype][1]
    if name is None:
        dtype = getattr(require("ml_dtypes", "safetensors"), _ML_DTYPES[info.dtype])
    else:
        dtype = numpy.dtype(name)
    return numpy.frombuffer(view, dtype=dtype).reshape(info.shape)


def _torch_tensor(view: memoryview, info: TensorInfo) -> Any:
    torch = require("torch", "torch")
    dtype = getattr(torch, _TYPES[info.dtype][2])
    if not info.length:  # frombuffer takes no empty buffer
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(view, dtype=dtype).reshape(info.shape)
