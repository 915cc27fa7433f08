"""Alert rules fire when they must and only then (promtool), and each leads to its runbook page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelkms.cli.__main__ import _app as client_app
from typer.main import get_command

from kms_service.__main__ import app as server_app
from kms_service.rpc.error_table import INTERNAL_REASON, reasons
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
    """Every word of `modelkms admin master-key status …` up to the first argument."""
    roots = {"modelkms": get_command(client_app()), "modelkms-server": get_command(server_app)}
    named = 0
    for page in RUNBOOKS.glob("*.md"):
        for program, line in re.findall(
            r"(?:`| {6})(modelkms-server|modelkms) ([a-z-][^`\n]*)", page.read_text()
        ):
            command: Any = roots[program]
            words = re.sub(r"--profile \S+ ", "", line).split()
            for word in words:
                if not hasattr(command, "commands") or not re.fullmatch(r"[a-z-]+", word):
                    break
                assert word in command.commands, f"{page.name}: {program} {line}"
                command = command.commands[word]
            options = {option for each in command.params for option in each.opts}
            asked = {word for word in words if word.startswith("--") and word != "--"}
            assert asked <= options | {"--help"}, f"{page.name}: {program} {line}"
            named += 1
    assert named > 25


def test_runbooks_name_metrics_and_reasons_that_exist() -> None:
    metrics = (REPOSITORY / "docs" / "guides" / "metrics.md").read_text()
    known = {*reasons(), INTERNAL_REASON}
    for page in RUNBOOKS.glob("*.md"):
        text = page.read_text()
        for name in re.findall(r"\bmodelkms_[a-z_]+", text):
            assert re.sub("_(bucket|sum|count)$", "", name) in metrics, f"{page.name}: {name}"
        for reason in re.findall(r"`([A-Z]+_[A-Z_]+)`", text):
            assert reason in known, f"{page.name}: {reason}"


def test_pages_that_wake_somebody_say_what_to_type() -> None:
    """At three in the morning nobody remembers a command."""
    for name, rule in alerts().items():
        text = (REPOSITORY / rule["annotations"]["runbook"]).read_text()
        if rule["labels"]["severity"] == "page":
            assert re.search(r"^ {4,6}\S", text, re.MULTILINE), name
