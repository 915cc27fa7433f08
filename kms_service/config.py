"""Configuration: one TOML file, overridden by `MODELKMS_SERVER__SECTION__FIELD`.

Unknown fields are refused. Relative paths are relative to the configuration file. Secrets are
never in the file: it names files that hold them.
"""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kms_service.domain.errors import ConfigurationError

ENVIRONMENT_PREFIX = "MODELKMS_SERVER__"


def _beside_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base") if isinstance(info.context, dict) else None
    return Path(base) / path if base is not None else path


ConfigPath = Annotated[Path, AfterValidator(_beside_file)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSection(_Section):
    """Where and how the service listens."""

    listen: str = "127.0.0.1:7443"
    """mTLS port, `host:port`; port 0 lets the system choose (see `port_file`)."""
    certificate_file: ConfigPath
    """PEM chain; its key must be ECDSA, so that no TLS 1.2 suite fits it."""
    key_file: ConfigPath
    client_ca_file: ConfigPath
    """PEM bundle of the CAs that issue client certificates."""
    trust_domains: tuple[str, ...] = Field(min_length=1)
    """SPIFFE trust domains served."""
    port_file: ConfigPath | None = None
    """The chosen ports are written here as JSON once everything listens:
    `{"grpc": 7443, "metrics": 9464}`."""
    threads: int = Field(default=16, ge=2, le=256)
    shutdown_grace_s: float = Field(default=10.0, ge=0, le=300)
    max_connection_age_s: float = Field(default=1800.0, ge=1)
    max_connection_age_grace_s: float = Field(default=30.0, ge=1)


class MetricsSection(_Section):
    """Prometheus scrape endpoint (HTTP, no secrets)."""

    listen: str = "127.0.0.1:9464"


class VaultSection(_Section):
    """HashiCorp Vault or OpenBao. Exactly one way to log in."""

    address: str = Field(pattern=r"^https://")
    ca_file: ConfigPath | None = None
    """PEM bundle; absent: the system's."""
    namespace: str | None = None
    transit_mount: str = "transit"
    master_key_template: str = Field(default="modelkms-{project}", pattern=r"^[a-z0-9{}-]+$")
    """Name of a project's transit key."""
    approle_mount: str = "approle"
    role_id_file: ConfigPath | None = None
    secret_id_file: ConfigPath | None = None
    token_file: ConfigPath | None = None
    """A token kept fresh by somebody else (Vault Agent); read anew when refused."""
    request_timeout_s: float = Field(default=2.0, gt=0, le=60)
    connections: int = Field(default=16, ge=1, le=256)


class DatabaseSection(_Section):
    url: str = "sqlite:///modelkms.db"
    """`sqlite:///FILE` (relative to the configuration file)."""


class StoreSection(_Section):
    """Where artifacts lie. Here: a local folder."""

    kind: Literal["local"] = "local"
    folder: ConfigPath


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


class AuditSection(_Section):
    folder: ConfigPath
    """Append-only chain of this process; one folder a process."""


class LogSection(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
    )

    server: ServerSection
    vault: VaultSection
    database: DatabaseSection = DatabaseSection()
    store: StoreSection
    policy: PolicySection
    audit: AuditSection
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()
    pending_ttl_s: float = Field(default=7 * 86400.0, gt=0)
    """A version never finalized is DESTROYED after this long."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (which is given as init arguments)."""
        return env_settings, init_settings
