"""Configuration: one TOML file, overridden by `MODELKMS_SERVER__SECTION__FIELD`.

Unknown fields are refused. Relative paths are relative to the configuration file. Secrets are
never in the file: it names files that hold them.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from kms_service.domain.errors import ConfigurationError

ENVIRONMENT_PREFIX = "MODELKMS_SERVER__"


def _beside_file(path: Path, info: ValidationInfo) -> Path:
    base = _base(info)
    return base / path if base is not None else path


def _address(value: str) -> str:
    """`host:port`; an IPv6 host in brackets."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise ValueError('must be "host:port", such as "127.0.0.1:7443"')
    return value


def _trust_domain(value: str) -> str:
    if re.fullmatch(r"[a-z0-9._-]{1,255}", value) is None:
        raise ValueError("must be a SPIFFE trust domain: lower-case, without spiffe:// and port")
    return value


def _database_url(value: str, info: ValidationInfo) -> str:
    """A relative SQLite file becomes absolute, beside the configuration file."""
    if value.startswith(_POSTGRESQL):
        parts = urlsplit(value)
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise ValueError("must hold no password: name a file in database.password_file")
        return value
    file = value.removeprefix(_SQLITE)
    if file == value or not file or file.startswith(":") or "?" in file:
        raise ValueError(
            'must be "sqlite:///FILE", such as "sqlite:///modelkms.db", or '
            '"postgresql://USER@HOST/NAME"'
        )
    base = _base(info)
    return f"{_SQLITE}{base / file if base is not None else file}"


def _base(info: ValidationInfo) -> Path | None:
    return info.context["base"] if isinstance(info.context, dict) else None


def _list_from_text(value: object) -> object:
    """The environment has text only: `a,b`, or a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


_SQLITE = "sqlite:///"
_POSTGRESQL = "postgresql://"
ConfigPath = Annotated[Path, AfterValidator(_beside_file)]
SignatureAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"
]
Address = Annotated[str, AfterValidator(_address)]
TrustDomain = Annotated[str, AfterValidator(_trust_domain)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerSection(_Section):
    """Where and how the service listens."""

    listen: Address = "127.0.0.1:7443"
    """mTLS port, `host:port`; port 0 lets the system choose (see `port_file`)."""
    token_listen: Address | None = None
    """Token port, `host:port`: TLS without client certificates, for callers with a token of one of
    the `[[issuers]]`."""
    certificate_file: ConfigPath
    """PEM chain; its key must be ECDSA, so that no TLS 1.2 suite fits it."""
    key_file: ConfigPath
    client_ca_file: ConfigPath
    """PEM bundle of the CAs that issue client certificates."""
    trust_domains: Annotated[
        tuple[TrustDomain, ...], BeforeValidator(_list_from_text), Field(min_length=1)
    ]
    """SPIFFE trust domains served."""
    port_file: ConfigPath | None = None
    """The chosen ports are written here as JSON once everything listens:
    `{"grpc": 7443, "metrics": 9464}`; with a token port also `"token"`, with ports of watches also
    `"watch"` and `"watch_token"`."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes that share the ports, each pinned to a core, each with an audit chain of its own
    (`CHAIN-0`, …); more than one needs PostgreSQL."""
    threads: int = Field(default=16, ge=2, le=256)
    """Unary calls that run at once; 8 times as many may wait."""
    calls_per_principal_s: float | None = Field(default=None, gt=0)
    """Calls a second of one principal, in the long run, to one process; absent: any number."""
    calls_per_instance_s: float | None = Field(default=None, gt=0)
    """The same of one TLS key, or other instance, of a principal."""
    calls_at_once_per_principal: int | None = Field(default=None, ge=1)
    """Calls and artifact streams of one principal that run at once in one process; absent: any
    number, but while others wait three quarters of `threads`."""
    calls_at_once_per_instance: int | None = Field(default=None, ge=1)
    """The same of one TLS key, or other instance, of a principal."""
    artifact_streams: int = Field(default=16, ge=1, le=256)
    """Artifact uploads and downloads at once."""
    shutdown_grace_s: float = Field(default=10.0, ge=0, le=300)
    max_connection_age_s: float = Field(default=1800.0, ge=1)
    max_connection_age_grace_s: float = Field(default=30.0, ge=1)


class IssuerSection(_Section):
    """One issuer of tokens (OpenID Connect, Kubernetes service accounts)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    """Ours for it: principals are `oidc:NAME:SUBJECT`, groups `NAME:GROUP`."""
    issuer: str = Field(pattern=r"^https://")
    """Its `iss`, exactly."""
    audiences: Annotated[tuple[str, ...], BeforeValidator(_list_from_text), Field(min_length=1)]
    """One of them must be among the token's."""
    algorithms: Annotated[
        tuple[SignatureAlgorithm, ...], BeforeValidator(_list_from_text), Field(min_length=1)
    ] = ("RS256", "ES256")
    groups_claim: str = "groups"
    jwks_url: str | None = Field(default=None, pattern=r"^https://")
    """Of its keys; absent: its discovery document tells."""
    jwks_file: ConfigPath | None = None
    """A file with its keys, instead of asking it."""
    ca_file: ConfigPath | None = None
    """PEM bundle to verify it with; absent: the system's."""
    bearer_token_file: ConfigPath | None = None
    """A token shown to it when its keys are fetched; read anew each time."""
    keys_refresh_s: float = Field(default=300.0, ge=1)
    keys_max_age_s: float = Field(default=86400.0, ge=1)
    """For how long its keys serve while they cannot be fetched."""
    keys_cool_down_s: float = Field(default=10.0, ge=0.1)
    """Between two fetches that tokens with unknown keys cause."""


class WatchSection(_Section):
    """Where ends of leases are told to those who hold them."""

    listen: Address | None = None
    """mTLS port of WatchLeases, `host:port`; absent: clients ask now and then."""
    token_listen: Address | None = None
    """Token port of WatchLeases, `host:port`, as `server.token_listen` is one; needs `listen`."""
    streams: int = Field(default=20_000, ge=1, le=1_000_000)
    """Watches at once; each takes about 50 KiB."""
    streams_per_principal: int | None = Field(default=None, ge=1)
    """Of these, watches of one principal; absent: three quarters."""
    heartbeat_s: float = Field(default=15.0, ge=1, le=300)


class MetricsSection(_Section):
    """Prometheus scrape endpoint (HTTP, no secrets)."""

    listen: Address = "127.0.0.1:9464"


class VaultSection(_Section):
    """HashiCorp Vault or OpenBao. Exactly one way to log in."""

    address: str = Field(pattern=r"^https://")
    ca_file: ConfigPath | None = None
    """PEM bundle; absent: the system's."""
    namespace: str | None = None
    transit_mount: str = "transit"
    master_key_template: str = Field(default="modelkms-{project}", pattern=r"^[a-z0-9{}-]+$")
    """Name of a project's transit key. Without `{project}` all projects share one: data keys stay
    bound to their project, but rotating, retiring and losing it concerns all."""
    kv_mount: str = "modelkms"
    """Key-value engine, version 2: tombstones of destroyed versions, registry of backups."""
    approle_mount: str = "approle"
    role_id_file: ConfigPath | None = None
    secret_id_file: ConfigPath | None = None
    token_file: ConfigPath | None = None
    """A token kept fresh by somebody else (Vault Agent); read anew when refused."""
    request_timeout_s: float = Field(default=2.0, gt=0, le=60)
    connections: int = Field(default=16, ge=1, le=256)
    key_cache_ttl_s: float = Field(default=60.0, ge=0, le=300)
    """How long an unwrapped data key is kept in memory while Vault answers; 0 asks each time."""
    key_cache_keys: int = Field(default=10_000, ge=1, le=1_000_000)
    outage_grace_s: float = Field(default=60.0, ge=0, le=900)
    """How much longer while Vault cannot be reached. A sealed Vault, or one that refuses the
    service, never counts as that: it flushes all keys."""

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        approle = (self.role_id_file is not None, self.secret_id_file is not None)
        token = self.token_file is not None
        if (token and any(approle)) or (not token and not all(approle)):
            raise ValueError("set role_id_file and secret_id_file, or token_file, and not both")
        if self.master_key_template.count("{project}") > 1 or re.search(
            r"[{}]", self.master_key_template.replace("{project}", "")
        ):
            raise ValueError("master_key_template may hold {project} once, and no other braces")
        return self


class RewrapSection(_Section):
    """Moving data keys under newer versions of their master keys."""

    automatic: bool = False
    """Whether the service starts a rewrap by itself when it sees a new master-key version."""
    keys_per_second: int = Field(default=0, ge=0, le=1_000_000)
    """Of rewraps that the service starts: an upper bound for all replicas together; 0: none."""
    threads: int = Field(default=2, ge=0, le=16)
    """Of this process; 0: it leaves rewraps to other replicas."""
    watch_every_s: float = Field(default=60.0, ge=1)
    """How often the state of master keys is looked at, for new versions and metrics."""
    master_key_max_age_s: float = Field(default=366 * 86400.0, gt=0)
    """A master key whose newest version is older counts as overdue for rotation; its own schedule
    in Vault, if that is shorter, counts instead."""

    @property
    def master_key_max_age(self) -> timedelta:
        return timedelta(seconds=self.master_key_max_age_s)


class DatabaseSection(_Section):
    url: DatabaseUrl = "sqlite:///modelkms.db"
    """`sqlite:///FILE` (relative to the configuration file): one process. Or a PostgreSQL URL as
    libpq takes it, without a password: replicas and workers. Over TCP the server's certificate
    is verified, whatever the URL leaves out."""

    @property
    def shared(self) -> bool:
        """Whether several processes may use it."""
        return self.url.startswith(_POSTGRESQL)

    password_file: ConfigPath | None = None
    """Holds PostgreSQL's password; read anew for each connection."""
    ca_file: ConfigPath | None = None
    """PEM bundle that PostgreSQL's certificate is checked against; absent: the system's."""
    connections: int = Field(default=16, ge=1, le=1000)
    """Of this process, at most."""
    statement_timeout_s: float = Field(default=5.0, gt=0, le=600)
    """PostgreSQL ends a statement that takes longer."""


class _Place(_Section):
    """A local folder, or a bucket."""

    kind: Literal["local", "s3", "gcs", "azure"] = "local"
    folder: ConfigPath | None = None
    """`local` only."""
    bucket: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,255}$")
    """Bucket, or container; every kind but `local`."""
    prefix: str = Field(default="", pattern=r"^([A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*)?$")
    """Of every object of ours. Two installations never share bucket and prefix: each would sweep
    what the other stored."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/@]+$")
    """`https://host[:port]` where it is not the provider's own; plain http only to this machine."""
    region: str | None = None
    account: str | None = None
    """`azure` only: the storage account."""
    ca_file: ConfigPath | None = None
    """PEM bundle trusted beside the system's."""
    credentials_file: ConfigPath | None = None
    """S3 and Azure: a JSON object; GCS: a service account's key. Absent: from the environment, the
    instance or the workload's identity."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.kind == "local":
            if self.folder is None:
                raise ValueError("folder is missing; add it")
            bucket_fields = ("bucket", "prefix", "endpoint", "region", "account")
            given = [name for name in bucket_fields if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is not for a local folder; set kind, or remove it")
        elif self.bucket is None:
            raise ValueError("bucket is missing; add it")
        elif self.folder is not None:
            raise ValueError("folder is for kind = local only; remove it")
        return self


class StoreSection(_Place):
    """Where artifacts lie: a local folder, or a bucket."""

    links: bool = True
    """Whether clients can reach the bucket and so are given presigned links; false: they read
    through the service."""
    orphan_grace_s: float = Field(default=14 * 86400.0, ge=3600)
    """Objects that no version uses are deleted once they were not written for so long."""


class PolicySection(_Section):
    folder: ConfigPath
    """Holds `*.cedar`; the schema is the one this version publishes."""
    default_lease_ttl_s: float = Field(default=3600.0, gt=0)
    max_lease_ttl_s: float = Field(default=86400.0, gt=0)
    """Upper bound whatever a policy says."""

    @property
    def default_lease_ttl(self) -> timedelta:
        return timedelta(seconds=self.default_lease_ttl_s)

    @property
    def max_lease_ttl(self) -> timedelta:
        return timedelta(seconds=self.max_lease_ttl_s)


class CheckpointSection(_Place):
    """Where signed checkpoints of all audit chains are shipped: a folder or bucket that can be
    written once (retention, object lock), apart from the log itself."""

    every_s: float = Field(default=60.0, ge=1, le=86400)
    origin: str = Field(default="modelkms/audit", pattern=r"^[!-*,-~]{1,200}$")
    """Name of this deployment in checkpoints, such as "kms.example.org/audit"."""
    key: str = Field(default="audit-modelkms", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The transit key (ed25519) that signs."""


class AuditSection(_Section):
    """The audit log (docs/spec/audit-v1.md): no durable record, no key."""

    folder: ConfigPath
    """Holds a folder for each chain."""
    chain: str = Field(default="main", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Name of this process's own chain: no two processes share one, and a replica keeps its own
    when it is restarted."""
    segment_bytes: int = Field(default=64 * 1024 * 1024, ge=4096)
    """A new file is begun once one is this long."""
    gather_us: int = Field(default=0, ge=0, le=100_000)
    """How long to wait for more records to sync together, in microseconds."""
    stream: Literal["none", "stdout", "otlp"] = "none"
    """Where each durable record is also sent; that copy may lag. "otlp" needs the extra
    `tracing`."""
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    """Of "otlp": where, by OTLP over HTTP, such as "https://collector:4318/v1/logs"."""
    otlp_ca_file: ConfigPath | None = None
    """PEM bundle to verify it with; absent: the system's."""
    otlp_headers_file: ConfigPath | None = None
    """`Name: value` in each line, such as what the collector wants to see of who sends; read at
    the start."""
    checkpoints: CheckpointSection | None = None
    """Without it, the end of the log cannot be proven."""

    @model_validator(mode="after")
    def _otlp_has_an_endpoint(self) -> Self:
        if (self.stream == "otlp") != (self.otlp_endpoint is not None):
            raise ValueError('stream = "otlp" and otlp_endpoint go together; set both or neither')
        return self


class LogSection(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class TracingSection(_Section):
    """OpenTelemetry traces (docs/guides/tracing.md); needs the extra `tracing`."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    """Where spans are sent by OTLP over HTTP, such as "http://127.0.0.1:4318/v1/traces"; absent:
    no traces are made."""
    ca_file: ConfigPath | None = None
    """PEM bundle to verify the collector with; absent: the system's."""
    headers_file: ConfigPath | None = None
    """`Name: value` in each line, sent along; read at the start."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Of traces that begin here; a caller that sends `traceparent` has chosen for its own."""


class Config(_Section):
    """The whole configuration."""

    server: ServerSection
    issuers: Annotated[tuple[IssuerSection, ...], BeforeValidator(_list_from_text)] = ()
    """Whose tokens are taken: `[[issuers]]`."""
    vault: VaultSection
    # Validated from nothing, not made here: so the default file lies beside the configuration too.
    database: DatabaseSection = Field(default_factory=dict, validate_default=True)
    store: StoreSection
    policy: PolicySection
    audit: AuditSection
    metrics: MetricsSection = MetricsSection()
    watch: WatchSection = WatchSection()
    log: LogSection = LogSection()
    tracing: TracingSection = TracingSection()
    rewrap: RewrapSection = RewrapSection()
    pending_ttl_s: float = Field(default=7 * 86400.0, gt=0)
    """A version never finalized is DESTROYED after this long."""
    ended_leases_kept_s: float = Field(default=30 * 86400.0, ge=86400)
    """A lease leaves the database so long after its end, unless it is the last that its principal
    has had of its version; the audit log keeps it."""

    @model_validator(mode="after")
    def _issuers_are_used_and_distinct(self) -> Self:
        for section, listen in (
            ("server", self.server.token_listen),
            ("watch", self.watch.token_listen),
        ):
            if listen is not None and not self.issuers:
                raise ValueError(f"{section}.token_listen needs at least one of [[issuers]]")
        if self.watch.token_listen is not None and self.watch.listen is None:
            raise ValueError("watch.token_listen needs watch.listen")
        for what in ("name", "issuer"):
            if len({getattr(each, what) for each in self.issuers}) != len(self.issuers):
                raise ValueError(f"issuers: two have the same {what}")
        return self


def load(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read the file, let the environment override it, check all of it.

    Args:
        path: TOML file; paths in it, and in the environment, are relative to its folder.
        environment: instead of the process's.

    Raises:
        ConfigurationError: one line for each field that is wrong: which, what, what to do.
    """
    values = _read(path)
    problems = _override(values, os.environ if environment is None else environment)
    try:
        config = Config.model_validate(values, context={"base": path.resolve().parent})
    except ValidationError as error:
        problems += [_line(details) for details in error.errors(include_url=False)]
    if problems:
        raise ConfigurationError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}; give a file with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: is not TOML: {error}") from error


def _override(values: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Put `MODELKMS_SERVER__SECTION__FIELD` into `values`; what names no field is a problem."""
    problems = []
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if not _is_field(path):
            problems.append(
                f"environment variable {name}: no such setting; unset it, or correct its name"
            )
            continue
        target = values
        for section in path[:-1]:
            inner = target.setdefault(section, {})
            if not isinstance(inner, dict):  # the file has a plain value there: reported by it
                break
            target = inner
        else:
            target[path[-1]] = environment[name]
    return problems


def _is_field(path: list[str]) -> bool:
    """Whether `path` leads to a setting: a field of a section, or one of the top level."""
    section: type[BaseModel] = Config
    for name in path[:-1]:
        field = section.model_fields.get(name)
        kind = _section(field.annotation) if field is not None else None
        if kind is None:
            return False
        section = kind
    last = section.model_fields.get(path[-1])
    return last is not None and _section(last.annotation) is None


def _section(annotation: Any) -> type[_Section] | None:
    """The section that a field of this type is, or may be."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, _Section):
            return kind
    return None


_HINTS = {
    "extra_forbidden": "no such setting; remove it, or correct its name",
    "missing": "is missing; add it",
}


def _line(details: Mapping[str, Any]) -> str:
    """One problem in a line, without the value, which may be long or private."""
    field = ".".join(str(part) for part in details["loc"]) or "configuration"
    what = _HINTS.get(details["type"])
    if what is None:
        what = details["msg"].removeprefix("Value error, ")
        what = what[:1].lower() + what[1:]
    return f"{field}: {what}"
