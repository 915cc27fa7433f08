"""`doctor`, and the commands it sends people back to, against the real service."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from modelkms.cli.__main__ import main

from kms_service.development.authority import DevelopmentAuthority
from tests.support.certificates import Issued, TestAuthority, uris
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.support.server import TRUST_DOMAIN
from tests.unit.usecases.real_parts import migrated_database


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkWorld]:
    template = migrated_database(tmp_path_factory.mktemp("schema"))
    with sdk_world(tmp_path_factory.mktemp("world"), template) as made:
        model = made.folder / "model.onnx"
        model.write_bytes(b"weights")
        made.client("publisher").push(model, "demo/doctored")
        yield made


@dataclass(frozen=True)
class Examined:
    code: int
    checks: list[dict[str, Any]]

    def failed(self) -> list[str]:
        return [check["check"] for check in self.checks if check["status"] == "failed"]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [check for check in self.checks if check["check"] == name]


Examine = Callable[..., Examined]


@pytest.fixture
def examine(world: SdkWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Examine:
    """`doctor` under an identity's profile, some fields of it changed."""

    def run(name: str, key_mode: int = 0o600, **changed: object) -> Examined:
        fields = {**world.profile(name), **changed}
        if (key_file := Path(str(fields["key_file"]))).exists():
            key_file.chmod(key_mode)
        profile = _write_profile(tmp_path, fields)
        code = main(["--profile", str(profile), "--json", "doctor"])
        told = json.loads(capfd.readouterr().out)
        assert told["exit_code"] == code
        assert told["healthy"] is (code == 0)
        for check in told["checks"]:
            assert check["status"] == "ok" or check["hint"], check  # always says what to do
        return Examined(code, told["checks"])

    return run


def test_all_is_well(examine: Examine) -> None:
    examined = examine("reader")
    assert examined.code == 0
    assert [check["check"] for check in examined.checks if check["check"] != "memory"] == [
        *("profile", "cache", "state", "identity", "certificate"),
        *("endpoint", "tls", "clock", "service", "policy", "policy", "clock"),
    ]
    # The clock of these tests' service is far ahead of this machine's.
    before, after = examined.of("clock")
    assert (before["status"], after["status"]) == ("ok", "warning")
    assert "one of the two clocks is wrong" in after["hint"]
    assert {check["status"] for check in examined.checks} <= {"ok", "warning"}
    assert examined.of("tls")[0]["message"].startswith("TLSv1.3")
    assert examined.of("policy")[1]["message"].endswith("demo/doctored@1")


def test_told_to_people(world: SdkWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    profile = _write_profile(tmp_path, {**world.profile("reader"), "endpoint": "localhost:1"})
    assert main(["--profile", str(profile), "doctor"]) == 5
    told = capfd.readouterr()
    assert re.search(r"^ok +identity +spiffe://test.example/reader$", told.out, re.MULTILINE)
    assert re.search(r"^failed +endpoint +nothing listens at localhost:1\n +\S", told.out, re.M)
    assert re.fullmatch(r"error: 1 of \d+ checks failed\n", told.err)


def test_a_stranger_sees_nothing(examine: Examine) -> None:
    examined = examine("stranger")
    assert (examined.code, examined.failed()) == (3, ["policy"])
    (told,) = examined.of("policy")
    assert re.search(r"\(decision [0-9a-f]{32}\)$", told["message"])


def test_the_watch_port_is_tried_too(world: SdkWorld, examine: Examine) -> None:
    examined = examine("reader", watch_endpoint=f"localhost:{world.server.port}")
    assert [check["status"] for check in examined.of("watch")] == ["ok"]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    examined = examine("reader", watch_endpoint=f"localhost:{port}")
    (told,) = examined.of("watch")
    assert (examined.code, told["status"]) == (0, "warning")
    assert f"nothing listens at localhost:{port}" in told["message"]
    assert examine("reader").of("watch") == []


def test_no_profile(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", str(tmp_path / "none.toml"), "doctor", "--json"]) == 2
    (check,) = json.loads(capfd.readouterr().out)["checks"]
    assert (check["check"], check["status"]) == ("profile", "failed")


def test_foreign_ca(examine: Examine, tmp_path: Path) -> None:
    foreign = DevelopmentAuthority(tmp_path / "foreign")
    examined = examine("reader", ca_file=foreign.ca_file)
    assert (examined.code, examined.failed()) == (4, ["tls"])
    assert "does not verify" in examined.of("tls")[0]["message"]


def test_expired_certificate(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    expired = world.server.authority.client("reader", lifetime=timedelta(seconds=-60))
    examined = examine("reader", **_identity(tmp_path / "expired", expired))
    assert examined.code == 4
    assert examined.failed()[0] == "certificate"
    assert "expired at" in examined.of("certificate")[0]["message"]


def test_clock_that_is_behind(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    """What a machine whose clock is behind sees: a certificate from the future."""
    early = world.server.authority.issue(
        uris(f"spiffe://{TRUST_DOMAIN}/reader"),
        starts_in=timedelta(minutes=30),
        lifetime=timedelta(hours=2),
    )
    examined = examine("reader", **_identity(tmp_path / "early", early))
    assert examined.code == 4
    assert "clock is behind" in examined.of("certificate")[0]["hint"]


def test_certificate_that_ends_soon(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    ending = world.server.authority.issue(
        uris(f"spiffe://{TRUST_DOMAIN}/reader"),
        starts_in=timedelta(hours=-1),
        lifetime=timedelta(minutes=10),
    )
    examined = examine("reader", **_identity(tmp_path / "ending", ending))
    assert examined.code == 0
    assert examined.of("certificate")[0]["status"] == "warning"


def test_two_uri_names(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    two = world.server.authority.issue(uris("spiffe://test.example/a", "spiffe://test.example/b"))
    examined = examine("reader", **_identity(tmp_path / "two", two))
    assert examined.code == 4
    assert examined.failed()[0] == "identity"


def test_foreign_trust_domain(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    foreign = world.server.authority.issue(uris("spiffe://elsewhere.example/reader"))
    examined = examine("reader", **_identity(tmp_path / "elsewhere", foreign))
    assert (examined.code, examined.failed()) == (4, ["service"])
    assert "TRUST_DOMAIN_UNKNOWN" in examined.of("service")[0]["message"]


def test_certificate_of_a_foreign_ca(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    foreign = _identity(tmp_path / "other", TestAuthority(TRUST_DOMAIN).client("reader"))
    del foreign["ca_file"]  # the service's is still known
    examined = examine("reader", **foreign)
    assert (examined.code, examined.failed()) == (4, ["tls"])


def test_missing_key(examine: Examine, tmp_path: Path) -> None:
    examined = examine("reader", key_file=tmp_path / "nothing")
    assert (examined.code, examined.failed()) == (4, ["identity"])


def test_key_that_others_can_read(examine: Examine) -> None:
    examined = examine("reader", key_mode=0o644)
    assert examined.code == 0
    assert [check["status"] for check in examined.of("key file")] == ["warning"]


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_f53_unsafe_cache(examine: Examine, tmp_path: Path, kind: str) -> None:
    cache = tmp_path / "cache"
    if kind == "writable":
        cache.mkdir()
        cache.chmod(0o777)
    elif kind == "link":
        cache.symlink_to(tmp_path)
    else:
        cache.write_text("")
    examined = examine("reader", cache_dir=cache)
    assert (examined.code, examined.failed()) == (7, ["cache"])


def test_cache_that_is_not_there_yet(examine: Examine, tmp_path: Path) -> None:
    examined = examine("reader", cache_dir=tmp_path / "a" / "b")
    assert examined.code == 0
    assert "made when it is needed" in examined.of("cache")[0]["message"]
    assert not (tmp_path / "a").exists()  # doctor looks; it leaves nothing


def test_vault_section_without_a_vault(world: SdkWorld, examine: Examine, tmp_path: Path) -> None:
    for name in ("role-id", "secret-id"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    vault = {
        "address": "https://127.0.0.1:1",
        "role_id_file": tmp_path / "role-id",
        "secret_id_file": tmp_path / "secret-id",
    }
    examined = examine("security", vault=vault)
    assert (examined.code, examined.failed()) == (5, ["vault"])


def _identity(folder: Path, issued: Issued) -> dict[str, object]:
    issued.write(folder)
    return {
        "ca_file": folder / "ca.pem",
        "certificate_file": folder / "certificate.pem",
        "key_file": folder / "key.pem",
    }


def _write_profile(folder: Path, fields: dict[str, Any]) -> Path:
    vault = fields.pop("vault", {})
    lines = [f"{name} = {json.dumps(str(value))}" for name, value in fields.items()]
    if vault:
        lines += ["[vault]"]
        lines += [f"{name} = {json.dumps(str(value))}" for name, value in vault.items()]
    path = folder / "profile.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
