"""What we encrypt is read by something not of our making: a Go program that knows the
specifications and Go's standard library, and shares no code with us."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.duration_pb2 import Duration
from modelkms.artifact import ArtifactPin
from modelkms.key_transport import Binding, KeyTransport
from modelkms_api import key_transport as layout
from modelkms_api.v1.key_transport_pb2 import EncryptedDataKey, TransportSession

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.domain import ports
from kms_service.domain.secret import SecretBytes
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.support.server import TRUST_DOMAIN
from tests.support.tools import go_binary, go_environment
from tests.unit.artifact.helpers import (
    ARTIFACT_ID,
    KEY,
    OTHER_KEY,
    UID,
    VERSION,
    folder_of,
    sealed,
    written,
    zip_of,
)
from tests.unit.usecases.real_parts import migrated_database

MODULE = Path(__file__).parents[1] / "interop"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "key-transport-v1.json").read_text())
ARTIFACTS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "artifact-v1" / "index.json").read_text()
)
PRINCIPAL = "spiffe://demo.example/reader"

Json = dict[str, object]
K = TypeVar("K")


class Interop:
    def __init__(self, program: Path) -> None:
        self._program = program

    def ask(self, command: str, document: object) -> Json:
        done = subprocess.run(
            [self._program, command],
            input=json.dumps(document),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        answer: Json = json.loads(done.stdout)
        assert done.returncode == ("error" in answer), done.stderr
        return answer

    def read(self, artifact: bytes, folder: Path, **request: object) -> Json:
        """The answer to `read-artifact`, everything expected as it was written."""
        path = folder / "artifact"
        path.write_bytes(artifact)
        expected = {"version": VERSION, "version_uid": UID, "artifact_id": ARTIFACT_ID}
        return self.ask(
            "read-artifact", {"file": str(path), "key": KEY.hex(), **expected, **request}
        )


@pytest.fixture(scope="module")
def interop(tmp_path_factory: pytest.TempPathFactory) -> Interop:
    program = tmp_path_factory.mktemp("interop") / "interop"
    subprocess.run(
        [go_binary(), "build", "-mod=readonly", "-o", program, "."],
        cwd=MODULE,
        env={**go_environment(), "CGO_ENABLED": "0", "GOFLAGS": "", "GOPROXY": "off"},
        check=True,
    )
    return Interop(program)


def test_the_go_program_is_vetted() -> None:
    environment = {**go_environment(), "GOPROXY": "off"}
    subprocess.run([go_binary(), "vet", "./..."], cwd=MODULE, env=environment, check=True)


# --- artifacts -----------------------------------------------------------------------------------


def pin_document(pin: ArtifactPin) -> Json:
    return {
        "length_bytes": pin.length_bytes,
        "floe_header_tag": pin.floe_header_tag.hex(),
        "digest": pin.digest.hex(),
    }


def digests(files: dict[str, bytes]) -> list[Json]:
    return [
        {
            "name": name,
            "size_bytes": len(files[name]),
            "sha256": hashlib.sha256(files[name]).hexdigest(),
        }
        for name in sorted(files, key=str.encode)
    ]


@pytest.mark.parametrize("segment_length", [4096, 64 << 10, 256 << 10])
@pytest.mark.parametrize("size", [0, 1, 4064, 4065, 9_000_000])
def test_a_file(interop: Interop, size: int, segment_length: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    artifact, pin = written(path, segment_length_bytes=segment_length)
    start, length = size // 3, size // 2

    answer = interop.read(
        artifact,
        tmp_path,
        pin=pin_document(pin),
        ranges=[{"member": "model.onnx", "offset": start, "length": length}],
    )

    assert answer == {
        "version": VERSION,
        "payload_kind": 1,
        "files": digests({"model.onnx": content}),
        "ranges": [
            {
                "content": content[start : start + length].hex(),
                "segments": segments_of(start, length, segment_length),
            }
        ],
    }


def test_a_folder(interop: Interop, tmp_path: Path) -> None:
    files = {
        "Manifest.json": b"{}",
        "Data/empty": b"",
        "Data/weights/é.bin": random.Random(1).randbytes(700_000),
        **{f"many/{number:04}": b"%d" % number for number in range(500)},
    }
    artifact, pin = written(folder_of(tmp_path / "model", files))

    answer = interop.read(
        artifact,
        tmp_path,
        pin=pin_document(pin),
        ranges=[{"member": "Data/weights/é.bin", "offset": 300_000, "length": 5000}],
    )

    assert answer == {
        "version": VERSION,
        "payload_kind": 2,
        "files": digests(files),
        "ranges": [{"content": files["Data/weights/é.bin"][300_000:305_000].hex(), "segments": 3}],
    }


def segments_of(start: int, length: int, segment_length: int) -> int:
    """How many segments hold a part of a file."""
    capacity = segment_length - 32
    return (start + length - 1) // capacity - start // capacity + 1 if length else 0


@pytest.mark.parametrize("vector", ARTIFACTS["valid"], ids=lambda vector: vector["file"])
def test_a_valid_vector_opens(interop: Interop, vector: Json) -> None:
    request = vector_request(vector)

    answer = interop.ask("read-artifact", request)
    at_random = interop.ask(
        "read-artifact", {**request, "ranges": request["ranges"][::-1], "ranges_only": True}
    )

    assert answer["files"] == vector["files"]
    wanted = [part["content"] for part in vector["ranges"]]  # type: ignore[attr-defined]  # a list
    assert [part["content"] for part in answer["ranges"]] == wanted  # type: ignore[attr-defined]
    assert [part["content"] for part in at_random["ranges"]] == wanted[::-1]  # type: ignore[attr-defined]
    assert at_random["files"] is None


@pytest.mark.parametrize("vector", ARTIFACTS["invalid"], ids=lambda vector: vector["file"])
def test_an_invalid_vector_is_refused(interop: Interop, vector: Json) -> None:
    assert interop.ask("read-artifact", vector_request(vector))["error"] == vector["error"]


def vector_request(vector: Json) -> Any:
    folder = Path(__file__).parents[1] / "vectors" / "artifact-v1"
    return {
        "file": str(folder / str(vector["file"])),
        "key": vector["key"],
        **vector["expected"],  # type: ignore[dict-item]  # a dict
        "ranges": vector.get("ranges", []),
    }


def test_both_readers_refuse_the_same(interop: Interop, tmp_path: Path) -> None:
    artifact, pin = written(folder_of(tmp_path / "model", {"a": b"x" * 5000, "b": b"y"}))
    flipped = artifact[:2000] + bytes([artifact[2000] ^ 1]) + artifact[2001:]

    def reason(artifact: bytes, **request: object) -> object:
        return interop.read(artifact, tmp_path, **request)["error"]

    assert reason(flipped) == "ARTIFACT_CORRUPT"
    assert reason(flipped, pin=pin_document(pin)) == "ARTIFACT_MISMATCH"  # by the digest
    assert reason(artifact[:-1]) == "ARTIFACT_CORRUPT"
    assert reason(artifact + b"\0") == "ARTIFACT_CORRUPT"
    assert reason(artifact, key=OTHER_KEY.hex()) == "ARTIFACT_CORRUPT"
    assert reason(artifact, version_uid="0" * 32) == "ARTIFACT_MISMATCH"
    other, _ = written(tmp_path / "model")
    assert reason(other, pin=pin_document(pin)) == "ARTIFACT_MISMATCH"
    assert reason(artifact.replace(b"versions/3", b"versions/4"), version="") == "ARTIFACT_CORRUPT"
    for archive in (zip_of("a"), zip_of("../a"), b"", os.urandom(500)):
        assert reason(sealed(archive)) == "ARCHIVE_REJECTED"


# --- key answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_a_recorded_answer(interop: Interop, vector: Json) -> None:
    """With the KEM's one seed where there is one, and with its two keys."""
    parts = ("data_key", "session_secret", "info", "aad")
    keys = vector["private_key"]
    assert isinstance(keys, dict)
    for private_key in (keys, {name: keys[name] for name in keys if name != "seed"}):
        answer = interop.ask("open-answer", {**vector, "private_key": private_key})
        assert {part: answer[part] for part in parts} == {part: vector[part] for part in parts}


@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize("purpose", [layout.PURPOSE_LEASE, layout.PURPOSE_PUBLISH])
def test_an_answer_of_the_service_to_an_offer_of_the_client(
    interop: Interop, hybrid: bool, purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's real encryption to the client's real offer, opened by Go and by the client."""
    quantum, classic = Recorded(MLKEM768PrivateKey.generate), Recorded(X25519PrivateKey.generate)
    monkeypatch.setattr("modelkms.key_transport.MLKEM768PrivateKey", quantum)
    monkeypatch.setattr("modelkms.key_transport.X25519PrivateKey", classic)
    offer, data_key = KeyTransport(hybrid=hybrid).offer(), os.urandom(32)
    private_key = {"x25519": classic.made[0].private_bytes_raw().hex()}
    if hybrid:
        private_key["mlkem_seed"] = quantum.made[0].private_bytes_raw().hex()
    is_lease = purpose == layout.PURPOSE_LEASE
    lease = "projects/camera/leases/" + "1e" * 16 if is_lease else ""
    pin = ArtifactPin(5_000_000_000, os.urandom(32), os.urandom(32)) if is_lease else None
    duration = timedelta(hours=1, milliseconds=7) if is_lease else timedelta()
    pin_bytes = (
        layout.pin_bytes(
            length_bytes=pin.length_bytes, floe_header_tag=pin.floe_header_tag, digest=pin.digest
        )
        if pin
        else b""
    )

    encrypted = HpkeKeyTransport().encrypt(
        SecretBytes(data_key),
        PRINCIPAL,
        ports.ClientKey(offer.message.suite, offer.message.public_key, offer.message.request_nonce),
        ports.KeyAnswerBinding(purpose, lease, UID, pin_bytes, duration),
    )
    opened = interop.ask(
        "open-answer",
        {
            "suite": offer.message.suite,
            "private_key": private_key,
            "client_key": {
                "public_key": offer.message.public_key.hex(),
                "request_nonce": offer.message.request_nonce.hex(),
            },
            "principal": PRINCIPAL,
            "binding": {
                "purpose": purpose,
                "lease": lease,
                "version_uid": UID,
                "pin": pin_document(pin) if pin else None,
                "lease_duration_ms": duration // timedelta(milliseconds=1),
            },
            "answer": {
                "session_id": encrypted.session_id.hex(),
                "encrypted_secret": encrypted.encrypted_secret.hex(),
                "nonce": encrypted.nonce.hex(),
                "ciphertext": encrypted.ciphertext.hex(),
            },
        },
    )
    seconds = Duration()
    seconds.FromTimedelta(duration)
    by_client = offer.open(
        EncryptedDataKey(
            session=TransportSession(
                suite=offer.message.suite,
                session_id=encrypted.session_id,
                encrypted_secret=encrypted.encrypted_secret,
            ),
            nonce=encrypted.nonce,
            ciphertext=encrypted.ciphertext,
        ),
        Binding(purpose, PRINCIPAL, UID, lease, pin_bytes, seconds if is_lease else None),
    )

    assert opened["data_key"] == data_key.hex() == by_client.reveal().hex()


class Recorded(Generic[K]):
    """Stands where a kind of key is made, and keeps what was made: clients never show it."""

    def __init__(self, generate: Callable[[], K]) -> None:
        self._generate = generate
        self.made: list[K] = []

    def generate(self) -> K:
        self.made.append(self._generate())
        return self.made[-1]


def test_a_changed_answer_is_refused(interop: Interop) -> None:
    for vector in VECTORS["vectors"]:
        assert vector["invalid"]
        for change in vector["invalid"]:
            changed = json.loads(json.dumps(vector))
            *parents, field = change["field"].split(".")
            place = changed
            for parent in parents:
                place = place[parent]
            place[field] = change["value"]
            assert "error" in interop.ask("open-answer", changed), change


# --- a whole client ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkWorld]:
    folder = tmp_path_factory.mktemp("service")
    with sdk_world(folder, migrated_database(tmp_path_factory.mktemp("template"))) as world:
        yield world


def wish(service: SdkWorld, who: str, name: str, **changes: object) -> Json:
    profile = service.profile(who)
    files = {key: str(profile[key]) for key in ("ca_file", "certificate_file", "key_file")}
    return {
        "endpoint": profile["endpoint"],
        "principal": f"spiffe://{TRUST_DOMAIN}/{who}",
        "name": f"projects/demo/models/{name}",
        "suite": 1,
        "leases": 1,
        **files,
        **changes,
    }


@pytest.mark.parametrize("suite", [1, 2])
def test_a_client_in_go_opens_a_model_over_grpc(
    interop: Interop, service: SdkWorld, suite: int, tmp_path: Path
) -> None:
    """Its own key pair, its own gRPC, its own reader; three leases in one session."""
    files = {"weights.bin": random.Random(3).randbytes(700_000), "labels": b"cat\ndog\n"}
    pushed = service.client("publisher").push(folder_of(tmp_path / "model", files), f"go-{suite}")

    answer = interop.ask(
        "open-model", wish(service, "reader", f"go-{suite}", suite=suite, leases=3)
    )

    assert answer["version"] == pushed.version.name
    contents, leases, sessions = answer["contents"], answer["leases"], answer["sessions"]
    assert isinstance(contents, dict)
    assert isinstance(leases, list)
    assert isinstance(sessions, list)
    assert contents["files"] == digests(files)
    assert (len(set(leases)), len(sessions)) == (3, 1)
    issued = {info.name for info in service.client("security").list_leases(model=f"go-{suite}")}
    assert set(leases) <= issued


def test_a_client_in_go_is_refused_as_any_other(
    interop: Interop, service: SdkWorld, tmp_path: Path
) -> None:
    service.client("publisher").push(folder_of(tmp_path / "model", {"a": b"x"}), "go-refused")
    refused = interop.ask("open-model", wish(service, "stranger", "go-refused"))
    assert refused["error"] == "GRPC_5"  # NOT_FOUND
    lying = wish(service, "reader", "go-refused", principal=PRINCIPAL)
    assert interop.ask("open-model", lying)["error"] == "KEY_ANSWER_INVALID"
