"""Labels and targeting attributes: small, printable, never echoed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_service.domain.attributes import MAX_ENTRIES, MAX_VALUE_BYTES, check_attributes
from kms_service.domain.errors import InvalidField


def test_takes_what_fits() -> None:
    full = {f"k{number}": "v" * MAX_VALUE_BYTES for number in range(MAX_ENTRIES)}
    assert check_attributes(full, "labels") == full
    assert check_attributes({}, "labels") == {}
    assert check_attributes({"team": "", "site": "Zürich 東京"}, "labels")["site"] == "Zürich 東京"


def test_gives_a_copy() -> None:
    labels = {"a": "1"}
    checked = check_attributes(labels, "labels")
    labels["a"] = "2"
    assert checked == {"a": "1"}


@pytest.mark.parametrize(
    "attributes",
    [
        {f"k{number}": "" for number in range(MAX_ENTRIES + 1)},
        {"k": "v" * (MAX_VALUE_BYTES + 1)},
        {"k": "ü" * (MAX_VALUE_BYTES // 2 + 1)},
        {"": "v"},
        {"K": "v"},
        {"k.k": "v"},
        {"k": "secret\n"},
        {"k": "secret\0"},
        {"k": "\x1b[31msecret"},
        {"k": "secret\u202eterces"},
        {"k": "secret\u200b"},
        {"k": "secre\u0301t"},
        {"k": "secret\ud800"},
        {"k": "secret\x85"},
    ],
)
def test_f23_f24_refuses_the_rest(attributes: dict[str, str]) -> None:
    with pytest.raises(InvalidField) as caught:
        check_attributes(attributes, "attributes")
    assert caught.value.field == "attributes"
    assert "secret" not in caught.value.message


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=140), max_size=3))
def test_f24_what_passes_is_one_line_of_text(attributes: dict[str, str]) -> None:
    try:
        checked = check_attributes(attributes, "attributes")
    except InvalidField:
        return
    for value in checked.values():
        assert len(value.encode()) <= MAX_VALUE_BYTES
        assert unicodedata.is_normalized("NFC", value)
        assert not any(unicodedata.category(character).startswith("C") for character in value)
