"""What every `NoteSigner` and `CheckpointPlace` promises: real Vaults, a folder, an S3 server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import obstore
import pytest
from modelkms_api.object_store import connect

from kms_service.adapters.checkpoint_store import BucketCheckpointStore, FolderCheckpointStore
from kms_service.adapters.signed_note import open_note
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_session import VaultSession
from kms_service.adapters.vault_signing import VaultNoteSigner
from kms_service.development.vault_setup import CHECKPOINT_KEY
from kms_service.domain.errors import (
    ConfigurationError,
    SigningKeyMisconfigured,
    StorageUnavailable,
    VaultAccessRefused,
)
from kms_service.domain.ports import CheckpointPlace
from tests.support.s3_gateway import S3Gateway
from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

TEXT = "kms.example.org/audit\nmodelkms-audit-v1 checkpoint\n"


@pytest.fixture(params=["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)])
def vault(request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig]) -> VaultRig:
    return vault_of(request.param)


def signers(vault: VaultRig) -> Iterator[Callable[[str], VaultNoteSigner]]:
    keys = VaultMasterKeys(VaultSession(vault.settings()), "transit")
    with closing(keys):
        yield lambda key: keys.note_signer(key, "kms.example.org/audit")


signer = pytest.fixture(signers)


def test_vault_signs_notes_that_anybody_can_check(
    vault: VaultRig, signer: Callable[[str], VaultNoteSigner]
) -> None:
    ours = signer(CHECKPOINT_KEY)
    first = ours.sign(TEXT)
    before = ours.verifiers()
    assert open_note(first, before.values()) == TEXT
    # Rotated: old notes still verify, new ones are of the new key.
    vault.root.secrets.transit.rotate_key(CHECKPOINT_KEY)
    second = ours.sign(TEXT)
    after = ours.verifiers()
    assert len(after) == len(before) + 1
    assert open_note(second, [after[max(after)]]) == TEXT
    assert open_note(first, after.values()) == TEXT


def test_keys_that_cannot_sign(vault: VaultRig, signer: Callable[[str], VaultNoteSigner]) -> None:
    with pytest.raises(VaultAccessRefused):
        signer("audit-other").sign(TEXT)
    vault.make_key("modelkms-signs")
    with pytest.raises(SigningKeyMisconfigured):
        signer("modelkms-signs").verifiers()


def folder_store(tmp_path: Path) -> tuple[CheckpointPlace, Callable[[], dict[str, bytes]]]:
    folder = tmp_path / "kept"
    store = FolderCheckpointStore(folder)
    return store, lambda: {path.name: path.read_bytes() for path in folder.iterdir()}


def bucket_store(gateway: S3Gateway) -> tuple[CheckpointPlace, Callable[[], dict[str, bytes]]]:
    settings = gateway.make_bucket()
    bucket = connect(settings)

    def kept() -> dict[str, bytes]:
        names = [entry["path"] for page in obstore.list(bucket) for entry in page]
        return {name: bytes(obstore.get(bucket, name).bytes()) for name in names}

    return BucketCheckpointStore(settings), kept


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_what_is_shipped_is_kept_and_never_replaced(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store, kept = (
        folder_store(tmp_path)
        if kind == "folder"
        else bucket_store(request.getfixturevalue("s3_gateway"))
    )
    store.put("1.note", b"one")
    with pytest.raises(StorageUnavailable):
        store.put("1.note", b"two")
    store.put("2.note", b"three")
    assert kept() == {"1.note": b"one", "2.note": b"three"}
    assert store.get("2.note") == b"three"
    with pytest.raises(StorageUnavailable):
        store.get("3.note")


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_probe_leaves_no_checkpoint_and_one_object(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store, kept = (
        folder_store(tmp_path)
        if kind == "folder"
        else bucket_store(request.getfixturevalue("s3_gateway"))
    )
    for name in ("20261117T1.note", "20261118T1.note", "20261119T1.note"):
        store.put(name, b"a note")
    store.probe()
    store.probe()
    assert len(kept()) == 4
    assert store.names("2026", "9") == ["20261117T1.note", "20261118T1.note", "20261119T1.note"]
    assert store.names("20261117T1.note", "20261119T") == ["20261118T1.note"]
    assert store.names("A", "z") == []


def test_a_bucket_that_replaces_what_is_there_is_found(
    s3_gateway: S3Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that does not know `If-None-Match` would."""
    store, _ = bucket_store(s3_gateway)
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *where, mode: put(*where))
    with pytest.raises(ConfigurationError, match="conditional writes"):
        store.probe()


def test_a_bucket_that_is_not_there_is_an_outage(s3_gateway: S3Gateway) -> None:
    store = BucketCheckpointStore(s3_gateway.settings("no-such-bucket"))
    for act in (store.probe, lambda: store.names("1", "2"), lambda: store.get("1.note")):
        with pytest.raises(StorageUnavailable):
            act()


def test_a_folder_that_is_gone_is_an_outage(tmp_path: Path) -> None:
    store = FolderCheckpointStore(tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    with pytest.raises(StorageUnavailable):
        store.put("1.note", b"one")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"audit\.checkpoints\.folder"):
        FolderCheckpointStore(tmp_path / "file" / "kept")
