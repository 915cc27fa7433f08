"""Resource names: parsed once, strictly, and never echoed when wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kms_service.domain.errors import InvalidField
from kms_service.domain.names import (
    AliasName,
    LeaseName,
    ModelName,
    ProjectName,
    VersionName,
    check_id,
    parse_reference,
)

IDS = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
NUMBERS = st.integers(1, 999_999_999)
HEX128 = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
PARSERS: list[Callable[[str], object]] = [
    ProjectName.parse,
    ModelName.parse,
    VersionName.parse,
    AliasName.parse,
    LeaseName.parse,
    parse_reference,
]


@given(IDS, IDS, IDS, NUMBERS, HEX128)
def test_every_name_reads_back(
    project: str, model: str, alias: str, number: int, lease: str
) -> None:
    for name in (
        ProjectName(project),
        ModelName(project, model),
        VersionName(project, model, number),
        AliasName(project, model, alias),
        LeaseName(project, lease),
    ):
        assert type(name).parse(str(name)) == name


@given(IDS, IDS, IDS, NUMBERS)
def test_a_reference_is_a_version_an_alias_or_a_model(
    project: str, model: str, alias: str, number: int
) -> None:
    version = VersionName(project, model, number)
    assert parse_reference(str(version)) == version
    assert parse_reference(str(AliasName(project, model, alias))) == AliasName(
        project, model, alias
    )
    assert parse_reference(str(ModelName(project, model))) == AliasName(project, model, "stable")


def test_names_know_their_parents() -> None:
    version = VersionName("p", "m", 3)
    assert version.parent == ModelName("p", "m") == AliasName("p", "m", "a").parent
    assert version.parent.parent == ProjectName("p")


@pytest.mark.parametrize("value", ["a", "a" * 63, "a-b", "a--b", "a1", "abc-9"])
def test_ids(value: str) -> None:
    assert check_id(value, "id") == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a" * 64,
        "-a",
        "a-",
        "1a",
        "A",
        "a_b",
        "a.b",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "\u0430",
        "../a",
        "a/b",
    ],
)
def test_f23_other_ids_are_refused_and_not_echoed(value: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_id(value, "project_id")
    assert caught.value.field == "project_id"
    assert caught.value.reason == "INVALID_FIELD"
    assert len(value) < 4 or value not in caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        "",
        "projects/",
        "projects/p/",
        "/projects/p",
        "projects//models/m",
        "projects/p/models/m/",
        "projects/p/models/m/versions/",
        "projects/p/models/m/versions/0",
        "projects/p/models/m/versions/01",
        "projects/p/models/m/versions/-1",
        "projects/p/models/m/versions/+1",
        "projects/p/models/m/versions/1000000000",
        "projects/p/models/m/versions/１",  # noqa: RUF001 - a full-width digit
        "projects/p/models/m/versions/1\n",
        "projects/p/models/../models/m",
        "projects/p/models/m/aliases/",
        "projects/p/models/m/aliases/A",
        "projects/p/leases/" + "0" * 31,
        "projects/p/leases/" + "0" * 33,
        "projects/p/leases/" + "A" * 32,
        "projects/p\u202e/models/m",
        "projects/p/models/m\0",
        "projects/\U0001f600/models/m",
        "projects/cafe\u0301/models/m",
    ],
)
def test_f23_what_is_no_name_is_refused_by_every_parser(value: str) -> None:
    for parse in PARSERS:
        with pytest.raises(InvalidField) as caught:
            parse(value)
        assert value not in caught.value.message or len(value) < 12


@given(st.text(max_size=200))
@example("projects/p/models/m/versions/1/versions/2")
@example("projects/p/models/m/versions/1/aliases/a")
def test_f23_any_text_is_refused_or_reads_back_as_it_was(value: str) -> None:
    for parse in PARSERS:
        try:
            name = parse(value)
        except InvalidField:
            continue
        shortened = isinstance(name, AliasName) and str(name) == f"{value}/aliases/stable"
        assert str(name) == value or shortened
        assert re.fullmatch(r"[a-z0-9/-]+", value)
