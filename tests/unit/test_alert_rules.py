"""Alert rules fire when they must and only then (promtool), and each leads to its runbook page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tools import REPOSITORY, prometheus_program

FOLDER = REPOSITORY / "deploy" / "prometheus"
RULES = FOLDER / "modelkms.rules.yml"
CASES = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOKS = REPOSITORY / "docs" / "runbooks"


def rules() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(RULES.read_text())
    return loaded


def alerts() -> dict[str, dict[str, Any]]:
    """By name."""
    found = [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]
    by_name = {rule["alert"]: rule for rule in found}
    assert len(by_name) == len(found)
    return by_name


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_each_planted_fault_raises_exactly_the_alerts_it_should(
    cases: Path, tmp_path: Path
) -> None:
    plain = rules()
    for group in plain["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)  # promtool would have each repeated at each case
    (tmp_path / RULES.name).write_text(yaml.safe_dump(plain))
    whole = yaml.safe_load(cases.read_text())
    for case in whole["tests"]:
        case["alert_rule_test"] = with_all_others_quiet(case["alert_rule_test"])
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(whole))
    done = subprocess.run(
        [prometheus_program("promtool"), "test", "rules", "cases.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def with_all_others_quiet(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At each time that a case looks at, every alert that it does not name is quiet."""
    named = {(check["eval_time"], check["alertname"]) for check in checks}
    return checks + [
        {"eval_time": time, "alertname": name}
        for time in sorted({time for time, _ in named})
        for name in alerts()
        if (time, name) not in named
    ]


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    fired = {
        check["alertname"]
        for cases in CASES
        for case in yaml.safe_load(cases.read_text())["tests"]
        for check in case["alert_rule_test"]
        if check.get("exp_alerts")
    }
    assert fired == alerts().keys()


def test_each_alert_says_whom_it_wakes_and_where_help_is() -> None:
    pages = set()
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}, name
        page = REPOSITORY / rule["annotations"]["runbook"]
        assert page.exists(), name
        text = page.read_text()
        assert text.startswith(f"# {name}\n"), page.name
        for chapter in ("## What it means", "## Look", "## Do"):
            assert chapter in text, f"{page.name}: {chapter}"
        assert f"]({page.name})" in (RUNBOOKS / "README.md").read_text()
        pages.add(page.name)
    assert {page.name for page in RUNBOOKS.glob("*.md")} == pages | {"README.md"}


def test_runbooks_name_commands_that_exist() -> None:
    """`modelkms-server …` and `modelkms …` in runbooks are commands of ours."""
    help_of: dict[str, str] = {}
    for page in RUNBOOKS.glob("*.md"):
        for program, command in re.findall(
            r"`(modelkms-server|modelkms) ([a-z-]+)", page.read_text()
        ):
            if program not in help_of:
                help_of[program] = subprocess.run(
                    [REPOSITORY / ".venv" / "bin" / program, "--help"],
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=60,
                ).stdout
            assert re.search(rf"\b{command}\b", help_of[program]), f"{page.name}: {command}"
