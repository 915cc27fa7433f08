"""The vectors of the artifact format (docs/spec/artifact-v1.md §10), read by our reader.

tests/integration/test_interop.py has the same read by the one in Go.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
from modelkms.artifact import ArtifactPin, ArtifactReader, Expected, pin_of
from modelkms.errors import ArtifactMismatch, ModelKmsError

from tests.support import artifact_vectors

VECTORS = Path(__file__).parents[2] / "vectors" / "artifact-v1"
INDEX = json.loads((VECTORS / "index.json").read_text())
SPECIFICATION = (Path(__file__).parents[3] / INDEX["specification"]).read_text()

_NOT_SHOWN_BY_A_FILE = {
    "AF-19": "what a writer refuses: test_source.py",
    "AF-23": "what a reader does while it writes files: below, for every invalid file",
    "AF-24": "what the service does",
    "AF-27": "what a reader says",
}


def named(vector: dict[str, Any]) -> str:
    return str(vector["file"])


def opened(vector: dict[str, Any], *, check_digest: bool = True) -> ArtifactReader:
    """As a reader opens what it fetched from a store (artifact-v1 §7)."""
    expected, path = vector["expected"], VECTORS / vector["file"]
    pin = expected["pin"] and ArtifactPin(
        expected["pin"]["length_bytes"],
        bytes.fromhex(expected["pin"]["floe_header_tag"]),
        bytes.fromhex(expected["pin"]["digest"]),
    )
    reader = ArtifactReader(
        path,
        bytes.fromhex(vector["key"]),
        Expected(expected["version"], expected["version_uid"], expected["artifact_id"], pin),
    )
    if pin and check_digest and not hmac.compare_digest(pin_of(path).digest, pin.digest):
        reader.close()
        raise ArtifactMismatch("the digest is another")
    return reader


@pytest.mark.parametrize("vector", INDEX["valid"], ids=named)
def test_a_valid_file_opens(vector: dict[str, Any], tmp_path: Path) -> None:
    with opened(vector) as reader:
        found = [
            {
                "name": name,
                "size_bytes": reader.size(name),
                "sha256": hashlib.sha256(reader.read(name)).hexdigest(),
            }
            for name in reader.files()
        ]
        assert found == vector["files"]
        for part in vector["ranges"]:
            with reader.open(part["member"]) as file:
                assert file.pread(part["length"], part["offset"]).hex() == part["content"]
                file.seek(part["offset"])
                assert file.read(part["length"]).hex() == part["content"]
        reader.verify()
        reader.extract_to(tmp_path / "out")
    for member in vector["files"]:
        content = (tmp_path / "out" / member["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == member["sha256"]


@pytest.mark.parametrize("vector", INDEX["invalid"], ids=named)
def test_an_invalid_file_is_refused_for_its_reason_and_nothing_is_written(
    vector: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelKmsError) as caught, opened(vector) as reader:
        reader.extract_to(tmp_path / "out")
    assert caught.value.reason == vector["error"]
    assert not (tmp_path / "out").exists()


def test_every_requirement_that_a_file_can_show_has_one() -> None:
    required = set(re.findall(r"^- \*\*(AF-\d+)\*\*", SPECIFICATION, re.MULTILINE))
    shown = {vector["requirement"] for vector in INDEX["valid"] + INDEX["invalid"]}
    refused = {vector["requirement"] for vector in INDEX["invalid"]}

    assert shown | set(_NOT_SHOWN_BY_A_FILE) == required
    assert refused == required - set(_NOT_SHOWN_BY_A_FILE)


def test_the_generator_makes_these_files(tmp_path: Path) -> None:
    artifact_vectors.main(tmp_path)

    def files(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    assert files(tmp_path) == files(VECTORS)
