"""Master keys under an officer's own login, on a real OpenBao with the shipped policies."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import hvac
import pytest
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from modelkms.cli.__main__ import main
from modelkms.errors import (
    MasterKeyMisconfigured,
    ModelKmsError,
    ProfileInvalid,
    ServerNotTrusted,
    UsageError,
    VaultUnavailable,
)
from modelkms.officer import MasterKeyNotFound, Officer, RotationUnknown
from modelkms.officer_vault import VaultDenied, VaultLoginRefused, VaultRequestRefused
from modelkms.profile import VaultProfile
from requests.adapters import HTTPAdapter

from kms_service.development.authority import DevelopmentAuthority
from kms_service.development.openbao import AppRoleFiles, OpenBao, RoleFiles, set_up

# Keys that are no master keys, each for one reason. Made before set_up revokes the root token.
_UNFIT: Mapping[str, Mapping[str, object]] = {
    "derived": {"derived": False},
    "exportable": {"derived": True, "exportable": True},
    "allow_plaintext_backup": {"derived": True, "allow_plaintext_backup": True},
    "convergent_encryption": {"derived": True, "convergent_encryption": True},
    "type": {"derived": True, "key_type": "chacha20-poly1305"},
}


@dataclass(frozen=True)
class Vault:
    server: OpenBao
    roles: RoleFiles
    issuer: ec.EllipticCurvePrivateKey

    def sign(self, claims: Mapping[str, object]) -> str:
        """A token of the issuer that this Vault's JWT method trusts."""
        return _es256(self.issuer, claims)

    def profile(self, role: AppRoleFiles, **changed: object) -> VaultProfile:
        fields: dict[str, object] = {
            "address": self.server.address,
            "ca_file": self.server.ca_file,
            "role_id_file": role.role_id_file,
            "secret_id_file": role.secret_id_file,
        }
        return VaultProfile.model_validate({**fields, **changed})

    def officer(self, **changed: object) -> Officer:
        return Officer(self.profile(self.roles.officer, **changed))


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    folder = tmp_path_factory.mktemp("officer")
    server = OpenBao.start(folder / "vault")
    try:
        _make_unfit_keys(server)
        issuer = ec.generate_private_key(ec.SECP256R1())
        _trust(server, issuer)
        yield Vault(server, set_up(server, folder / "roles"), issuer)
    finally:
        server.stop()


def _trust(server: OpenBao, issuer: ec.EllipticCurvePrivateKey) -> None:
    public = issuer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    root = hvac.Client(url=server.address, token=server.root_token(), verify=str(server.ca_file))
    root.sys.enable_auth_method("jwt")
    root.write_data("auth/jwt/config", data={"jwt_validation_pubkeys": [public.decode()]})
    root.write_data(
        "auth/jwt/role/modelkms-officer-jwt",
        data={
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": ["vault"],
            "token_policies": ["modelkms-officer"],
        },
    )
    root.session.close()


def _es256(key: ec.EllipticCurvePrivateKey, claims: Mapping[str, object]) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    header = {"alg": "ES256", "typ": "JWT"}
    signed = ".".join(part(json.dumps(each).encode()) for each in (header, claims))
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _make_unfit_keys(server: OpenBao) -> None:
    root = hvac.Client(url=server.address, token=server.root_token(), verify=str(server.ca_file))
    root.sys.enable_secrets_engine("transit")
    for reason, options in _UNFIT.items():
        name = f"modelkms-bad-{reason.replace('_', '-')}"
        root.secrets.transit.create_key(name, **options)
    root.secrets.transit.create_key("modelkms-bad-deletion-allowed", derived=True)
    root.secrets.transit.update_key_configuration(
        "modelkms-bad-deletion-allowed", deletion_allowed=True
    )
    root.session.close()


# --- creating ------------------------------------------------------------------------------------


def test_creates_a_key_as_it_must_be_once(vault: Vault) -> None:
    with vault.officer() as officer:
        made = officer.ensure_master_key("created")
        again = officer.ensure_master_key("created")
    assert (made.vault_key, made.latest_version, made.created) == ("modelkms-created", 1, True)
    assert (again.latest_version, again.created) == (1, False)
    assert made.auto_rotate_period is None


def test_rotation_period(vault: Vault) -> None:
    with vault.officer() as officer:
        made = officer.ensure_master_key("scheduled", timedelta(days=90))
        assert made.auto_rotate_period == timedelta(days=90)
        assert not officer.ensure_master_key("scheduled").created
        assert not officer.ensure_master_key("scheduled", timedelta(days=90)).created
        with pytest.raises(MasterKeyMisconfigured, match="another rotation period"):
            officer.ensure_master_key("scheduled", timedelta(days=30))
        with pytest.raises(UsageError, match="at most once an hour"):
            officer.ensure_master_key("too-often", timedelta(minutes=59))
        with pytest.raises(MasterKeyNotFound):
            officer.read_master_key("too-often")


@pytest.mark.parametrize("reason", [*_UNFIT, "deletion_allowed"])
def test_refuses_an_existing_key_that_is_not_as_it_must_be(vault: Vault, reason: str) -> None:
    project = f"bad-{reason.replace('_', '-')}"
    with vault.officer() as officer:
        for act in (officer.ensure_master_key, officer.rotate_master_key):
            with pytest.raises(MasterKeyMisconfigured, match=f"{reason} is") as caught:
                act(project)
            assert caught.value.exit_code == 8


# --- rotating ------------------------------------------------------------------------------------


def test_rotates_once(vault: Vault) -> None:
    with vault.officer() as officer:
        officer.ensure_master_key("rotated")
        rotation = officer.rotate_master_key("rotated")
        assert (rotation.before, rotation.after) == (1, 2)
        assert officer.read_master_key("rotated").latest_version == 2
        with pytest.raises(MasterKeyNotFound) as caught:
            officer.rotate_master_key("never-made")
    assert caught.value.exit_code == 3


class _LosesRotations(HTTPAdapter):
    """The way to Vault fails at a rotation: before it arrives, or before its answer does."""

    def __init__(self, *, arrives: bool) -> None:
        super().__init__()
        self.arrives = arrives
        self.rotations = 0

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if not str(request.url).endswith("/rotate"):
            return super().send(request, *args, **kwargs)
        self.rotations += 1
        if self.arrives:
            super().send(request, *args, **kwargs)
        raise requests.ReadTimeout("the answer did not come")


@pytest.mark.parametrize("arrives", [True, False])
def test_f37_rotate_is_never_blindly_repeated(vault: Vault, arrives: bool) -> None:
    project = f"lossy-{arrives}".lower()
    way = _LosesRotations(arrives=arrives)
    session = requests.Session()
    session.mount("https://", way)
    with Officer(vault.profile(vault.roles.officer), session) as officer:
        officer.ensure_master_key(project)
        if arrives:  # it happened, and reading shows it
            assert officer.rotate_master_key(project).after == 2
        else:
            with pytest.raises(RotationUnknown) as caught:
                officer.rotate_master_key(project)
            assert caught.value.exit_code == 5
            assert caught.value.hint is not None
            assert "status" in caught.value.hint
        assert officer.read_master_key(project).latest_version == (2 if arrives else 1)
    assert way.rotations == 1


# --- who may not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["service", "auditor"])
def test_other_roles_are_refused(vault: Vault, role: str) -> None:
    with vault.officer() as officer:
        officer.ensure_master_key("guarded")
    with Officer(vault.profile(getattr(vault.roles, role))) as other:
        with pytest.raises(VaultDenied) as caught:
            other.ensure_master_key(f"made-by-{role}")
        with pytest.raises(VaultDenied):
            other.rotate_master_key("guarded")
    assert caught.value.exit_code == 3
    with vault.officer() as officer:
        assert officer.read_master_key("guarded").latest_version == 1
        with pytest.raises(MasterKeyNotFound):
            officer.read_master_key(f"made-by-{role}")


def test_wrong_secret_id_is_an_identity_error_without_the_secret(
    vault: Vault, tmp_path: Path
) -> None:
    secret = "0d7a2f3e-dead-beef-8888-c0ffee000001"
    (tmp_path / "secret-id").write_text(secret + "\n")
    with (
        vault.officer(secret_id_file=tmp_path / "secret-id") as officer,
        pytest.raises(VaultLoginRefused) as caught,
    ):
        officer.check_login()
    assert caught.value.exit_code == 4
    assert secret not in _everything_told(caught.value)


def test_the_login_ends_with_the_officer(vault: Vault) -> None:
    tokens: list[str] = []

    class Spy(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
            tokens.append(request.headers.get("X-Vault-Token", ""))
            return super().send(request, *args, **kwargs)

    session = requests.Session()
    session.mount("https://", Spy())
    with Officer(vault.profile(vault.roles.officer), session) as officer:
        officer.check_login()
    token = tokens[-1]
    assert token
    looked_up = requests.get(
        f"{vault.server.address}/v1/auth/token/lookup-self",
        headers={"X-Vault-Token": token},
        verify=str(vault.server.ca_file),
        timeout=5,
    )
    assert looked_up.status_code == 403


def test_a_token_from_a_file_is_used_and_left_alone(vault: Vault, tmp_path: Path) -> None:
    login = hvac.Client(url=vault.server.address, verify=str(vault.server.ca_file), token="")
    files = vault.roles.officer
    login.auth.approle.login(files.role_id_file.read_text(), files.secret_id_file.read_text())
    token_file = tmp_path / "token"
    token_file.write_text(f"{login.token}\n")
    by_token = {"token_file": token_file, "role_id_file": None, "secret_id_file": None}
    for _ in range(2):  # a second officer finds it still valid
        with vault.officer(**by_token) as officer:
            officer.check_login()
    login.session.close()
    token_file.write_text("s.wrong")
    with vault.officer(**by_token) as officer, pytest.raises(VaultDenied) as caught:
        officer.read_master_key("created")
    assert "s.wrong" not in _everything_told(caught.value)


def test_environment_and_home_give_no_login(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".vault-token").write_text("s.somebody-else")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAULT_TOKEN", "s.somebody-else")
    with vault.officer() as officer:
        officer.check_login()


# --- outages -------------------------------------------------------------------------------------


def test_unreachable_vault(vault: Vault) -> None:
    with (
        vault.officer(address="https://127.0.0.1:1") as officer,
        pytest.raises(VaultUnavailable) as caught,
    ):
        officer.read_master_key("created")
    assert caught.value.exit_code == 5


def test_foreign_ca(vault: Vault, tmp_path: Path) -> None:
    foreign = DevelopmentAuthority(tmp_path / "foreign")
    with (
        vault.officer(ca_file=foreign.ca_file) as officer,
        pytest.raises(ServerNotTrusted) as caught,
    ):
        officer.read_master_key("created")
    assert caught.value.exit_code == 4


# --- the command line ----------------------------------------------------------------------------


def test_commands(vault: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = _profile(vault, vault.roles.officer, tmp_path / "officer.toml")
    create = ["--profile", str(profile), "admin", "master-key", "create", "by-command"]
    assert main([*create, "--auto-rotate-period", "30d"]) == 0
    assert capsys.readouterr().out == (
        "created master key modelkms-by-command at version 1, rotated by Vault every 30 d\n"
    )
    assert main([*create, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["created"] is False
    assert main(["--profile", str(profile), "admin", "master-key", "rotate", "by-command"]) == 0
    assert capsys.readouterr().out == "rotated modelkms-by-command: version 1 → 2\n"


def test_command_of_another_role_is_refused(
    vault: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = _profile(vault, vault.roles.service, tmp_path / "service.toml")
    with vault.officer() as officer:
        officer.ensure_master_key("guarded")
    rotate = ["--profile", str(profile), "admin", "master-key", "rotate", "guarded"]
    assert main(rotate) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: Vault at" in told.err
    assert "officer.hcl" in told.err
    assert main([*rotate, "--json", "--verbose"]) == 3
    secret = vault.roles.service.secret_id_file.read_text()
    assert secret not in capsys.readouterr().err


def _profile(vault: Vault, role: AppRoleFiles, path: Path) -> Path:
    path.write_text(
        'endpoint = "localhost:1"\n'
        f'ca_file = "{vault.server.ca_file}"\n'
        "[vault]\n"
        f'address = "{vault.server.address}"\n'
        f'ca_file = "{vault.server.ca_file}"\n'
        f'role_id_file = "{role.role_id_file}"\n'
        f'secret_id_file = "{role.secret_id_file}"\n'
    )
    return path


def _everything_told(error: ModelKmsError) -> str:
    """All texts along the chain of causes."""
    told = [f"{error.as_dict()}"]
    cause: BaseException | None = error
    while cause is not None:
        told += [repr(cause), str(cause)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(told)


# --- retiring, and other logins ------------------------------------------------------------------


def test_the_oldest_version_moves_both_ways(vault: Vault) -> None:
    with vault.officer() as officer:
        officer.ensure_master_key("retired")
        officer.rotate_master_key("retired")
        assert officer.set_oldest_version("retired", 2).min_decryption_version == 2
        assert officer.set_oldest_version("retired", 1).min_decryption_version == 1
        with pytest.raises(VaultRequestRefused):
            officer.set_oldest_version("retired", 3)
        with pytest.raises(MasterKeyNotFound):
            officer.set_oldest_version("not-there", 1)


def test_login_by_a_token_of_an_oidc_issuer(vault: Vault, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    jwt_file, now = tmp_path / "jwt", int(time.time())
    claims = {"sub": "ana", "aud": "vault", "iat": now, "exp": now + 300}
    jwt_file.write_text(_es256(key, claims))
    fields = {"role_id_file": None, "secret_id_file": None, "jwt_file": jwt_file}
    with (
        vault.officer(**fields, jwt_role="modelkms-officer-jwt") as officer,
        pytest.raises(VaultLoginRefused),
    ):
        officer.check_login()  # signed by nobody whom this Vault knows
    jwt_file.write_text("")
    with (
        vault.officer(**fields, jwt_role="modelkms-officer-jwt") as officer,
        pytest.raises(ProfileInvalid),
    ):
        officer.check_login()
    jwt_file.write_text(vault.sign(claims))
    with vault.officer(**fields, jwt_role="modelkms-officer-jwt") as officer:
        officer.check_login()
        assert officer.ensure_master_key("by-jwt").created
