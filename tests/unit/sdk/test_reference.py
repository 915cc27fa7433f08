from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelkms.errors import ReferenceInvalid
from modelkms.reference import Reference, people_form

IDS = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "resource"),
    [
        ("camera/fd", "projects/camera/models/fd"),
        ("camera/fd@3", "projects/camera/models/fd/versions/3"),
        ("camera/fd@stable", "projects/camera/models/fd/aliases/stable"),
        ("fd", "projects/home/models/fd"),
        ("fd@12", "projects/home/models/fd/versions/12"),
        ("projects/camera/models/fd/versions/3", "projects/camera/models/fd/versions/3"),
        ("projects/camera/models/fd/aliases/a", "projects/camera/models/fd/aliases/a"),
        ("projects/camera/models/fd", "projects/camera/models/fd"),
    ],
)
def test_a_reference_means_a_resource(text: str, resource: str) -> None:
    reference = Reference.parse(text, "home")
    assert reference.resource_name == resource
    assert Reference.parse(str(reference)) == reference
    assert people_form(resource) == str(reference)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@3",
        "fd@",
        "fd@0",
        "fd@01",
        "fd@1234567890",
        "Fd",
        "a/b/c",
        "/fd",
        "fd/",
        "-fd",
        "fd-",
        "fd@@3",
        "fd@3@4",
        "../fd",
        "f" * 64,
        "fd\n",
        "fd\0",
        "camera\u2215fd",
        "\u202efd",
    ],
)
def test_what_is_no_reference_is_refused_without_echoing_control_characters(text: str) -> None:
    with pytest.raises(ReferenceInvalid) as caught:
        Reference.parse(text, "home")
    assert caught.value.message.isprintable()
    assert caught.value.exit_code == 2


def test_without_a_project_and_a_default_the_reference_is_refused() -> None:
    with pytest.raises(ReferenceInvalid, match="names no project"):
        Reference.parse("fd")


@pytest.mark.parametrize("text", ["fd", "fd@stable"])
def test_only_an_explicit_version_will_do_for_enable_and_promote(text: str) -> None:
    with pytest.raises(ReferenceInvalid, match="does not name a version"):
        Reference.parse(text, "home").require_version()


@pytest.mark.parametrize("text", ["fd@1", "fd@stable"])
def test_a_push_goes_to_a_model_not_to_a_version(text: str) -> None:
    with pytest.raises(ReferenceInvalid, match="where a model is meant"):
        Reference.parse(text, "home").require_model()


@given(IDS, IDS, st.one_of(st.none(), IDS, st.integers(1, 999_999_999)))
def test_every_reference_survives_the_round_trip(
    project: str, model: str, suffix: str | int | None
) -> None:
    text = f"{project}/{model}" + ("" if suffix is None else f"@{suffix}")
    reference = Reference.parse(text)
    assert str(reference) == text
    assert Reference.parse(reference.resource_name) == reference


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text, "home")
    except ReferenceInvalid:
        return
    assert Reference.parse(str(reference)) == reference
