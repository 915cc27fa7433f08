"""Artifacts in an object store: where each lies, and how one is connected to.

Service and publishers name the same objects, each with credentials of their own. Needs obstore,
which the service brings and the client has as the extra `store`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

    Bucket = S3Store | GCSStore | AzureStore

BucketKind = Literal["s3", "gcs", "azure"]

OBJECTS = "objects"
"""Published artifacts: `objects/ab/ID`, written once."""
UPLOADS = "uploads"
"""What the service was sent of an artifact so far: `uploads/ID/OFFSET`."""

_CREDENTIALS: Mapping[BucketKind, tuple[str, ...]] = {
    "s3": ("access_key_id", "secret_access_key", "session_token"),
    "azure": ("account_key", "sas_key", "client_id", "client_secret", "tenant_id"),
}


def object_key(artifact_id: str) -> str:
    """Where the published artifact lies, below the store's prefix."""
    return f"{OBJECTS}/{artifact_id[:2]}/{artifact_id}"


class BucketSettingsError(Exception):
    """A store cannot be connected to as it was described; the message names the field."""


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """One bucket (Azure: container), and how to get in.

    Attributes:
        prefix: of every object of ours; two installations in a bucket need two of them.
        endpoint: `https://host[:port]`, where it is not the provider's own; plain http is taken
            only to this machine.
        region: S3 only.
        account: Azure only.
        ca_file: PEM bundle trusted beside the system's.
        credentials_file: S3 and Azure: a JSON object with the fields above; GCS: a service
            account's key file. None: what the environment has (variables, instance metadata,
            workload identity).
    """

    kind: BucketKind
    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    account: str | None = None
    ca_file: Path | None = None
    credentials_file: Path | None = None


def connect(settings: BucketSettings, *, retry_for: timedelta = timedelta(seconds=20)) -> Bucket:
    """A client of the bucket; nothing is sent yet.

    Args:
        retry_for: how long one request is tried again after 5xx answers and lost connections.

    Raises:
        BucketSettingsError: a field, or what a file holds, cannot be used.
    """
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    client: ClientConfig = {
        "allow_http": _is_plain_and_here(settings.endpoint),
        "connect_timeout": timedelta(seconds=5),
        # Of a whole request: one part, or one range; what stands still is given up sooner.
        "timeout": timedelta(minutes=10),
        "read_timeout": timedelta(seconds=20),
    }
    if settings.ca_file is not None:
        client["root_certificate"] = _text("ca_file", settings.ca_file)
    retry: RetryConfig = {
        "max_retries": 4,
        "retry_timeout": retry_for,
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=3),
        },
    }
    common: dict[str, Any] = {
        "prefix": settings.prefix or None,
        "client_options": client,
        "retry_config": retry,
    }
    try:
        if settings.kind == "s3":
            config = _credentials(settings)
            for name in ("endpoint", "region"):
                if (value := getattr(settings, name)) is not None:
                    config[name] = value
            return S3Store(settings.bucket, config=config, **common)
        if settings.kind == "gcs":
            return GCSStore(settings.bucket, config=_gcs(settings), **common)
        config = _credentials(settings)
        if settings.account is not None:
            config["account_name"] = settings.account
        if settings.endpoint is not None:
            config["endpoint"] = settings.endpoint
        return AzureStore(settings.bucket, config=config, **common)
    except (BaseError, ValueError) as error:
        # obstore's message may hold what it was given: a key.
        raise BucketSettingsError(
            f"the {settings.kind} bucket {settings.bucket} cannot be used as it is described "
            f"({type(error).__name__})"
        ) from None


def _is_plain_and_here(endpoint: str | None) -> bool:
    """Whether the endpoint is plain HTTP to this machine.

    Raises:
        BucketSettingsError: it is plain HTTP to another, or no URL.
    """
    if endpoint is None:
        return False
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BucketSettingsError("endpoint: must be https://host[:port]")
    if url.scheme == "https":
        return False
    if not is_this_machine(url.hostname):
        raise BucketSettingsError("endpoint: must be https (plain http only to this machine)")
    return True


def is_this_machine(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _credentials(settings: BucketSettings) -> Any:
    if settings.credentials_file is None:
        return {}
    try:
        values = json.loads(_text("credentials_file", settings.credentials_file))
    except json.JSONDecodeError:
        values = None
    known = _CREDENTIALS[settings.kind]
    if not isinstance(values, dict) or not values:
        raise BucketSettingsError(f"credentials_file: must be a JSON object of {', '.join(known)}")
    for name, value in values.items():
        if name not in known or not isinstance(value, str):
            raise BucketSettingsError(
                f"credentials_file: {name!a} is none of {', '.join(known)}, or no text"
            )
    return values


def _gcs(settings: BucketSettings) -> Any:
    config: Any = {}
    if settings.credentials_file is not None:
        config["service_account_key"] = _text("credentials_file", settings.credentials_file)
    if settings.endpoint is not None:
        config["base_url"] = settings.endpoint
    return config


def _text(field: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise BucketSettingsError(f"{field}: {path} cannot be read: {reason}") from None
