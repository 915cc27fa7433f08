"""What a Prometheus answers to the queries of a panel."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from tests.support.prometheus import Prometheus

RATE_INTERVAL = "10s"
"""For Grafana's `$__rate_interval` (four scrapes, there)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: its legend and its values, None where there was none."""

    legend: str
    values: tuple[float | None, ...]

    @property
    def last(self) -> float | None:
        """The last value that there was."""
        return next((value for value in reversed(self.values) if value is not None), None)


def lines_of(
    prometheus: Prometheus, panel: dict[str, Any], start: float, end: float, step_s: float
) -> list[Line]:
    """Every series of every query, over the whole time, in the order that the panel has."""
    found = []
    for target in panel["targets"]:
        answer = prometheus.ask(
            "query_range",
            query=target["expr"].replace("$__rate_interval", RATE_INTERVAL),
            start=str(start),
            end=str(end),
            step=str(step_s),
        )
        times = [start + number * step_s for number in range(int((end - start) / step_s) + 1)]
        for series in answer["result"]:
            known = {round(float(at)): float(value) for at, value in series["values"]}
            values = (known.get(round(time)) for time in times)
            found.append(
                Line(
                    _legend(target.get("legendFormat", ""), series["metric"]),
                    tuple(v if v is not None and math.isfinite(v) else None for v in values),
                )
            )
    return found


def _legend(template: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in; the port of a test's service says nothing."""
    labels = {**labels, "instance": "a"}
    text = re.sub(r"{{\s*(\w+)\s*}}", lambda name: labels.get(name[1], ""), template).strip()
    rest = [value for name, value in labels.items() if name not in ("job", "instance")]
    return text or (" ".join(rest) if not template else "")


def shown(value: float | None, unit: str) -> str:
    """As a person reads it, in Grafana's units."""
    if value is None:
        return "nothing"
    if unit == "percentunit":
        return f"{100 * value:.4g} %"
    if unit in ("bytes", "Bps"):
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}" + ("/s" if unit == "Bps" else "")
            value /= 1024
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if abs(value) >= 2 * size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} s" if abs(value) >= 1 else f"{1000 * value:.3g} ms"
    ending = {"reqps": "/s", "ops": "/s"}.get(unit, "")
    return f"{value:,.0f}{ending}" if value == round(value) else f"{value:,.3g}{ending}"
