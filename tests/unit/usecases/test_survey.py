"""The survey of master keys: what it tells, and how much it asks at once."""

from __future__ import annotations

import pytest

from kms_service.domain.catalogue import Project
from kms_service.domain.errors import VaultUnavailable
from kms_service.domain.names import ModelName, ProjectName
from kms_service.usecases.survey_master_keys import SurveyMasterKeys
from tests.support.usecase_fakes import caller
from tests.unit.usecases.world import World

FACE = ModelName("demo", "face")


def survey(world: World, at_once: int = 100) -> SurveyMasterKeys:
    return SurveyMasterKeys(database=world.database, master_keys=world.master_keys, at_once=at_once)


def add_projects(world: World, *names: str) -> None:
    with world.database.write() as tx:
        for name in names:
            project = Project(ProjectName(name), f"modelkms-{name}", world.clock.now())
            tx.projects.insert(project)


def test_it_counts_what_a_rewrap_has_yet_to_do(world: World) -> None:
    world.publisher()
    who = caller("publisher")
    world.create_version(who, FACE)
    world.vault.rotate("modelkms-demo")
    world.vault.rotate("modelkms-demo")
    world.create_version(who, FACE)
    (found,) = survey(world)()
    assert found.state is not None
    assert (found.state.latest_version, found.keys_under_version) == (3, {1: 1, 3: 1})
    assert (found.keys, found.keys_under_old_versions) == (2, 1)


def test_a_project_without_a_usable_master_key_is_told_and_hides_no_other(world: World) -> None:
    add_projects(world, "alpha", "zeta")
    world.make_master_key("modelkms-zeta")
    found = {each.project.project: each for each in survey(world)()}
    assert found["alpha"].state is None
    assert found["alpha"].keys_under_old_versions == 0
    assert found["demo"].state is not None
    assert found["zeta"].state is not None


def test_it_goes_through_all_projects_some_at_a_time_and_then_begins_anew(world: World) -> None:
    add_projects(world, "a", "b", "c", "d")
    some = survey(world, at_once=2)
    rounds = [[each.project.project for each in some()] for _ in range(4)]
    assert rounds == [["a", "b"], ["c", "d"], ["demo"], ["a", "b"]]


def test_after_an_outage_the_same_projects_come_again(world: World) -> None:
    some = survey(world)
    world.vault.fail_with = VaultUnavailable
    with pytest.raises(VaultUnavailable):
        list(some())
    world.vault.fail_with = None
    assert [each.project.project for each in some()] == ["demo"]
