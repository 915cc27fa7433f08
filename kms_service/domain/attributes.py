"""Small maps of strings that clients give: labels of models, attributes for targeting."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from kms_service.domain.errors import InvalidField
from kms_service.domain.names import ID_RULE, check_id

MAX_ENTRIES = 32
MAX_VALUE_BYTES = 128


def check_attributes(attributes: Mapping[str, str], field: str) -> dict[str, str]:
    """A copy of `attributes`, if each key is an id and each value is printable text.

    Values are NFC and without control, format (bidi) or unassigned characters, so that they can
    stand in a log line and mean to a reader what they mean to a policy.

    Raises:
        InvalidField: too many, or one of them is not like that. Never echoes it.
    """
    if len(attributes) > MAX_ENTRIES:
        raise InvalidField(field, f"must have at most {MAX_ENTRIES} entries")
    for key, value in attributes.items():
        try:
            check_id(key, field)
        except InvalidField:
            raise InvalidField(field, f"each key must be {ID_RULE}") from None
        if len(value.encode("utf-8", "surrogatepass")) > MAX_VALUE_BYTES:
            raise InvalidField(field, f"each value must be at most {MAX_VALUE_BYTES} bytes")
        if not unicodedata.is_normalized("NFC", value) or any(
            unicodedata.category(character)[0] == "C" for character in value
        ):
            raise InvalidField(field, "each value must be NFC text without control characters")
    return dict(attributes)
