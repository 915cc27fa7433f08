"""Resource names (AIP-122), parsed once at the edge."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from kms_service.domain.errors import InvalidField

ID_RULE = "1 to 63 lower-case letters, digits and hyphens, beginning with a letter"
_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NUMBER = r"[1-9][0-9]{0,8}"
_HEX128 = r"[0-9a-f]{32}"


def check_id(value: str, field: str) -> str:
    """`value`, if it is an id.

    Raises:
        InvalidField: it is not.
    """
    if re.fullmatch(_ID, value) is None:
        raise InvalidField(field, f"must be {ID_RULE}")
    return value


def _parse(pattern: str, shape: str, value: str, field: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, value)
    if match is None:
        raise InvalidField(field, f"must be {shape}; each id {ID_RULE}")
    return match.groups()


@dataclass(frozen=True, slots=True, order=True)
class ProjectName:
    """`projects/{project}`."""

    project: str

    @classmethod
    def parse(cls, value: str, field: str = "name") -> Self:
        return cls(*_parse(rf"projects/({_ID})", "projects/{project}", value, field))

    def __str__(self) -> str:
        return f"projects/{self.project}"


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """`projects/{project}/models/{model}`."""

    project: str
    model: str

    @classmethod
    def parse(cls, value: str, field: str = "name") -> Self:
        shape = "projects/{project}/models/{model}"
        return cls(*_parse(rf"projects/({_ID})/models/({_ID})", shape, value, field))

    @property
    def parent(self) -> ProjectName:
        return ProjectName(self.project)

    def __str__(self) -> str:
        return f"projects/{self.project}/models/{self.model}"


@dataclass(frozen=True, slots=True, order=True)
class VersionName:
    """`projects/{project}/models/{model}/versions/{number}`."""

    project: str
    model: str
    number: int

    @classmethod
    def parse(cls, value: str, field: str = "name") -> Self:
        project, model, number = _parse(
            rf"projects/({_ID})/models/({_ID})/versions/({_NUMBER})",
            "projects/{project}/models/{model}/versions/{number}",
            value,
            field,
        )
        return cls(project, model, int(number))

    @property
    def parent(self) -> ModelName:
        return ModelName(self.project, self.model)

    def __str__(self) -> str:
        return f"projects/{self.project}/models/{self.model}/versions/{self.number}"


@dataclass(frozen=True, slots=True, order=True)
class AliasName:
    """`projects/{project}/models/{model}/aliases/{alias}`."""

    project: str
    model: str
    alias: str

    @classmethod
    def parse(cls, value: str, field: str = "name") -> Self:
        shape = "projects/{project}/models/{model}/aliases/{alias}"
        return cls(
            *_parse(rf"projects/({_ID})/models/({_ID})/aliases/({_ID})", shape, value, field)
        )

    @property
    def parent(self) -> ModelName:
        return ModelName(self.project, self.model)

    def __str__(self) -> str:
        return f"projects/{self.project}/models/{self.model}/aliases/{self.alias}"


@dataclass(frozen=True, slots=True, order=True)
class LeaseName:
    """`projects/{project}/leases/{lease}`."""

    project: str
    lease: str

    @classmethod
    def parse(cls, value: str, field: str = "name") -> Self:
        shape = "projects/{project}/leases/{lease}"
        return cls(*_parse(rf"projects/({_ID})/leases/({_HEX128})", shape, value, field))

    def __str__(self) -> str:
        return f"projects/{self.project}/leases/{self.lease}"


@dataclass(frozen=True, slots=True, order=True)
class RewrapName:
    """`projects/{project}/rewraps/{rewrap}`."""

    project: str
    rewrap: str

    @classmethod
    def parse(cls, value: str, field: str = "name") -> Self:
        shape = "projects/{project}/rewraps/{rewrap}"
        return cls(*_parse(rf"projects/({_ID})/rewraps/({_HEX128})", shape, value, field))

    @property
    def parent(self) -> ProjectName:
        return ProjectName(self.project)

    def __str__(self) -> str:
        return f"projects/{self.project}/rewraps/{self.rewrap}"


@dataclass(frozen=True, slots=True, order=True)
class ServiceName:
    """The service as a whole: what belongs to no project."""

    def __str__(self) -> str:
        return "service"


SERVICE = ServiceName()

STABLE = "stable"
"""The alias that an unversioned reference means."""

Reference = AliasName | VersionName
"""What can be resolved: a model means its alias `stable`."""


@lru_cache(maxsize=1024)
def parse_reference(value: str, field: str = "name") -> Reference:
    """A model (its `stable`), alias or version name.

    Raises:
        InvalidField: it is none of them.
    """
    if "/versions/" in value:
        return VersionName.parse(value, field)
    if "/aliases/" in value:
        return AliasName.parse(value, field)
    model = ModelName.parse(value, field)
    return AliasName(model.project, model.model, STABLE)
