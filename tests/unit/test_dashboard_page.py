"""The page and the picture of the dashboard follow its file; the queries themselves are answered by
a real Prometheus in tests/integration/test_prometheus.py."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.dashboard.answers import Line, shown
from tests.dashboard.page import page, without_answers
from tests.dashboard.picture import picture
from tests.support.prometheus import panels
from tests.support.tools import REPOSITORY

GUIDE = REPOSITORY / "docs" / "guides" / "dashboard.md"


def test_the_page_describes_each_panel_as_it_is() -> None:
    nothing: dict[int, list[Line]] = {panel["id"]: [] for panel in panels()}
    written = GUIDE.read_text()
    assert without_answers(written) == without_answers(page(panels(), nothing)), "make dashboard"


def test_the_page_has_an_answer_for_each_panel() -> None:
    told = re.findall(r"^At the end: (.*)\.$", GUIDE.read_text(), re.MULTILINE)
    assert len(told) == sum(panel["type"] != "row" for panel in panels())
    assert "nothing" not in told


def test_the_picture_shows_each_panel() -> None:
    drawn = ElementTree.fromstring(GUIDE.with_suffix(".svg").read_text())
    texts = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {panel["title"] for panel in panels()}


def test_a_picture_is_drawn_from_answers_with_gaps_and_of_nothing() -> None:
    lines = [Line("a & b", (None, 1.0, None, 3.0)), Line("flat", (0.0,) * 4), Line("none", ())]
    for answers in ({panel["id"]: lines for panel in panels()}, {}):
        ElementTree.fromstring(picture(panels(), answers))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "nothing"),
        (0.9995, "percentunit", "99.95 %"),
        (0.0249, "s", "24.9 ms"),
        (3470, "s", "57.8 min"),
        (7776000, "s", "90 d"),
        (148 * 2**20, "bytes", "148 MiB"),
        (0.5, "Bps", "0.5 B/s"),
        (6.224, "reqps", "6.22/s"),
        (1148, "short", "1,148"),
    ],
)
def test_values_are_shown_as_people_read_them(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text
