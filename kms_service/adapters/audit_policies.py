"""Policy sets as the audit log has them: by what right somebody was permitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kms_service.adapters.cedar_explain import cedar_text
from kms_service.adapters.cedar_policy_set import (
    CANARIES,
    GROUPS,
    PolicyFiles,
    PolicySetRefused,
    groups_with,
    parse_groups,
    with_their_ids,
)
from kms_service.domain.audit import POLICY_FILE_LOADED

_NEEDLE = b'"event":"%s"' % POLICY_FILE_LOADED.encode()


@dataclass(frozen=True, slots=True)
class RecordedSet:
    """A set of the log whose files hash to its epoch."""

    files: PolicyFiles
    _source: Mapping[str, Any]
    _groups: Mapping[str, tuple[str, ...]]

    def text(self, policy_id: str) -> str | None:
        """Of one policy, in Cedar; None: the set has none of this id."""
        source = self._source.get(policy_id)
        return cedar_text(source) if source is not None else None

    def groups_of(self, principal_id: str) -> list[str]:
        """Groups of the set's groups.json that the principal is in; a token's own are not there."""
        return list(groups_with(self._groups, principal_id))


class RecordedPolicies:
    """Told every line of a log that was checked; then knows the sets that decided in it."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, dict[int, str]]] = {}
        self._parts: dict[tuple[str, str], int] = {}

    def take(self, line: bytes) -> None:
        """Keep what the line says of a policy file, if it is a record of one."""
        if _NEEDLE not in line:  # quotation marks within strings are escaped
            return
        record = json.loads(line)
        if record["event"] != POLICY_FILE_LOADED:
            return
        epoch, details = record["policy_epoch"], record["details"]
        name, part = details["file"], int(details["part"])
        self._files.setdefault(epoch, {}).setdefault(name, {})[part] = details["text"]
        self._parts[epoch, name] = int(details["parts"])

    def epochs(self) -> list[str]:
        """Of all sets that some file was recorded of."""
        return sorted(self._files)

    def find(self, epoch: str) -> RecordedSet | None:
        """The set, if the log has all of it: its files hash to the epoch that decisions name."""
        files: dict[str, str] = {}
        for name, parts in self._files.get(epoch, {}).items():
            files[name] = "".join(parts.get(n, "") for n in range(1, self._parts[epoch, name] + 1))
        canaries, groups = files.pop(CANARIES, ""), files.pop(GROUPS, "")
        found = PolicyFiles(files, canaries, groups)
        if found.epoch != epoch:
            return None
        try:
            # Not validated: against which schema it was valid then is no matter now.
            return RecordedSet(
                found,
                with_their_ids(found.text)["staticPolicies"],
                parse_groups(found.groups),
            )
        except PolicySetRefused:
            return None
