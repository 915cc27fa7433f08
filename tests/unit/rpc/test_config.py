"""Configuration: what is wrong is told by field, in one line, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kms_service.config import load
from kms_service.domain.errors import ConfigurationError

GOOD = """
[server]
listen = "127.0.0.1:0"
certificate_file = "tls/server.pem"
key_file = "tls/server-key.pem"
client_ca_file = "/etc/modelkms/ca.pem"
trust_domains = ["prod.example"]

[vault]
address = "https://vault.example:8200"
role_id_file = "role-id"
secret_id_file = "secret-id"

[store]
kind = "local"
folder = "artifacts"

[policy]
folder = "policies"

[audit]
folder = "audit"
"""


def write(folder: Path, text: str = GOOD) -> Path:
    file = folder / "server.toml"
    file.write_text(text)
    return file


def problems(file: Path, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(file, environment or {})
    return caught.value.message.replace(f"{file}: ", "").splitlines()


def test_relative_paths_lie_beside_the_file(tmp_path: Path) -> None:
    config = load(write(tmp_path), {})
    assert config.server.certificate_file == tmp_path / "tls/server.pem"
    assert config.server.client_ca_file == Path("/etc/modelkms/ca.pem")
    assert config.store.folder == tmp_path / "artifacts"
    assert config.server.port_file is None
    assert config.database.url == f"sqlite:///{tmp_path}/modelkms.db"


def test_relative_database_file_lies_beside_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + '[database]\nurl = "sqlite:///state/kms.db"\n')
    assert load(file, {}).database.url == f"sqlite:///{tmp_path}/state/kms.db"
    file = write(tmp_path, GOOD + '[database]\nurl = "sqlite:////var/kms.db"\n')
    assert load(file, {}).database.url == "sqlite:////var/kms.db"


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    environment = {
        "MODELKMS_SERVER__SERVER__LISTEN": "[::1]:7443",
        "MODELKMS_SERVER__SERVER__TRUST_DOMAINS": "a.example, b.example",
        "MODELKMS_SERVER__SERVER__THREADS": "4",
        "MODELKMS_SERVER__AUDIT__FOLDER": "elsewhere",
        "MODELKMS_SERVER__METRICS__LISTEN": "127.0.0.1:0",
        "MODELKMS_SERVER__PENDING_TTL_S": "60",
        "MODELKMS_PROFILE": "not ours",
    }
    config = load(write(tmp_path), environment)
    assert config.server.listen == "[::1]:7443"
    assert config.server.trust_domains == ("a.example", "b.example")
    assert config.server.threads == 4
    assert config.audit.folder == tmp_path / "elsewhere"
    assert config.metrics.listen == "127.0.0.1:0"
    assert config.pending_ttl_s == 60


def test_trust_domains_in_the_environment_may_be_json(tmp_path: Path) -> None:
    environment = {"MODELKMS_SERVER__SERVER__TRUST_DOMAINS": '["a.example"]'}
    assert load(write(tmp_path), environment).server.trust_domains == ("a.example",)


@pytest.mark.parametrize(
    "name",
    [
        "MODELKMS_SERVER__SERVER__LISTNE",
        "MODELKMS_SERVER__NONSENSE__FIELD",
        "MODELKMS_SERVER__SERVER",
        "MODELKMS_SERVER__SERVER__LISTEN__DEEPER",
        "MODELKMS_SERVER__",
    ],
)
def test_unknown_name_in_the_environment_is_refused(tmp_path: Path, name: str) -> None:
    assert problems(write(tmp_path), {name: "1"}) == [
        f"environment variable {name}: no such setting; unset it, or correct its name"
    ]


def test_unknown_fields_and_missing_ones_are_told_together(tmp_path: Path) -> None:
    text = GOOD.replace('listen = "127.0.0.1:0"', 'lisen = "127.0.0.1:0"')
    text = text.replace('[audit]\nfolder = "audit"', "[audit]")
    assert problems(write(tmp_path, text)) == [
        "server.lisen: no such setting; remove it, or correct its name",
        "audit.folder: is missing; add it",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            'listen = "127.0.0.1:0"',
            'listen = "7443"',
            'server.listen: must be "host:port", such as "127.0.0.1:7443"',
        ),
        (
            'listen = "127.0.0.1:0"',
            'listen = "127.0.0.1:65536"',
            'server.listen: must be "host:port", such as "127.0.0.1:7443"',
        ),
        (
            '"prod.example"',
            '"spiffe://prod.example"',
            (
                "server.trust_domains.0: must be a SPIFFE trust domain: lower-case, "
                "without spiffe:// and port"
            ),
        ),
        (
            '"https://vault.example:8200"',
            '"http://vault.example:8200"',
            "vault.address: string should match pattern '^https://'",
        ),
        (
            'role_id_file = "role-id"',
            'token_file = "token"',
            "vault: set role_id_file and secret_id_file, or token_file, and not both",
        ),
        (
            'secret_id_file = "secret-id"',
            "",
            "vault: set role_id_file and secret_id_file, or token_file, and not both",
        ),
        (
            'role_id_file = "role-id"',
            'role_id_file = "role-id"\nmaster_key_template = "k-{project}-{project}"',
            "vault: master_key_template may hold {project} once, and no other braces",
        ),
        (
            'kind = "local"',
            'kind = "floppy"',
            "store.kind: input should be 'local', 's3', 'gcs' or 'azure'",
        ),
        ('kind = "local"', 'kind = "s3"', "store: bucket is missing; add it"),
        (
            'kind = "local"',
            'kind = "s3"\nbucket = "models"',
            "store: folder is for kind = local only; remove it",
        ),
        (
            'kind = "local"',
            'kind = "local"\nbucket = "models"',
            "store: bucket is not for a local folder; set kind, or remove it",
        ),
    ],
)
def test_wrong_values_are_told_by_field(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problems(write(tmp_path, GOOD.replace(old, new))) == [problem]


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite:///"])
def test_database_must_be_a_file_or_a_postgresql_url(tmp_path: Path, url: str) -> None:
    file = write(tmp_path, f'{GOOD}[database]\nurl = "{url}"\n')
    assert problems(file) == [
        (
            'database.url: must be "sqlite:///FILE", such as "sqlite:///modelkms.db", or '
            '"postgresql://USER@HOST/NAME"'
        )
    ]


@pytest.mark.parametrize(
    "url", ["postgresql://kms:CANARY@db/kms", "postgresql://kms@db/kms?password=CANARY"]
)
def test_a_password_in_the_database_url_is_refused_and_not_echoed(tmp_path: Path, url: str) -> None:
    file = write(tmp_path, f'{GOOD}[database]\nurl = "{url}"\n')
    assert problems(file) == [
        "database.url: must hold no password: name a file in database.password_file"
    ]


def test_a_postgresql_url_of_several_hosts_stays_as_it_is(tmp_path: Path) -> None:
    url = "postgresql://kms@one:5432,two:5432/kms?application_name=a"
    file = write(tmp_path, f'{GOOD}[database]\nurl = "{url}"\n')
    assert load(file, {}).database.url == url


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load(write(tmp_path, "a = = 1"), {})


def test_otlp_and_its_endpoint_go_together(tmp_path: Path) -> None:
    told = ['audit: stream = "otlp" and otlp_endpoint go together; set both or neither']
    endpoint = "https://collector.example:4318/v1/logs"
    stream = {"MODELKMS_SERVER__AUDIT__STREAM": "otlp"}
    where = {"MODELKMS_SERVER__AUDIT__OTLP_ENDPOINT": endpoint}
    assert problems(write(tmp_path), stream) == told
    assert problems(write(tmp_path), where) == told
    assert load(write(tmp_path), stream | where).audit.otlp_endpoint == endpoint


def test_a_wrong_value_is_not_echoed(tmp_path: Path) -> None:
    canary = "hvs.CANARYCANARY"
    text = GOOD.replace('role_id_file = "role-id"', f'token = "{canary}"\nrole_id_file = "r"')
    with pytest.raises(ConfigurationError) as caught:
        load(write(tmp_path, text), {})
    assert canary not in caught.value.message


ISSUER = """
[[issuers]]
name = "k8s"
issuer = "https://issuer.example"
audiences = ["modelkms"]
ca_file = "ca.pem"
"""


def test_issuers_of_tokens(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD + ISSUER), {"MODELKMS_SERVER__SERVER__TOKEN_LISTEN": "h:1"})
    (issuer,) = config.issuers
    assert (issuer.name, issuer.audiences) == ("k8s", ("modelkms",))
    assert issuer.ca_file == tmp_path / "ca.pem"
    assert issuer.algorithms == ("RS256", "ES256")


@pytest.mark.parametrize(
    ("further", "environment", "told"),
    [
        ("", {"SERVER__TOKEN_LISTEN": "h:1"}, "needs at least one of"),
        (ISSUER + ISSUER, {}, "two have the same name"),
        (ISSUER.replace("https:", "http:"), {}, "issuers.0.issuer"),
        (ISSUER + 'algorithms = ["HS256"]\n', {}, "issuers.0.algorithms.0"),
        (ISSUER + 'algorithms = ["none"]\n', {}, "issuers.0.algorithms.0"),
        (ISSUER + "algorithms = []\n", {}, "issuers.0.algorithms"),
        (ISSUER.replace('"k8s"', '"a:b"'), {}, "issuers.0.name"),
    ],
)
def test_issuers_that_would_be_unsafe(
    tmp_path: Path, further: str, environment: dict[str, str], told: str
) -> None:
    overrides = {f"MODELKMS_SERVER__{name}": value for name, value in environment.items()}
    with pytest.raises(ConfigurationError) as caught:
        load(write(tmp_path, GOOD + further), overrides)
    assert told in caught.value.message
