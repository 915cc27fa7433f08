"""Traces: where one call spent its time, across client, service and Vault. Off unless configured.

A trace names methods, Vault operations, outcomes and times. Never a model, a person, a key or a
token: whoever may see traces need not be whoever may see the audit log. What leads from one to the
other is the trace id, which log and audit records have.

What is always on is reading the caller's `traceparent` (W3C Trace Context), so that a client's
trace leads to our records even where the service makes none. It is a claim of the caller: checked
for its form, used for nothing but finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

TRACEPARENT = "traceparent"
# §3.2.2: version 00 has exactly these fields; a trace id or parent id of zeros is invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Metadata = Iterable[tuple[str, str | bytes]]


class CallSpan(Protocol):
    """One call that is being handled."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty if the call belongs to no trace."""

    def ended(self, code: str, reason: str) -> None:
        """How it ends; called once. Names from closed sets."""


class Tracer(Protocol):
    def call(self, method: str, metadata: Metadata) -> CallSpan:
        """A span of the full gRPC method, within the caller's trace if it says that it has one."""

    def within(self, span: CallSpan) -> AbstractContextManager[None]:
        """What begins within is part of the span, in this thread."""

    def request(self, name: str) -> AbstractContextManager[Mapping[str, str]]:
        """A span of one request to something else, within what this thread is doing.

        Returns:
            Headers that hand the trace on.
        """

    def close(self) -> None:
        """Send what waits, for a short while."""


class NoTracer:
    """Makes no traces, and knows the caller's."""

    def call(self, _method: str, metadata: Metadata) -> CallSpan:
        return _Foreign(trace_id(metadata))

    def within(self, _span: CallSpan) -> AbstractContextManager[None]:
        return _NOTHING

    @contextmanager
    def request(self, _name: str) -> Iterator[Mapping[str, str]]:
        yield _NO_HEADERS

    def close(self) -> None: ...


class _Foreign:
    def __init__(self, trace: str) -> None:
        self.trace_id = trace

    def ended(self, code: str, reason: str) -> None: ...


_NOTHING = nullcontext()
_NO_HEADERS: Mapping[str, str] = {}


def traceparent(metadata: Metadata) -> str:
    """The caller's, if it has exactly one and that is valid; else empty."""
    values = [value for key, value in metadata if key == TRACEPARENT]
    if len(values) != 1 or not isinstance(values[0], str):
        return ""
    return values[0] if _TRACEPARENT.fullmatch(values[0]) is not None else ""


def trace_id(metadata: Metadata) -> str:
    """32 hexadecimal digits; empty without a valid `traceparent`, or with more than one."""
    return traceparent(metadata)[3:35]
