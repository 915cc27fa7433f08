"""References: what people type, and the resource names (AIP-122) they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from modelkms.errors import ReferenceInvalid

ID_RULE = "1 to 63 lower-case letters, digits and hyphens, beginning with a letter"
STABLE = "stable"
"""The alias that an unversioned reference means."""

_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NUMBER = r"[1-9][0-9]{0,8}"
_SHAPE = "[project/]model[@version|@alias]"
_REFERENCE = re.compile(
    rf"(?:(?P<project>{_ID})/)?(?P<model>{_ID})(?:@(?:(?P<number>{_NUMBER})|(?P<alias>{_ID})))?"
)
_RESOURCE = re.compile(
    rf"projects/(?P<project>{_ID})/models/(?P<model>{_ID})"
    rf"(?:/versions/(?P<number>{_NUMBER})|/aliases/(?P<alias>{_ID}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model, or one version or alias of it.

    Attributes:
        project: id of the project.
        model: id of the model.
        number: of the version, from 1; None unless a version is named.
        alias: None unless an alias is named.
    """

    project: str
    model: str
    number: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str, default_project: str | None = None) -> Self:
        """Read `[project/]model[@version|@alias]`, or a resource name of a model, version or alias.

        Raises:
            ReferenceInvalid: it is neither, or has no project and there is no default.
        """
        match = _REFERENCE.fullmatch(text) or _RESOURCE.fullmatch(text)
        if match is None:
            raise ReferenceInvalid(
                f"{_shown(text)} is not a model reference",
                hint=f"write {_SHAPE}; project, model and alias are {ID_RULE}",
            )
        project = match["project"] or default_project
        if project is None:
            raise ReferenceInvalid(
                f"{_shown(text)} names no project, and the profile has no default",
                hint=f"write project/{text}, or set project in the profile",
            )
        number = match["number"]
        return cls(project, match["model"], int(number) if number else None, match["alias"])

    @property
    def model_name(self) -> str:
        """`projects/{project}/models/{model}`."""
        return f"projects/{self.project}/models/{self.model}"

    @property
    def resource_name(self) -> str:
        """What the service resolves: the model (its `stable`), the alias or the version."""
        if self.number is not None:
            return f"{self.model_name}/versions/{self.number}"
        if self.alias is not None:
            return f"{self.model_name}/aliases/{self.alias}"
        return self.model_name

    def require_version(self) -> str:
        """The resource name, if an explicit version is named.

        Raises:
            ReferenceInvalid: a model or an alias is named.
        """
        if self.number is None:
            raise ReferenceInvalid(
                f"{self} does not name a version",
                hint=f"write the version's number: {self.project}/{self.model}@1",
            )
        return self.resource_name

    def require_model(self) -> str:
        """The model's resource name, if nothing but a model is named.

        Raises:
            ReferenceInvalid: a version or an alias is named too.
        """
        if self.number is not None or self.alias is not None:
            raise ReferenceInvalid(
                f"{self} names a version or alias where a model is meant",
                hint=f"write {self.project}/{self.model}",
            )
        return self.model_name

    def with_number(self, number: int) -> Reference:
        return Reference(self.project, self.model, number)

    def __str__(self) -> str:
        """As people write it: `camera/face-detector@3`."""
        suffix = self.number if self.number is not None else self.alias
        return f"{self.project}/{self.model}" + (f"@{suffix}" if suffix is not None else "")


def people_form(resource_name: str) -> str:
    """`camera/fd@3` for `projects/camera/models/fd/versions/3`; other names as they are."""
    match = _RESOURCE.fullmatch(resource_name)
    return resource_name if match is None else str(Reference.parse(resource_name))


def check_id(text: str, what: str) -> str:
    """`text`, if it is an id.

    Raises:
        ReferenceInvalid: it is not.
    """
    if re.fullmatch(_ID, text) is None:
        raise ReferenceInvalid(f"{_shown(text)} is not a {what} id", hint=f"ids are {ID_RULE}")
    return text


def _shown(text: str) -> str:
    """`text` quoted and escaped, so that control characters do nothing in a terminal or log."""
    return ascii(text if len(text) <= 200 else text[:200] + "…")
