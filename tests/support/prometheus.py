"""A real Prometheus with the shipped rules, scraping services of this machine."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.tools import REPOSITORY, prometheus_program

RULES = REPOSITORY / "deploy" / "prometheus" / "modelkms.rules.yml"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboards" / "modelkms.json"
WAIT_S = 90.0


@dataclass
class Prometheus:
    """Running; `url` is of its API."""

    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: Path, ports: list[int], rules: str) -> Prometheus:
        """Scrapes `ports` of loopback and evaluates `rules` every second."""
        config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        targets = [f"127.0.0.1:{port}" for port in ports]
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / RULES.name).write_text(rules)
        log = folder / "prometheus.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    prometheus_program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        end = time.monotonic() + WAIT_S
        while not (found := re.search(r'"Listening on" address=(\S+)', log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        return cls(f"http://{found[1]}", process)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        try:
            alerts = self.ask("alerts")["alerts"]
        except urllib.error.HTTPError:  # it has just begun
            return {"(Prometheus is not ready)"}
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def expect(self, *alerts: str) -> None:
        """Exactly these fire, within a while."""
        wanted = {f"ModelKMS{alert}" for alert in alerts}
        end = time.monotonic() + WAIT_S
        while (firing := self.firing()) != wanted:
            assert time.monotonic() < end, f"firing: {sorted(firing)}, wanted: {sorted(wanted)}"
            time.sleep(0.2)


@contextmanager
def running(folder: Path, ports: list[int], rules: str | None = None) -> Iterator[Prometheus]:
    """Started in `folder`, with the shipped rules unless others are given; stopped at the end."""
    prometheus = Prometheus.start(folder, ports, rules or RULES.read_text())
    try:
        yield prometheus
    finally:
        prometheus.stop()


def impatient(rules: str, times: Mapping[str, str]) -> str:
    """The rules without `for`, and with shorter times where an expression has one.

    Args:
        times: what stands there to what is to stand there; each must be found.
    """
    for long, short in times.items():
        assert long in rules, long
        rules = rules.replace(long, short)
    parsed = yaml.safe_load(rules)
    for group in parsed["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    text: str = yaml.safe_dump(parsed)
    return text


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, in order; rows are panels without targets."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found
