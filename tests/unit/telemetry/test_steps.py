"""Durations of steps: counted by thread, added up, without what is within."""

from __future__ import annotations

import threading
import time

import pytest
from prometheus_client import CollectorRegistry

from kms_service.telemetry.steps import BUCKETS_S, STEPS, StepTimes

ROUNDS = 2_000
THREADS = 4


def counted(times: StepTimes) -> tuple[dict[str, float], dict[str, float]]:
    """Observations and seconds by step, as a scrape sees them."""
    registry = CollectorRegistry()
    registry.register(times)
    found: dict[str, dict[str, float]] = {"_count": {}, "_sum": {}}
    for family in registry.collect():
        for sample in family.samples:
            for kind, values in found.items():
                if sample.name == f"modelkms_step_seconds{kind}":
                    values[sample.labels["step"]] = sample.value
    return found["_count"], found["_sum"]


def test_every_step_is_there_before_it_is_ever_taken() -> None:
    counts, sums = counted(StepTimes())
    assert counts == sums == dict.fromkeys(STEPS, 0.0)


def test_many_threads_lose_no_observation_and_ended_ones_stay_counted() -> None:
    times = StepTimes()
    vault, policy = times.step("vault"), times.step("policy")

    def work() -> None:
        for _ in range(ROUNDS):
            with vault, policy:
                pass

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    counted(times)  # a scrape meanwhile
    for thread in threads:
        thread.join()
    for _ in range(2):  # the second scrape finds the threads gone, and counted already
        counts, _ = counted(times)
        assert counts["vault"] == counts["policy"] == ROUNDS * THREADS
        assert counts["audit"] == 0


def test_time_within_an_inner_step_is_the_inner_steps() -> None:
    times = StepTimes()
    began = time.perf_counter()
    with times.step("database"), times.step("policy"):
        time.sleep(0.05)
    whole = time.perf_counter() - began
    _, sums = counted(times)
    assert sums["policy"] >= 0.05
    assert sums["database"] + sums["policy"] <= whole
    assert sums["database"] <= whole - 0.05


def test_a_step_that_raises_is_counted_and_its_error_goes_on() -> None:
    times = StepTimes()
    with pytest.raises(KeyError), times.step("vault"):
        raise KeyError
    counts, _ = counted(times)
    assert counts["vault"] == 1


def test_an_observation_falls_into_its_bucket() -> None:
    times = StepTimes()
    with times.step("audit"):
        time.sleep(0.03)
    registry = CollectorRegistry()
    registry.register(times)
    below = registry.get_sample_value(
        "modelkms_step_seconds_bucket", {"step": "audit", "le": "0.025"}
    )
    whole = registry.get_sample_value(
        "modelkms_step_seconds_bucket", {"step": "audit", "le": "+Inf"}
    )
    assert (below, whole) == (0, 1)
    assert list(BUCKETS_S) == sorted(BUCKETS_S)


def test_unknown_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="no such step"):
        StepTimes().step("lunch")
