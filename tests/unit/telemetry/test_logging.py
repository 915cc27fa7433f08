"""F24, F27: what is logged is one parsable line, and never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from kms_service.domain.secret import SecretBytes
from kms_service.telemetry.logging import configure_logging, escape_controls, get_logger

KEY = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_one_event_is_one_json_object(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    get_logger("module").info("lease_issued", lease="projects/p/leases/1", seconds=3)
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "lease_issued",
        "lease": "projects/p/leases/1",
        "seconds": 3,
        "level": "info",
        "logger": "module",
    }


def test_level(stream: io.StringIO) -> None:
    configure_logging("warning", "json", stream)
    get_logger("module").info("quiet")
    assert stream.getvalue() == ""


def test_libraries_are_routed_too(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    logging.getLogger("library").warning("it %s", "happened", extra={"code": 7})
    event = json.loads(stream.getvalue())
    assert (event["event"], event["code"], event["logger"]) == ("it happened", 7, "library")


@pytest.mark.parametrize("style", ["json", "console"])
def test_f24_no_value_forges_a_line(stream: io.StringIO, style: str) -> None:
    configure_logging("info", "json" if style == "json" else "console", stream)
    hostile = 'x\n{"event":"forged"}\r\x1b[2J\u202e\u2028\x85'
    get_logger("module").info("refused", name=hostile)
    logging.getLogger("library").warning("%s", hostile)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()
    if style == "json":
        assert json.loads(lines[0])["name"] == hostile


@pytest.mark.parametrize("style", ["json", "console"])
def test_f27_tracebacks_show_no_variables_and_no_keys(stream: io.StringIO, style: str) -> None:
    configure_logging("info", "json" if style == "json" else "console", stream)

    def fail(data_key: str) -> None:
        plaintext = data_key * 2
        raise RuntimeError(f"cannot use {plaintext}")

    try:
        fail(KEY)
    except RuntimeError as error:
        get_logger("module").error("rpc_internal_error", exc_info=error)
    told = stream.getvalue()
    assert KEY not in told
    assert "plaintext" not in told
    assert "RuntimeError" in told
    assert "[redacted]" in told
    assert "fail" in told  # the frame


def test_secrets_are_not_shown(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    get_logger("module").info("mistake", key=SecretBytes(KEY.encode()))
    assert json.loads(stream.getvalue())["key"] == f"SecretBytes({len(KEY)} bytes)"


def test_escape_controls() -> None:
    assert escape_controls("a\nb\x1b\u202eé") == "a\\nb\\x1b\\u202eé"
