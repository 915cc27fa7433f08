"""The trace that a caller says its call belongs to (W3C Trace Context, "traceparent").

Read whether or not this process makes traces of its own, so that a client's trace leads to log and
audit records. A claim of the caller: checked for its form, used for nothing but finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_HEADER = "traceparent"
# §3.2.2: version 00 has exactly these fields; a trace id or parent id of zeros is invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def trace_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """32 hexadecimal digits; empty without a valid `traceparent`, or with more than one."""
    values = [value for key, value in metadata if key == _HEADER]
    if len(values) != 1 or not isinstance(values[0], str):
        return ""
    match = _TRACEPARENT.fullmatch(values[0])
    return match[1] if match is not None else ""
