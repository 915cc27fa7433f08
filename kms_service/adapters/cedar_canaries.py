"""Cases that stand beside the policies: who must be let in, and who must not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import Annotated

from modelkms_api.v1.key_transport_pb2 import KeyTransportSuite
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kms_service.domain.decisions import AccessRequest, Action, Circumstances, Resource
from kms_service.domain.identity import principal_of

_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
_STRANGER = "spiffe://stranger.invalid/nobody"
_STRANGER_BY_TOKEN = "oidc:stranger.invalid:nobody"  # noqa: S105 - a name


def _principal_id(value: str) -> str:
    principal_of(value)
    return value


def _address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _suite(value: str) -> str:
    if f"KEY_TRANSPORT_SUITE_{value}" not in KeyTransportSuite.keys():  # noqa: SIM118 - no mapping
        raise ValueError("no such key-transport suite")
    return value


class CanaryCase(BaseModel):
    """One case: who, what, on what, under which circumstances, and whether it must be permitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    principal: Annotated[str, AfterValidator(_principal_id)]
    """SPIFFE ID, or `oidc:{issuer name}:{subject}`."""
    action: Action
    project: str = ""
    """Empty: the service itself."""
    model: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    attributes: dict[str, str] = Field(default_factory=dict)
    groups: tuple[str, ...] = ()
    """Of its token, as `issuer:group`; those of groups.json come by themselves."""
    claims: dict[str, list[str]] = Field(default_factory=dict)
    instance_proven: bool = True
    source: Annotated[str, AfterValidator(_address)] | None = None
    suite: Annotated[str, AfterValidator(_suite)] | None = None
    client_version: str = ""
    time: datetime = _NOON
    permitted: bool

    def request(self) -> AccessRequest:
        """The case as a request."""
        known = principal_of(self.principal)
        claims = tuple(
            sorted((name, tuple(sorted(values))) for name, values in self.claims.items())
        )
        return AccessRequest(
            principal=replace(
                known,
                groups=tuple(sorted(self.groups)),
                claims=claims,
                instance_proven=self.instance_proven,
            ),
            action=self.action,
            resource=Resource(self.project, self.model, self.labels),
            time=self.time if self.time.tzinfo else self.time.replace(tzinfo=UTC),
            circumstances=Circumstances(
                source=self.source or "",
                suite=KeyTransportSuite.Value(f"KEY_TRANSPORT_SUITE_{self.suite}")
                if self.suite
                else 0,
                client_version=self.client_version,
                attributes=self.attributes,
            ),
        )

    @property
    def described(self) -> str:
        """For people: `spiffe://… LeaseDataKey camera/face`."""
        place = "/".join(part for part in (self.project, self.model) if part) or "(service)"
        return f"{self.principal} {self.action.value} {place}"


class CanaryFile(BaseModel):
    """What `canaries.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: tuple[CanaryCase, ...]
    retired: tuple[CanaryCase, ...] = ()
    """Cases of the set before that this one means to leave behind."""

    def dropped_from(self, before: CanaryFile) -> CanaryCase | None:
        """A case of `before` that is neither here (with whatever outcome) nor retired."""
        kept = {_without_outcome(case) for case in (*self.cases, *self.retired)}
        return next((case for case in before.cases if _without_outcome(case) not in kept), None)


def stranger_requests() -> Iterator[AccessRequest]:
    """What every set must refuse, whatever its own cases say: somebody nobody has heard of, by
    certificate or by token, doing anything to anything (what no action applies to is refused by
    Cedar itself)."""
    stranger = principal_of(_STRANGER_BY_TOKEN)
    claims = (("stranger", ("stranger",)),)
    principals = (principal_of(_STRANGER), replace(stranger, claims=claims))
    places = (Resource(""), Resource("stranger"), Resource("stranger", "stranger"))
    for principal, action, place in product(principals, Action, places):
        yield AccessRequest(principal, action, place, _NOON)


def _without_outcome(case: CanaryCase) -> str:
    return case.model_dump_json(exclude={"permitted"})
