"""Profiles: where the service is and who we are (DESIGN §9).

A profile is a TOML file. Each field is overridden by `MODELKMS_<FIELD>` in the environment, and
that by a keyword of `modelkms.connect`. Relative paths in the file are relative to the file; those
from the environment or a keyword, to the working folder. Unknown fields are refused.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import platformdirs
from modelkms_api.object_store import BucketKind
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from modelkms.errors import ProfileInvalid
from modelkms.reference import ID_RULE

ENVIRONMENT_PREFIX = "MODELKMS_"
PROFILE_VARIABLE = "MODELKMS_PROFILE"
DEFAULT_PROFILE = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ID_PATTERN = r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"
_DEFAULT_PORT = 8443

Id = Annotated[str, StringConstraints(pattern=_ID_PATTERN)]
Endpoint = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"^[^\s/@]+$")]


class VaultProfile(BaseModel):
    """An officer's own way to Vault. The service is not part of it.

    Attributes:
        address: `https://host:port`.
        ca_file: PEM bundle that Vault's certificate is verified against; None: the system's.
        namespace: Vault Enterprise or OpenBao namespace; None: the root.
        transit_mount, approle_mount: where the engines are mounted.
        role_id_file, secret_id_file: AppRole login.
        jwt_file, jwt_role, jwt_mount: login by a token of an OIDC issuer (a file, read anew each
            time; the role and mount of Vault's JWT/OIDC method).
        token_file: a file with a token, instead of AppRole.
        master_key_template: name of a project's transit key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, StringConstraints(pattern=r"^https://\S+$")]
    ca_file: Path | None = None
    namespace: str | None = None
    transit_mount: str = "transit"
    approle_mount: str = "approle"
    role_id_file: Path | None = None
    secret_id_file: Path | None = None
    jwt_file: Path | None = None
    jwt_role: str | None = None
    jwt_mount: str = "jwt"
    token_file: Path | None = None
    master_key_template: Annotated[str, StringConstraints(pattern=r"\{project\}")] = (
        "modelkms-{project}"
    )


class StoreProfile(BaseModel):
    """The object store behind the service, as this client reaches it.

    Without a bucket there is nothing but what reading by presigned links needs. With one, pushes go
    to it directly, by this client's own credentials; it must be the service's.

    Attributes:
        kind, bucket, prefix, endpoint, region, account: as in the service's `[store]`.
        ca_file: PEM bundle trusted beside the system's, also for links.
        credentials_file: of this client; None: what the environment has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: BucketKind = "s3"
    bucket: str | None = None
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    account: str | None = None
    ca_file: Path | None = None
    credentials_file: Path | None = None


class Profile(BaseModel):
    """Everything `modelkms.connect` needs to know.

    Attributes:
        endpoint: `host:port` of the service (mTLS); the port is 8443 if left out.
        watch_endpoint: `host:port` for watches, where it differs.
        ca_file: PEM bundle that the service's certificate is verified against.
        certificate_file, key_file: PEM chain and key of this client's identity.
        token_file, token_exec: where a bearer token comes from, for the OIDC port.
        project: default project of references.
        cache_dir: for ciphertext; None: the user's cache folder.
        state_dir: for the spool of pushes; None: the user's state folder.
        insecure_plaintext_dir: where there is no memory-backed storage (macOS), materialized models
            are written here, decrypted, to a disk, and removed afterwards; None: they are refused.
        cache_max_bytes: the oldest entries go when the cache grows over this.
        vault: an officer's way to Vault.
        store: the object store, where pushes go to it directly or links need a CA of their own.
        tracing: spans of the calls, for the host's OpenTelemetry (extra `tracing`).
        source: the file it came from; None if from environment and keywords alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Endpoint
    watch_endpoint: Endpoint | None = None
    ca_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None
    token_exec: list[str] | None = None
    project: Id | None = None
    cache_dir: Path | None = None
    state_dir: Path | None = None
    insecure_plaintext_dir: Path | None = None
    cache_max_bytes: Annotated[int, Field(ge=0)] = 64 << 30
    vault: VaultProfile | None = None
    store: StoreProfile | None = None
    tracing: bool = False
    source: Annotated[Path | None, Field(exclude=True)] = None

    @classmethod
    def load(
        cls,
        profile: str | Path | None = None,
        overrides: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Read a profile by name or path.

        Args:
            profile: a path (has a `/` or ends in `.toml`) or a name in the config folder; None:
                `MODELKMS_PROFILE`, else `default` if there is one.
            overrides: fields that win over file and environment; None values are ignored.
            environment: None: `os.environ`.

        Raises:
            ProfileInvalid: not found, not TOML, an unknown or invalid field, or no endpoint.
        """
        environment = os.environ if environment is None else environment
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        chosen = profile if profile is not None else environment.get(PROFILE_VARIABLE) or None
        path = _find(chosen)
        fields: dict[str, Any] = {}
        if path is not None:
            fields = _read(path)
            if "source" in fields:
                raise ProfileInvalid(f"the profile {path} has an unknown field: source")
        fields = _merge(fields, _from_environment(environment))
        fields = _merge(fields, _overrides(given))
        if "endpoint" not in fields and path is None:
            raise ProfileInvalid(
                "no profile was chosen and there is no default profile",
                hint=f"export {PROFILE_VARIABLE}=NAME|PATH, or write {_path_of(DEFAULT_PROFILE)}",
            )
        try:
            return cls.model_validate({**fields, "source": path})
        except ValidationError as error:
            raise ProfileInvalid(
                f"the profile {path or '(from the environment)'} is invalid: {_told(error)}",
                hint=f"the fields are {', '.join(_settable())}",
            ) from None

    @property
    def target(self) -> str:
        """`host:port`."""
        return self.endpoint if _has_port(self.endpoint) else f"{self.endpoint}:{_DEFAULT_PORT}"

    @property
    def host(self) -> str:
        return self.target.rsplit(":", 1)[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.target.rsplit(":", 1)[1])

    @property
    def cache_folder(self) -> Path:
        """Where ciphertext is cached."""
        return self.cache_dir or platformdirs.user_cache_path("modelkms")

    @property
    def state_folder(self) -> Path:
        """Where the spool of pushes lies."""
        return self.state_dir or platformdirs.user_state_path("modelkms")

    @property
    def described(self) -> str:
        """For messages: the file it came from."""
        return str(self.source) if self.source else "the environment"


_SECTIONS: Mapping[str, type[BaseModel]] = {"vault": VaultProfile, "store": StoreProfile}


def profiles_folder() -> Path:
    """Where profiles chosen by name lie."""
    return platformdirs.user_config_path("modelkms") / "profiles"


def _path_of(name: str) -> Path:
    return profiles_folder() / f"{name}.toml"


def _find(profile: str | Path | None) -> Path | None:
    if profile is None:
        default = _path_of(DEFAULT_PROFILE)
        return default if default.is_file() else None
    if isinstance(profile, Path) or os.sep in profile or profile.endswith(".toml"):
        path = Path(profile).expanduser()
    elif _NAME.fullmatch(profile):
        path = _path_of(profile)
    else:
        raise ProfileInvalid(
            f"{profile!a} is neither the name nor the path of a profile",
            hint="a name is letters, digits, - and _; a path has a / or ends in .toml",
        )
    if not path.is_file():
        raise ProfileInvalid(
            f"there is no profile {path}", hint=f"name a file, or put it into {profiles_folder()}"
        )
    return path.absolute()


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileInvalid(f"the profile {path} cannot be read: {error}") from error
    return _resolve(fields, Profile, path.parent)


def _resolve(fields: dict[str, Any], model: type[BaseModel], base: Path) -> dict[str, Any]:
    """Paths of `fields` made absolute, relative to `base`; `~` is the home folder."""
    resolved = dict(fields)
    for name, value in fields.items():
        if name in _path_fields(model) and isinstance(value, str | Path):
            resolved[name] = base / Path(value).expanduser()
        elif name in _SECTIONS and model is Profile and isinstance(value, dict):
            resolved[name] = _resolve(value, _SECTIONS[name], base)
    return resolved


def _path_fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name in model.model_fields if name.endswith(("_file", "_dir")))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`MODELKMS_ENDPOINT`, …; `MODELKMS_VAULT__ADDRESS`, … for a section. Empty means unset."""
    found: dict[str, Any] = {}
    for name in Profile.model_fields.keys() - {*_SECTIONS, "source"}:
        value = environment.get(ENVIRONMENT_PREFIX + name.upper(), "")
        if value:
            found[name] = value.split() if name == "token_exec" else value
    for section, model in _SECTIONS.items():
        values = {
            name: value
            for name in model.model_fields
            if (value := environment.get(f"{ENVIRONMENT_PREFIX}{section}__{name}".upper(), ""))
        }
        if values:
            found[section] = values
    return _resolve(found, Profile, Path.cwd())


def _overrides(given: dict[str, object]) -> dict[str, Any]:
    unknown = sorted(given.keys() - set(_settable()))
    if unknown:
        raise ProfileInvalid(
            f"unknown setting: {', '.join(unknown)}",
            hint=f"there are {', '.join(_settable())}",
        )
    return _resolve(given, Profile, Path.cwd())


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = {**low, **high}
    for section in _SECTIONS:
        if isinstance(low.get(section), dict) and isinstance(high.get(section), dict):
            merged[section] = {**low[section], **high[section]}
    return merged


def _settable() -> list[str]:
    return sorted(Profile.model_fields.keys() - {"source"})


def _has_port(endpoint: str) -> bool:
    return re.search(r":[0-9]{1,5}$", endpoint) is not None


def _told(error: ValidationError) -> str:
    """Which fields, and why; never their values."""
    told = []
    for problem in error.errors(include_input=False, include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            told.append(f"unknown field {field}")
        elif problem["type"] == "missing":
            told.append(f"{field} is missing")
        elif problem["type"] == "string_pattern_mismatch" and field == "project":
            told.append(f"project must be {ID_RULE}")
        else:
            told.append(f"{field}: {problem['msg']}")
    return "; ".join(told)
