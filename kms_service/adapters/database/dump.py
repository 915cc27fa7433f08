"""Backups: every row of one snapshot as lines of JSON, and back into an empty database.

    {"format": "modelkms-backup-v1", "schema": "0006", "time": …}
    {"table": "projects", "row": {…}}
    …
    {"rows": 41, "sha256": …}            of all lines before

Of either database, into either. The file opens nothing without Vault; it holds wrapped keys, so it
is written 0600.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import func, insert, select

from kms_service.adapters.database.backup_table import oldest_versions
from kms_service.adapters.database.engine import EngineOptions, transactions_of
from kms_service.adapters.database.migrate import schema_revision
from kms_service.adapters.database.schema import STORED
from kms_service.domain.errors import ConfigurationError

_FORMAT = "modelkms-backup-v1"
_INSERT_ROWS = 500


class Written(NamedTuple):
    """What a backup holds.

    Attributes:
        oldest_versions: the lowest master-key version that it needs, by master key.
    """

    rows: int
    oldest_versions: Mapping[str, int]


def write_backup(url: str, options: EngineOptions, file: Path, now: datetime) -> Written:
    """Write all rows of one snapshot to a new file, durably. Writers go on meanwhile.

    Raises:
        ConfigurationError: the file is there already, or cannot be written.
        StateUnavailable, StateCorrupt.
    """
    if file.exists():
        raise ConfigurationError(f"{file}: is there already; name a new file")
    temporary = file.with_name(file.name + ".new")
    transactions = transactions_of(url, options)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out, transactions.read() as connection:
            digest, rows = hashlib.sha256(), 0
            head = {
                "format": _FORMAT,
                "schema": schema_revision(connection),
                "time": now.isoformat(),
            }
            _write(out, digest, head)
            for table in STORED:
                query = select(table).order_by(*table.primary_key)
                for row in connection.execution_options(yield_per=_INSERT_ROWS).execute(query):
                    values = {name: _plain(value) for name, value in row._mapping.items()}
                    _write(out, digest, {"table": table.name, "row": values})
                    rows += 1
            oldest = oldest_versions(connection)  # of the same snapshot
            out.write(_line({"rows": rows, "sha256": digest.hexdigest()}))
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(file)
        _sync_folder(file.absolute().parent)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
        transactions.close()
    return Written(rows, oldest)


def read_backup(url: str, options: EngineOptions, file: Path) -> int:
    """Put the rows into a database that is migrated and empty, all or none; how many.

    Raises:
        ConfigurationError: it is no whole backup, of a newer schema, or the database has rows.
        StateUnavailable, StateCorrupt, StateConflict.
    """
    known = {table.name: table for table in STORED}
    rows = _check(file)
    transactions = transactions_of(url, options)
    try:
        with transactions.write() as connection:
            current = schema_revision(connection)
            schema = next(_lines(file))["schema"]
            if str(schema) > str(current):
                raise ConfigurationError(f"{file}: was made by a newer version; install that")
            projects = select(func.count()).select_from(known["projects"])
            if connection.execute(projects).scalar_one():
                raise ConfigurationError(
                    "database.url: has projects already; restore into an empty database"
                )
            for table in reversed(known.values()):  # what a migration or a start put there
                connection.execute(table.delete())
            for line in _lines(file):
                if "table" in line:
                    table = known[line["table"]]
                    values = {name: _value(value) for name, value in line["row"].items()}
                    connection.execute(insert(table).values(values))
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"{file}: holds what this version does not know") from error
    finally:
        transactions.close()
    return rows


def _check(file: Path) -> int:
    """How many rows the file has, if it is whole.

    Raises:
        ConfigurationError: it is not.
    """
    digest, rows, end = hashlib.sha256(), 0, None
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines):
                content = json.loads(line)
                if number == 0 and content.get("format") != _FORMAT:
                    break
                if "sha256" in content:
                    end = content
                    continue
                digest.update(line)
                rows += "table" in content
    except (ValueError, AttributeError):
        end = None
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from error
    if end != {"rows": rows, "sha256": digest.hexdigest()}:
        raise ConfigurationError(f"{file}: is no whole backup; take another one")
    return rows


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _write(out: Any, digest: Any, content: Mapping[str, object]) -> None:
    line = _line(content)
    digest.update(line)
    out.write(line)


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _plain(value: object) -> object:
    if isinstance(value, bytes | memoryview):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    return value


def _value(value: object) -> object:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"], validate=True)
    return value


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
