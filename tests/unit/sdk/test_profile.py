from __future__ import annotations

from pathlib import Path

import pytest
from modelkms.errors import ProfileInvalid
from modelkms.profile import Profile

MINIMAL = 'endpoint = "kms.example"\nca_file = "ca.pem"\n'


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(
    profile: str | Path | None = None,
    overrides: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
) -> Profile:
    return Profile.load(profile, overrides, environment or {})


def test_paths_of_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p" / "dev.toml", MINIMAL + 'cache_dir = "../c"\n')
    profile = load(path)
    assert profile.ca_file == tmp_path / "p" / "ca.pem"
    assert profile.cache_folder == tmp_path / "p" / "../c"
    assert profile.source == path


def test_the_port_has_a_default_and_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.toml", MINIMAL)
    assert load(path).target == "kms.example:8443"
    given = load(path, {"endpoint": "[::1]:9"})
    assert (given.target, given.host, given.port) == ("[::1]:9", "::1", 9)


def test_environment_wins_over_file_and_keywords_over_both(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.toml", MINIMAL + 'project = "one"\n')
    environment = {"MODELKMS_PROJECT": "two", "MODELKMS_PROFILE": str(path)}
    assert load(None, None, {"MODELKMS_PROFILE": str(path)}).project == "one"
    assert load(None, None, environment).project == "two"
    assert load(None, {"project": "three"}, environment).project == "three"
    assert load(None, {"project": None}, environment).project == "two"


def test_a_name_means_the_config_folder_and_default_is_found_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "modelkms" / "profiles"
    write(folder / "work.toml", MINIMAL + 'project = "work"\n')
    assert load("work").project == "work"
    assert load(None, None, {"MODELKMS_PROFILE": "work"}).project == "work"
    write(folder / "default.toml", MINIMAL + 'project = "home"\n')
    assert load().project == "home"


def test_environment_alone_is_enough(tmp_path: Path) -> None:
    environment = {
        "MODELKMS_ENDPOINT": "kms.example:1",
        "MODELKMS_CA_FILE": str(tmp_path / "ca.pem"),
        "MODELKMS_VAULT__ADDRESS": "https://vault.example:8200",
    }
    profile = load(None, None, environment)
    assert profile.source is None
    assert profile.vault is not None
    assert profile.vault.master_key_template == "modelkms-{project}"


def test_the_vault_section_is_read_and_its_paths_resolved(tmp_path: Path) -> None:
    text = MINIMAL + '[vault]\naddress = "https://v:8200"\nca_file = "v.pem"\ntoken_file = "t"\n'
    vault = load(write(tmp_path / "o.toml", text)).vault
    assert vault is not None
    assert (vault.ca_file, vault.token_file) == (tmp_path / "v.pem", tmp_path / "t")
    assert (vault.transit_mount, vault.approle_mount) == ("transit", "approle")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL + 'certificat_file = "x"\n', "unknown field certificat_file"),
        (MINIMAL + 'source = "x"\n', "unknown field: source"),
        (MINIMAL + '[vault]\naddress = "https://v"\nrole = "x"\n', "unknown field vault.role"),
        (MINIMAL + '[vault]\naddress = "http://v"\n', "vault.address"),
        ('ca_file = "ca.pem"\n', "endpoint is missing"),
        ('endpoint = "a b"\nca_file = "c"\n', "endpoint"),
        ('endpoint = "https://a"\nca_file = "c"\n', "endpoint"),
        (MINIMAL + 'project = "Home"\n', "project must be"),
        ("endpoint = \n", "cannot be read"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ProfileInvalid) as caught:
        load(write(tmp_path / "dev.toml", text))
    assert told in caught.value.message
    assert "dev.toml" in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("profile", ["absent", "x/absent.toml", "a b", "\n"])
def test_a_profile_that_is_not_there_is_refused(profile: str) -> None:
    with pytest.raises(ProfileInvalid):
        load(profile)


def test_no_profile_at_all_says_how_to_choose_one() -> None:
    with pytest.raises(ProfileInvalid) as caught:
        load()
    assert "MODELKMS_PROFILE" in (caught.value.hint or "")


def test_an_unknown_keyword_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.toml", MINIMAL)
    with pytest.raises(ProfileInvalid, match="unknown setting: endpont"):
        load(path, {"endpont": "x"})
