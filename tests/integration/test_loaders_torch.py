"""Loaders of PyTorch tensors (make test-torch)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modelkms.errors import LocalDiskFull, ModelNotLoadable

from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    return torch


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkWorld]:
    template = migrated_database(tmp_path_factory.mktemp("schema"))
    with sdk_world(tmp_path_factory.mktemp("world"), template) as world:
        yield world


def pushed(service: SdkWorld, path: Path) -> str:
    return service.client("publisher").push(path, f"demo/{path.stem}").version.reference


def test_a_checkpoint_gives_its_tensors(service: SdkWorld, torch: Any, tmp_path: Path) -> None:
    state = torch.nn.Linear(300, 200).state_dict()
    torch.save(state, tmp_path / "linear.pt")
    loaded = service.client("reader").load(pushed(service, tmp_path / "linear.pt"))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    loaded["bias"] += 1  # tensors outlive the model, and are ours alone


def test_a_checkpoint_of_the_old_form(service: SdkWorld, torch: Any, tmp_path: Path) -> None:
    state = {"w": torch.arange(5)}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = service.client("reader").load(pushed(service, tmp_path / "old.pth"))
    assert torch.equal(loaded["w"], state["w"])


@pytest.mark.parametrize("new_form", [True, False])
def test_a_checkpoint_that_could_run_code_is_refused(
    service: SdkWorld, torch: Any, tmp_path: Path, new_form: bool
) -> None:
    path = tmp_path / f"objects-{new_form}.pt".lower()
    torch.save({"w": _Runs(tmp_path / "ran")}, path, _use_new_zipfile_serialization=new_form)
    with pytest.raises(ModelNotLoadable, match="torch refuses"):
        service.client("reader").load(pushed(service, path))
    assert not (tmp_path / "ran").exists()


def test_what_is_ours_to_say_is_not_blamed_on_the_checkpoint(
    service: SdkWorld, torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "roomy.pt")
    reference = pushed(service, tmp_path / "roomy.pt")
    monkeypatch.setattr("modelkms.memory_file.available_memory", lambda: 10)
    with pytest.raises(LocalDiskFull):
        service.client("reader").load(reference)


def test_without_files_in_memory_tensors_are_copied(
    service: SdkWorld, torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    torch.save({"w": torch.ones(3)}, tmp_path / "copied.pt")
    reference = pushed(service, tmp_path / "copied.pt")
    monkeypatch.delattr("os.memfd_create")
    loaded = service.client("reader").load(reference)
    assert torch.equal(loaded["w"], torch.ones(3))


class _Runs:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def test_safetensors_as_tensors(service: SdkWorld, torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {
        "w": torch.randn(300, 500),
        "b": torch.randn(7).to(torch.bfloat16),
        "n": torch.tensor(5),
        "e": torch.zeros(0, 3),
    }
    save_file(state, tmp_path / "both.safetensors")
    loaded = service.client("reader").load(
        pushed(service, tmp_path / "both.safetensors"), framework="torch"
    )
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_bytes_are_for_torch_too(service: SdkWorld, torch: Any, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.bin")
    content = service.client("reader").load(pushed(service, tmp_path / "plain.bin"))
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert torch.equal(loaded["w"], torch.ones(3))
