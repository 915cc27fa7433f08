"""What a policy decision costs as the set grows: asked anew, and asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.domain.decisions import AccessRequest, Action, Circumstances, Resource
from kms_service.domain.identity import principal_of
from tests.bench.measure import interleave, table

_SIZES = (10, 100, 1000)
_CALLS, _NEW_CALLS = 2000, 100
_NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
_HOUR = timedelta(hours=1)


def run(folder: Path, rounds: int) -> str:
    """The table as Markdown."""
    engines = {str(size): _engine(folder / str(size), size) for size in _SIZES}
    for engine in engines.values():
        assert engine.decide(_request(0)).permitted
    # Another minute is another request: none of these was asked before.
    minutes = iter(range(1, 10**9))
    anew = interleave(
        {size: partial(_ask_anew, engine, minutes) for size, engine in engines.items()}, rounds
    )
    again = interleave(
        {size: partial(_ask_again, engine) for size, engine in engines.items()}, rounds
    )
    rows = [
        (
            f"{size:,}",
            f"{anew[str(size)].median / _NEW_CALLS * 1e6:,.0f}",
            f"{again[str(size)].median / _CALLS * 1e6:,.1f}",
            f"{again[str(size)].median / again[str(_SIZES[0])].median:.2f}",
        )
        for size in _SIZES
    ]
    return (
        "## Policy decisions\n\n"
        "One permit for each of so many principals, and a request that one of them lets through.\n"
        "Again: the whole canonical request is known, as it is for the leases of one minute.\n\n"
        + table(("policies", "anew µs", "again µs", "again, ratio to the smallest"), rows)
    )


def _engine(folder: Path, policies: int) -> CedarPolicyEngine:
    folder.mkdir(parents=True)
    text = "\n".join(
        f'@id("reader-{number}") permit (principal, action in ModelKMS::Action::"Read", resource)\n'
        f'when {{ principal.path like "/reader-{number}/*" }};'
        for number in range(policies)
    )
    (folder / "policy.cedar").write_text(text)
    cases = [
        {
            "principal": f"spiffe://example.org/{name}",
            "action": "LeaseDataKey",
            "project": "demo",
            "model": "face",
            "permitted": permitted,
        }
        for name, permitted in (("reader-0/a", True), ("stranger", False))
    ]
    (folder / "canaries.json").write_text(json.dumps({"cases": cases}))
    engine = CedarPolicyEngine(folder, _HOUR, 24 * _HOUR)
    engine.reload()
    return engine


def _request(minute: int) -> AccessRequest:
    return AccessRequest(
        principal_of("spiffe://example.org/reader-0/a"),
        Action.LEASE_DATA_KEY,
        Resource("demo", "face"),
        _NOON + timedelta(minutes=minute),
        Circumstances(),
    )


def _ask_anew(engine: CedarPolicyEngine, minutes: Iterator[int]) -> None:
    for _ in range(_NEW_CALLS):
        engine.decide(_request(next(minutes)))


def _ask_again(engine: CedarPolicyEngine) -> None:
    request = _request(0)
    for _ in range(_CALLS):
        engine.decide(request)
