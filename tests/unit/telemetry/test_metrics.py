"""What is counted, and that the number of series does not depend on what callers send."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from kms_service.telemetry.master_key_metrics import MAX_PROJECTS, MasterKeyReading
from kms_service.telemetry.metrics import Metrics


def metrics() -> Metrics:
    return Metrics(["/s/A", "/s/B"], ["OK", "NOT_FOUND"], ["DENIED"])


def series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


def test_f32_names_nobody_declared_share_one_series() -> None:
    counted = metrics()
    for method in ("/s/A", "/s/other"):
        counted.method(method).observe("OK", "", 0.001)
    counted.method("/s/A").observe("NO_CODE", "NO_REASON", 0.001)
    before = series(counted.registry)
    many = 50_000
    for number in range(many):
        counted.method(f"/s/{number}").observe(f"CODE{number}", f"REASON{number}", 0.001)
        counted.method("/s/A").observe(f"CODE{number}", f"REASON{number}", 0.001)
    # One more: the unknown code of an unknown method.
    assert series(counted.registry) == before + 1
    labels = {"method": "other", "code": "other", "reason": "other"}
    assert counted.registry.get_sample_value("modelkms_rpc_requests_total", labels) == many


def test_f32_projects_beyond_the_first_hundred_share_one_series_that_tells_the_worst() -> None:
    counted = metrics()
    for number in range(MAX_PROJECTS + 50):
        counted.master_keys.put(
            f"p{number:04}",
            MasterKeyReading(True, 3, 1_000.0 + number, 0.0, keys=10, keys_under_old_versions=2),
        )
    before = series(counted.registry)
    counted.master_keys.put("zzz", MasterKeyReading(usable=False, keys=7))
    assert series(counted.registry) == before

    def of(name: str, project: str) -> float | None:
        return counted.registry.get_sample_value(name, {"project": project})

    assert of("modelkms_master_key_usable", "p0000") == 1
    assert of("modelkms_master_key_usable", "other") == 0
    assert of("modelkms_master_key_rotated_timestamp_seconds", "other") == 1_000 + MAX_PROJECTS
    assert of("modelkms_data_keys", "other") == 50 * 10 + 7
    assert of("modelkms_data_keys_under_old_versions", "other") == 50 * 2
    assert of("modelkms_data_keys", "p0120") is None


def test_a_key_that_cannot_be_used_has_no_age() -> None:
    counted = metrics()
    counted.master_keys.put("demo", MasterKeyReading(usable=False, keys=7))
    value = counted.registry.get_sample_value
    assert value("modelkms_master_key_usable", {"project": "demo"}) == 0
    assert value("modelkms_data_keys", {"project": "demo"}) == 7
    assert value("modelkms_master_key_rotated_timestamp_seconds", {"project": "demo"}) is None


def test_caches_count_hits_and_misses() -> None:
    counted = metrics()
    looked_up = counted.cache("transport_session")
    for found in (True, True, False):
        looked_up(found)
    value = counted.registry.get_sample_value
    labels = {"cache": "transport_session"}
    assert value("modelkms_cache_lookups_total", {**labels, "result": "hit"}) == 2
    assert value("modelkms_cache_lookups_total", {**labels, "result": "miss"}) == 1
    with pytest.raises(ValueError, match="no such cache"):
        counted.cache("lunch")
