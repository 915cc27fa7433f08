"""rekey, exposure, destroy, admin destroy confirm, restore: what they tell."""

from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.cli.fake_client import READER, FakeService, lease


def test_rekey_tells_both_versions(cli: Cli) -> None:
    assert cli("rekey", "file@1").out == "demo/file@2: same content, new key; @1 disabled\n"
    assert cli("rekey", "file").code == 2


def test_exposure_lists_what_a_holder_has_had(cli: Cli, service: FakeService) -> None:
    service.leases = {each.name: each for each in (lease(1), lease(2, "EXPIRED"))}
    lines = cli("admin", "exposure", READER).out.splitlines()
    assert lines[0].split() == ["VERSION", "LEASES", "FIRST", "LAST", "NOW"]
    assert lines[1].startswith("demo/file@1")
    assert lines[1].endswith("holds it")
    assert cli("admin", "exposure", "spiffe://example.org/nobody").out == ""


def test_destroy_tells_until_when_and_who_is_next(cli: Cli) -> None:
    assert cli("destroy", "file@1").out.splitlines() == [
        "demo/file@1 is to be destroyed after 2026-12-23 08:47:55Z",
        "a second officer must confirm it: modelkms admin destroy confirm demo/file@1",
        "still pointed to by @stable: readers of that are refused from now on",
    ]
    told = cli("destroy", "file@1", "--in", "36h", "--delete-artifact", "--json").json()
    assert told["destruction"]["delete_artifact"] is True
    assert told["destruction"]["due_time"] == "2026-11-24T20:47:55+00:00"


def test_confirm_and_restore(cli: Cli) -> None:
    assert cli("admin", "destroy", "confirm", "file@1").out == (
        "confirmed: demo/file@1 is destroyed after 2026-12-23 08:47:55Z "
        "(until then: modelkms restore demo/file@1)\n"
    )
    assert cli("restore", "file@1").out == (
        "demo/file@1 is disabled (modelkms enable demo/file@1)\n"
    )


@pytest.mark.parametrize("words", [("destroy",), ("restore",), ("admin", "destroy", "confirm")])
def test_an_explicit_version_is_needed(cli: Cli, words: tuple[str, ...]) -> None:
    ended = cli(*words, "file")
    assert ended.code == 2
    assert "does not name a version" in ended.err


def test_a_wait_that_is_no_duration(cli: Cli) -> None:
    ended = cli("destroy", "file@1", "--in", "soon")
    assert (ended.code, "no duration" in ended.err) == (2, True)
