"""What of a caller's `traceparent` is believed."""

from __future__ import annotations

import pytest

from kms_service.telemetry.tracing import trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


def test_the_trace_of_a_caller_is_found() -> None:
    assert trace_id([("x-other", "y"), ("traceparent", GOOD)]) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACE,
        GOOD.upper(),
        GOOD + "\n",
        GOOD + "-00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        GOOD.encode(),
    ],
)
def test_f24_what_is_no_trace_context_is_nothing(value: str | bytes) -> None:
    assert trace_id([("traceparent", value)]) == ""


def test_two_are_none() -> None:
    assert trace_id([("traceparent", GOOD), ("traceparent", GOOD)]) == ""
