"""The page: what each panel asks, what it told on a running stack, and how to read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.dashboard.answers import Line, shown

HEAD = (
    "# The dashboard, panel by panel\n\n"
    "Written by `make dashboard`: the development stack (real OpenBao, the service, readers, a "
    "publisher, a stranger, an officer) under a real Prometheus that scrapes every second, for two "
    "minutes. In that time models were published and opened, leases revoked, the master key "
    "rotated and its data keys rewrapped, and Vault was killed and started again. Each query of "
    "[the Grafana dashboard](../../deploy/grafana/dashboards/modelkms.json) was then put to that "
    "Prometheus.\n\n"
    "The picture is drawn from those answers by `tests/dashboard`, at the places and in the "
    "colours that the dashboard's file says; it is no screenshot of Grafana.\n\n"
    "![the panels](dashboard.svg)\n"
)


def page(panels: list[dict[str, Any]], answers: Mapping[int, list[Line]]) -> str:
    """Markdown.

    Args:
        answers: by id of the panel.
    """
    parts = [HEAD]
    for panel in panels:
        if panel["type"] == "row":
            parts.append(f"## {panel['title']}\n")
            continue
        unit = panel["fieldConfig"]["defaults"]["unit"]
        told = "; ".join(_told(line, unit) for line in answers[panel["id"]]) or "nothing"
        parts.append(described(panel) + f"\nAt the end: {told}.\n")
    return "\n".join(parts)


def described(panel: dict[str, Any]) -> str:
    """What of a panel does not depend on the run."""
    queries = "\n".join(target["expr"] for target in panel["targets"])
    return f"### {panel['title']}\n\n{panel['description']}\n\n```promql\n{queries}\n```\n"


def _told(line: Line, unit: str) -> str:
    value = shown(line.last, unit)
    return f"{line.legend} {value}" if line.legend else value


def without_answers(text: str) -> str:
    """The page less what a run told: what must follow the dashboard's file."""
    return re.sub(r"^At the end: .*$", "At the end: .", text, flags=re.MULTILINE)
