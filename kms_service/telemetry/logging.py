"""Structured logs: one event, one JSON line on standard error.

Events are snake_case names with fields. What comes from outside goes into fields only, where JSON
escapes every control character, so no value can forge a line or move a terminal's cursor (F24).
Secrets live in SecretBytes, whose repr shows their length only.
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import ExcInfo, Processor

Logger = structlog.stdlib.BoundLogger
_SILENCED = {"grpc._server": logging.CRITICAL, "alembic": logging.WARNING}
"""Loggers of libraries and what of them is worth a line. `grpc._server` logs the text of every
exception that reaches it; the pipeline has told it already, with an incident id. `alembic` tells
of itself at every probe of the database."""


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    style: Literal["json", "console"],
    stream: TextIO | None = None,
) -> None:
    """Route structlog and the standard library's logging to one place. For `__main__` only."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if style == "json":
        final += [
            structlog.processors.ExceptionRenderer(_traceback),
            structlog.processors.JSONRenderer(default=repr),
        ]
    else:
        final += [
            structlog.processors.ExceptionRenderer(_traceback_lines),
            _escape_controls,
            structlog.dev.ConsoleRenderer(colors=False),
        ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, lowest in _SILENCED.items():
        logging.getLogger(name).setLevel(lowest)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> Logger:
    """A logger; `name` is the module's."""
    # The wrapper is named here and not left to `configure_logging`: whoever builds a service
    # without it (a test, a host program) has the same logger, over the standard library's.
    logger: Logger = structlog.wrap_logger(
        logging.getLogger(name), wrapper_class=structlog.stdlib.BoundLogger
    )
    return logger


def escape_controls(text: str) -> str:
    """`text` with control, format (bidi) and line-separating characters as escapes."""
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs")
        else char
        for char in text
    )


_frames = ExceptionDictTransformer(show_locals=False, max_frames=30)
_KEY_LIKE = re.compile(r"[A-Za-z0-9+/=_-]{32,}")


def _traceback(exc_info: ExcInfo) -> list[dict[str, Any]]:
    """Frames without their local variables, which hold keys; messages without key-like text."""
    chain = _frames(exc_info)
    for error in chain:
        error["exc_value"] = _KEY_LIKE.sub("[redacted]", error["exc_value"])
    return chain


def _traceback_lines(exc_info: ExcInfo) -> str:
    lines = []
    for error in _traceback(exc_info):
        lines.append(f"{error['exc_type']}: {escape_controls(error['exc_value'])}")
        lines += [f"  {f['filename']}:{f['lineno']} {f['name']}" for f in error["frames"]]
    return "\n".join(lines)


def _escape_controls(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        # A traceback is ours and has lines.
        if isinstance(value, str) and key != "exception":
            event[key] = escape_controls(value)
    return event
