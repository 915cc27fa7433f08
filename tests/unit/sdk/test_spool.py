"""The spool: whole or worthless, locked by its user, swept when forgotten."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from modelkms.errors import CacheUnsafe, PushInProgress
from modelkms.spool import SpooledPush, claimed, spool_key

KEY = spool_key("kms.example:8443", "spiffe://test.example/p", "/source", "projects/p/models/m")
PUSH = SpooledPush("request", "projects/p/models/m/versions/1", "state-1", 5, "11" * 32, "22" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


def leave_whole(folder: Path) -> None:
    with claimed(folder, KEY, PUSH.source) as spool:
        with spool.create() as file:
            file.write(b"12345")
        spool.complete(PUSH)


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_a_whole_spool_is_found_again(folder: Path) -> None:
    leave_whole(folder)
    assert names(folder) == [".artifact", ".json", ".lock"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    with claimed(folder, KEY, PUSH.source) as spool:
        assert spool.whole() == PUSH
        assert PUSH.pin.length_bytes == 5
        with spool.open() as file:
            assert file.read() == b"12345"
        spool.clear()
    assert names(folder) == []


@pytest.mark.parametrize("source", ["state-2", ""])
def test_a_spool_of_another_state_of_the_source_is_thrown_away(folder: Path, source: str) -> None:
    leave_whole(folder)
    with claimed(folder, KEY, source) as spool:
        assert spool.whole() is None
    assert names(folder) == []


def test_f50_half_a_spool_is_thrown_away(folder: Path) -> None:
    with claimed(folder, KEY, PUSH.source) as spool:
        spool.create().close()
    assert names(folder) == []
    leave_whole(folder)
    (artifact,) = folder.glob("*.artifact")
    artifact.write_bytes(b"1234")
    with claimed(folder, KEY, PUSH.source) as spool:
        assert spool.whole() is None


@pytest.mark.parametrize(
    "state", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "request_id": "x"}', "null", "1"]
)
def test_a_damaged_state_is_none(folder: Path, state: str) -> None:
    leave_whole(folder)
    (file,) = folder.glob("*.json")
    file.write_text(state)
    with claimed(folder, KEY, PUSH.source) as spool:
        assert spool.whole() is None


def test_a_planted_state_is_not_followed(folder: Path, tmp_path: Path) -> None:
    leave_whole(folder)
    (file,) = folder.glob("*.json")
    (tmp_path / "planted").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "planted")
    with claimed(folder, KEY, PUSH.source) as spool:
        assert spool.whole() is None
    folder.chmod(0o777)
    with pytest.raises(CacheUnsafe), claimed(folder, KEY, PUSH.source):
        pytest.fail("not entered")


def test_pushes_at_the_same_time_have_slots_of_their_own(folder: Path) -> None:
    leave_whole(folder)
    with ExitStack() as stack:
        spools = [stack.enter_context(claimed(folder, KEY, PUSH.source)) for _ in range(16)]
        assert len({spool.path for spool in spools}) == 16
        assert [spool.whole() for spool in spools] == [PUSH] + [None] * 15
        with pytest.raises(PushInProgress), claimed(folder, KEY, PUSH.source):
            pytest.fail("not entered")


def test_no_secret_is_in_the_state(folder: Path) -> None:
    leave_whole(folder)
    (file,) = folder.glob("*.json")
    assert set(json.loads(file.read_text())) == {
        "format",
        "request_id",
        "version",
        "source",
        "length_bytes",
        "floe_header_tag",
        "digest",
    }


def test_forgotten_spools_are_swept(folder: Path) -> None:
    leave_whole(folder)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    with claimed(folder, spool_key("another"), "state") as spool:
        assert spool.whole() is None
        assert names(folder) == [".lock"]


def test_keys_tell_apart_what_is_pushed_where() -> None:
    assert spool_key("a", "bc") != spool_key("ab", "c")
