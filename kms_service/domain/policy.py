"""What can be said of policy: sets, explanations, rehearsals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kms_service.domain.decisions import Decision


class Effect(StrEnum):
    PERMIT = "permit"
    FORBID = "forbid"


class Verdict(StrEnum):
    """How an access stands, or how a policy stands to it."""

    YES = "yes"
    NO = "no"
    DEPENDS = "depends"
    """On circumstances that are not known."""
    FAILS = "fails"
    """Cannot be evaluated: refuses."""


@dataclass(frozen=True, slots=True)
class PolicyText:
    """One policy. `text` is Cedar."""

    id: str
    effect: Effect
    text: str


@dataclass(frozen=True, slots=True)
class PolicySetFiles:
    """The files of a set, as text; None: those of the set in force."""

    policies: Mapping[str, str]
    canaries: str | None = None
    groups: str | None = None


@dataclass(frozen=True, slots=True)
class PolicySetView:
    epoch: str
    policies: tuple[PolicyText, ...]
    groups: Mapping[str, tuple[str, ...]]
    canary_cases: int


@dataclass(frozen=True, slots=True)
class Finding:
    """How one policy stands to an access. `missing`: what it asks of principal and context that
    is not so, or not known, as a Cedar expression."""

    policy: PolicyText
    verdict: Verdict
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an access stands under the set in force, and each policy that speaks of it."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    groups: tuple[str, ...]
    epoch: str


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Decisions of two sets on the same requests.

    Attributes:
        refusal: why the other set would be refused when loaded; empty: it would not be.
        pairs: for each request, the decision of the set in force and of the other; empty if the
            other cannot even be parsed.
    """

    refusal: str
    pairs: tuple[tuple[Decision, Decision], ...] = field(default=())
