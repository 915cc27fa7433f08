"""F41: nothing that needs an old master-key version is stranded by our gate."""

from __future__ import annotations

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.errors import InvalidField, KeysUnderOldVersion, ModelNotFoundOrDenied
from kms_service.domain.names import ModelName, ProjectName
from tests.support.usecase_fakes import caller
from tests.unit.usecases.world import World

DEMO = ProjectName("demo")


@pytest.fixture
def rotated(world: World) -> World:
    """Two data keys under version 1 (one PENDING), one under version 2, none under 3."""
    world.publisher()
    world.security("security")
    world.publish(ModelName("demo", "a"))
    world.create_version(caller("publisher"), ModelName("demo", "b"))
    world.vault.rotate("modelkms-demo")
    world.publish(ModelName("demo", "c"))
    world.vault.rotate("modelkms-demo")
    world.audit.take()
    return world


def test_f41_refused_with_counts(rotated: World) -> None:
    with pytest.raises(KeysUnderOldVersion) as caught:
        rotated.get_master_key.check_retirement(caller("security"), DEMO, 3)
    assert caught.value.metadata == {"v1": "2", "v2": "1"}
    assert "3 data keys" in caught.value.message
    assert rotated.audit.outcomes() == [
        ("CheckRetirement", Outcome.FAILED, "KEYS_UNDER_OLD_VERSION")
    ]


def test_f41_what_is_needed_stays(rotated: World) -> None:
    view = rotated.get_master_key.check_retirement(caller("security"), DEMO, 1)
    assert view.keys_under_version == {1: 2, 2: 1}
    with pytest.raises(KeysUnderOldVersion) as caught:
        rotated.get_master_key.check_retirement(caller("security"), DEMO, 2)
    assert caught.value.metadata == {"v1": "2"}


@pytest.mark.parametrize("oldest", [0, 4, 2**31])
def test_only_versions_there_are(rotated: World, oldest: int) -> None:
    with pytest.raises(InvalidField):
        rotated.get_master_key.check_retirement(caller("security"), DEMO, oldest)


def test_only_for_who_may_see_master_keys(rotated: World) -> None:
    with pytest.raises(ModelNotFoundOrDenied):
        rotated.get_master_key.check_retirement(caller("publisher"), DEMO, 3)
