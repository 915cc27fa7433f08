"""F07: the SPIFFE ID parser, against the specification's grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_service.rpc.spiffe import NotASpiffeId, SpiffeId, parse_spiffe_id

_SEGMENT_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
_DOMAIN_CHARS = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
segments = st.text(_SEGMENT_CHARS, min_size=1, max_size=20).filter(lambda s: s not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=8).map(lambda parts: "/" + "/".join(parts))
domains = st.text(_DOMAIN_CHARS, min_size=1, max_size=255)


@given(domains, paths)
def test_f07_every_valid_id_is_kept_as_it_is(domain: str, path: str) -> None:
    text = f"spiffe://{domain}{path}"
    parsed = parse_spiffe_id(text)
    assert parsed == SpiffeId(domain, path)
    assert str(parsed) == text


@given(st.text(max_size=60))
def test_f07_what_is_accepted_is_never_changed(text: str) -> None:
    for candidate in (text, f"spiffe://{text}", f"spiffe://test.example/{text}"):
        try:
            assert str(parse_spiffe_id(candidate)) == candidate
        except NotASpiffeId:
            continue
        assert set(candidate.removeprefix("spiffe://")) <= set(_SEGMENT_CHARS + "/")


@given(domains, paths, st.characters().filter(lambda c: c not in _SEGMENT_CHARS + "/"), st.data())
def test_f07_one_foreign_character_anywhere_refuses(
    domain: str, path: str, char: str, data: st.DataObject
) -> None:
    text = f"spiffe://{domain}{path}"
    position = data.draw(st.integers(0, len(text)))
    with pytest.raises(NotASpiffeId):
        parse_spiffe_id(text[:position] + char + text[position:])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x00", " "])
def test_f07_nothing_may_follow(end: str) -> None:
    with pytest.raises(NotASpiffeId):
        parse_spiffe_id(f"spiffe://test.example/reader{end}")


def test_lengths() -> None:
    parse_spiffe_id(f"spiffe://{'d' * 255}/x")
    with pytest.raises(NotASpiffeId):
        parse_spiffe_id(f"spiffe://{'d' * 256}/x")
    longest = "spiffe://t/" + "x" * (2048 - 11)
    parse_spiffe_id(longest)
    with pytest.raises(NotASpiffeId):
        parse_spiffe_id(longest + "x")
