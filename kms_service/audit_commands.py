"""`modelkms-server audit`: verify and query, which work offline, bundle, public-key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kms_service.config import Config, load
from kms_service.console import CORRUPT, fail, say, tell
from kms_service.domain.audit import SHORT_EPOCH, Checkpoint
from kms_service.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from kms_service.adapters.audit_policies import RecordedPolicies
    from kms_service.adapters.audit_query import Record
    from kms_service.adapters.audit_reading import Verification
    from kms_service.adapters.signed_note import VerifierKey
    from kms_service.adapters.vault import VaultMasterKeys

audit_app = typer.Typer(help="The audit log.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The audit log's folder.")]
PublicKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Who signs checkpoints: see `audit public-key`."),
]
CheckpointFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint", metavar="FILE", help="A checkpoint kept elsewhere, or a folder of them."
    ),
]
ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The TOML configuration file.")
]
_Right = tuple[str, str]
"""Epoch of a policy set, id of a policy in it."""
_COLUMNS = ("TIME", "CHAIN", "RECORD", "EVENT", "OUTCOME", "PRINCIPAL", "ON", "UNTIL", "POLICIES")


@audit_app.command("verify")
def verify_command(
    folder: Folder, public_key: PublicKey = None, checkpoint: CheckpointFiles = None
) -> None:
    """Check every chain of an audit log: every record, in order, unchanged.

    That nothing was cut from the end, or written anew, is proven by checkpoints kept elsewhere.
    """
    from kms_service.adapters.audit_reading import verify

    checkpoints = _checkpoints(public_key, checkpoint or [])
    with _reading(folder):
        found = verify(folder, checkpoints)
    _end_with(found, say)


@audit_app.command("query")
def query_command(
    folder: Folder,
    principal: Annotated[str | None, typer.Option(help="SPIFFE ID.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="[PROJECT/]MODEL[@VERSION]", help="Or a resource name.")
    ] = None,
    lease: Annotated[str | None, typer.Option(help="Of one lease.")] = None,
    event: Annotated[str | None, typer.Option(help="Such as LeaseDataKey.")] = None,
    outcome: Annotated[str | None, typer.Option(help="ok, denied or failed.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="ISO 8601; a day alone: its start.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="ISO 8601; a day alone: its end.")
    ] = None,
    held: Annotated[
        bool, typer.Option("--held", help="Who could hold a key between --from and --to.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="No more than so many records.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Records as they stand.")] = False,
    public_key: PublicKey = None,
    checkpoint: CheckpointFiles = None,
) -> None:
    """Find records, and the policies that decided. How far the log holds is told at the end."""
    from kms_service.adapters.audit_policies import RecordedPolicies
    from kms_service.adapters.audit_query import RecordFilter, matching
    from kms_service.adapters.audit_reading import Reading

    wanted = RecordFilter(
        principal=principal,
        model=_resource(model) if model is not None else None,
        lease=lease,
        event=event,
        outcome=outcome,
        since=_time(since, "--from") if since is not None else None,
        until=_time(until, "--to", end=True) if until is not None else None,
        held=held,
    )
    checkpoints = _checkpoints(public_key, checkpoint or [])
    with _reading(folder):
        reading, policies = Reading(folder, checkpoints), RecordedPolicies()
        found = matching(reading, wanted, policies)
        shown = islice(found, limit)
        rights: dict[_Right, set[str]] = {}
        if as_json:
            for record in shown:
                say(json.dumps(record, sort_keys=True, separators=(",", ":")))
        else:
            _table(_noting(rights, shown))
        for _ in found:  # to the end, so that all of it is checked
            pass
    _tell_rights(rights, policies)
    _end_with(reading.verification, lambda line: tell("log", line))


@audit_app.command("bundle")
def bundle_command(
    config: ConfigFile,
    since: Annotated[str, typer.Option("--from", metavar="DAY", help="First day, UTC.")],
    until: Annotated[str, typer.Option("--to", metavar="DAY", help="Last day, UTC.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The tar file.")],
    folder: Annotated[
        Path | None,
        typer.Option("--log", metavar="DIR", help="The log, if it lies elsewhere by now."),
    ] = None,
    public_key: PublicKey = None,
    checkpoint: CheckpointFiles = None,
) -> None:
    """Collect what an audit asks for: access list, policies, rotations, destructions, inventory.

    Checkpoints are fetched from where they were shipped, unless others are given.
    """
    from kms_service.adapters.audit_reading import Reading
    from kms_service.audit_bundle import Bundle
    from kms_service.parts import open_database, open_vault

    settings = load(config)
    folder = folder or settings.audit.folder
    first, last = _time(since, "--from"), _time(until, "--to", end=True)
    bundle = Bundle(first, last)
    with closing(open_database(settings)) as database, closing(open_vault(settings)) as vault:
        if checkpoint:
            notes, keys = _notes(checkpoint), _keys(public_key)
        else:
            notes = _shipped(settings, first, last)
            keys = _keys(public_key) if public_key is not None else _vaults_keys(settings, vault)
        with _reading(folder):
            whole = bundle.add_records(Reading(folder, _verified(notes, keys)))
        for line in bundle.log:
            tell("log" if whole else "error", line)
        if not whole:
            fail("the log does not hold", "keep the folder as it is: it is evidence", CORRUPT)
        bundle.add_inventory(database, vault)
    bundle.add_checkpoints(notes, keys)
    try:
        bundle.write(out, datetime.now(UTC))
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: {error.strerror}") from error
    say(f"wrote {out}")


@audit_app.command("public-key")
def public_key_command(config: ConfigFile) -> None:
    """Print the keys that verify checkpoints, from Vault. Keep them apart from the log."""
    from kms_service.parts import open_vault

    settings = load(config)
    if settings.audit.checkpoints is None:
        raise ConfigurationError("audit.checkpoints: is not set, so nothing is signed; add it")
    with closing(open_vault(settings)) as vault:
        for key in _vaults_keys(settings, vault):
            say(str(key))


def _checkpoints(public_key: Path | None, files: Sequence[Path]) -> list[Checkpoint]:
    """What the files say, once their signatures are verified."""
    return _verified(_notes(files), _keys(public_key)) if files else []


def _notes(files: Sequence[Path]) -> dict[str, bytes]:
    """By name; of a folder all that end in `.note`."""
    notes: dict[str, bytes] = {}
    for file in files:
        for note in sorted(file.glob("*.note")) if file.is_dir() else [file]:
            try:
                data = note.read_bytes()
            except OSError as error:
                raise ConfigurationError(f"--checkpoint: {note}: {error.strerror}") from error
            if notes.setdefault(note.name, data) != data:
                fail(f"checkpoint {note} differs from another copy", "keep both", CORRUPT)
    if not notes:
        raise ConfigurationError(f"--checkpoint: {files[0]} holds no *.note files")
    return notes


def _shipped(settings: Config, since: datetime, until: datetime) -> dict[str, bytes]:
    """Of that time, from where they are shipped; none where nothing is."""
    from kms_service.parts import open_checkpoint_store
    from kms_service.shipped_checkpoints import telling

    place = settings.audit.checkpoints
    return telling(open_checkpoint_store(place), since, until) if place is not None else {}


def _keys(public_key: Path | None) -> list[VerifierKey]:
    from kms_service.adapters.signed_note import VerifierKey

    if public_key is None:
        raise ConfigurationError("--checkpoint: proves nothing without --public-key; give both")
    try:
        return [VerifierKey.parse(line) for line in public_key.read_text().split()]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--public-key: {public_key} holds no verifier keys") from error


def _vaults_keys(settings: Config, vault: VaultMasterKeys) -> list[VerifierKey]:
    """As Vault has them now, oldest first; none where nothing is signed."""
    from kms_service.parts import note_signer

    place = settings.audit.checkpoints
    if place is None:
        return []
    return [key for _, key in sorted(note_signer(vault, place).verifiers().items())]


def _verified(notes: Mapping[str, bytes], keys: Sequence[VerifierKey]) -> list[Checkpoint]:
    from kms_service.adapters.signed_note import NoteInvalid, open_note

    checkpoints = []
    for name, note in notes.items():
        try:
            checkpoints.append(Checkpoint.parse(open_note(note, keys)))
        except NoteInvalid as error:
            fail(f"checkpoint {name} {error}", "it proves nothing, and may be forged", CORRUPT)
        except ValueError:
            fail(f"checkpoint {name} is none of an audit log", None, CORRUPT)
    return checkpoints


def _end_with(found: Verification, say_whole: Callable[[str], None]) -> None:
    for chain in found.chains:
        if chain.fault:
            tell("error", chain.summary)
        else:
            say_whole(chain.summary)
    if found.faulty:
        tell("hint", "keep the folder as it is: it is evidence")
        sys.exit(CORRUPT)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be read: {error.strerror}") from error


def _table(records: Iterable[Record]) -> None:
    rows = [_COLUMNS, *(_row(record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(record: Record) -> tuple[str, ...]:
    details: dict[str, Any] = record["details"]
    return (
        record["time"][:19].replace("T", " ") + "Z",
        str(record.get("chain", "")),
        str(record["sequence"]),
        record["event"],
        record["reason"] or record["outcome"],
        record["principal"],
        details.get("version") or record["resource"],
        details.get("expire_time", "")[:19].replace("T", " "),
        _by(record),
    )


def _by(record: Record) -> str:
    """`readers@1f3a…`: policies, and the beginning of the epoch of their set."""
    policies, epoch = ",".join(record["policies"]), record.get("policy_epoch", "")
    return f"{policies}@{epoch[:SHORT_EPOCH]}" if policies and epoch else policies


def _noting(rights: dict[_Right, set[str]], records: Iterable[Record]) -> Iterator[Record]:
    """The records, and in `rights` who was decided about by which policy, in order."""
    for record in records:
        epoch = record.get("policy_epoch", "")
        for policy in record["policies"] if epoch else ():
            rights.setdefault((epoch, policy), set()).add(record["principal"])
        yield record


def _tell_rights(rights: Mapping[_Right, set[str]], policies: RecordedPolicies) -> None:
    """The text of each policy as it stood when it decided, and who was in its set's groups."""
    for (epoch, policy), principals in rights.items():
        recorded = policies.find(epoch)
        text = recorded.text(policy) if recorded is not None else None
        say("")
        say(f"{policy}@{epoch[:SHORT_EPOCH]}, of the policy set {epoch}:")
        if recorded is None or text is None:
            say("    its text is not in this log")
            continue
        for line in text.splitlines():
            say(f"    {line}")
        for principal in sorted(principals):
            if groups := recorded.groups_of(principal):
                say(f"    {principal} was in: {', '.join(sorted(groups))}")


def _resource(reference: str) -> str:
    """`camera/face-detector@3` as records name it."""
    if reference.startswith("projects/"):
        return reference
    project, slash, rest = reference.partition("/")
    model, _, version = rest.partition("@")
    if not slash or not model or (version and not version.isdigit()):
        raise ConfigurationError("--model: must be PROJECT/MODEL or PROJECT/MODEL@NUMBER")
    return f"projects/{project}/models/{model}" + (f"/versions/{version}" if version else "")


def _time(text: str, option: str, *, end: bool = False) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: must be a day or a time, as 2026-11-24") from error
    if end and len(text) == len("2026-11-24"):
        time += timedelta(days=1) - timedelta(microseconds=1)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
