"""Metrics of the SDK: what the steps of opening took, the cache, failures by reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from modelkms.client import Client
from modelkms.errors import ModelNotFoundOrDenied
from modelkms.metrics import ClientMetrics
from modelkms.profile import Profile
from prometheus_client import CollectorRegistry

from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def world(tmp_path: Path, template: Path) -> Iterator[SdkWorld]:
    with sdk_world(tmp_path, template) as world:
        yield world


def test_what_opening_took_and_whether_the_cache_had_it(world: SdkWorld, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights" * 1000)
    world.client("publisher").push(tmp_path / "model.bin", "face")
    registry = CollectorRegistry()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"modelkms_client_{name}", labels)

    profile = Profile.load(None, world.profile("reader"))
    with Client(profile, observer=ClientMetrics(registry)) as reader:
        for _ in range(2):
            with reader.open("face") as model:
                assert model.timings.total_s > 0
        assert reader.load("face", loader="bytes") == b"weights" * 1000
        with pytest.raises(ModelNotFoundOrDenied):
            reader.open("none")

    assert value("cache_lookups_total", result="miss") == 1
    assert value("cache_lookups_total", result="hit") == 2
    for step in ("lease", "download", "decrypt"):
        assert value("step_seconds_count", step=step) == 3
    assert value("step_seconds_count", step="load") == 1
    assert value("ready_seconds_count", until="open") == 3
    assert value("ready_seconds_count", until="loaded") == 1
    whole = value("ready_seconds_sum", until="open")
    steps = [value("step_seconds_sum", step=step) for step in ("lease", "download", "decrypt")]
    assert whole == pytest.approx(sum(step or 0 for step in steps))
    assert value("open_failures_total", reason="MODEL_NOT_FOUND_OR_DENIED") == 1


def test_f32_reasons_that_nobody_knows_share_a_series() -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    for number in range(1000):
        metrics.not_opened(f"FROM_A_NEWER_SERVICE_{number}")
    total = registry.get_sample_value("modelkms_client_open_failures_total", {"reason": "other"})
    assert total == 1000
