"""The archive inside a folder's artifact: a ZIP64 file with exactly one form (artifact-v1 §5).

Everything in it follows from the members' names, sizes and CRC-32s, so that the same folder always
gives the same bytes, and a reader can compare all of an archive with what it must be: there is no
second way to read it.

    local header | content | descriptor | local header | … | directory | end records

Content begins at multiples of 64 bytes. Sizes and CRC-32 follow the content (a writer streams);
readers take them from the directory.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from modelkms_api.artifact import name_fault

from modelkms.errors import ArchiveRejected

ALIGNMENT = 64
MAX_MEMBERS = 100_000
MAX_NAME_BYTES = 1024
"""Of a member's whole path in UTF-8."""

# ZIP File Format Specification (APPNOTE.TXT) 6.3.10, sections named at each structure.
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_DESCRIPTOR = struct.Struct("<4sIQQ")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_ZIP64_LOCAL = struct.Struct("<HHQQ")
_ZIP64_ENTRY = struct.Struct("<HHQQQ")
_ALIGNMENT_FIELD = struct.Struct("<HHH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4sHHHHIIH")

_VERSION_NEEDED = 45  # ZIP64
_MADE_BY = 3 << 8 | _VERSION_NEEDED  # 3: Unix
_FLAGS = 1 << 3 | 1 << 11  # sizes follow the content; names in UTF-8
_STORED = 0
_TIME, _DATE = 0, 1 << 5 | 1  # 1980-01-01 00:00, the earliest there is
_MODE = 0o100644 << 16
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_ALIGNMENT_ID = 0xD935
"""Extra field for alignment, as Android's zipalign writes it: u16 alignment, zeros."""

_ENTRY_OVERHEAD = _ENTRY.size + _ZIP64_ENTRY.size
_LOCAL_OVERHEAD = _LOCAL.size + _ZIP64_LOCAL.size + _ALIGNMENT_FIELD.size
TAIL_BYTES = _END64.size + _LOCATOR.size + _END.size
"""Of the end records: 98."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        name: path within the folder, "/" between its parts.
        size_bytes: of its content.
        offset: where its content begins in the archive.
        header_offset: where its local header begins.
    """

    name: str
    size_bytes: int
    offset: int
    header_offset: int

    @property
    def end(self) -> int:
        """Where its descriptor begins."""
        return self.offset + self.size_bytes


# --- layout --------------------------------------------------------------------------------------


def lay_out(files: Iterable[tuple[str, int]]) -> Iterator[Member]:
    """Where each file goes; `files` are (name, size in bytes), by ascending name."""
    at = 0
    for name, size_bytes in files:
        member = placed(name, size_bytes, at)
        yield member
        at = directory_offset(member)


def placed(name: str, size_bytes: int, header_offset: int) -> Member:
    """A file whose local header begins at `header_offset`."""
    offset = _aligned(header_offset + _LOCAL_OVERHEAD + len(name.encode()))
    return Member(name, size_bytes, offset, header_offset)


def directory_offset(last: Member) -> int:
    """Where the directory begins, after the last member."""
    return last.end + _DESCRIPTOR.size


def directory_entry_bytes(member: Member) -> int:
    """Length of a member's entry in the directory."""
    return _ENTRY_OVERHEAD + len(member.name.encode())


def archive_bytes(members: Iterable[Member]) -> int:
    """Length of the whole archive. `members` are not empty."""
    directory_bytes, end = 0, 0
    for member in members:
        directory_bytes += directory_entry_bytes(member)
        end = directory_offset(member)
    return end + directory_bytes + TAIL_BYTES


def local_header(member: Member) -> bytes:
    """What stands before a member's content (APPNOTE 4.3.7)."""
    name = member.name.encode()
    padding = member.offset - member.header_offset - _LOCAL_OVERHEAD - len(name)
    return b"".join(
        (
            _LOCAL.pack(
                b"PK\3\4",
                _VERSION_NEEDED,
                _FLAGS,
                _STORED,
                _TIME,
                _DATE,
                0,
                _U32,
                _U32,
                len(name),
                _ZIP64_LOCAL.size + _ALIGNMENT_FIELD.size + padding,
            ),
            name,
            _ZIP64_LOCAL.pack(1, 16, 0, 0),
            _ALIGNMENT_FIELD.pack(_ALIGNMENT_ID, 2 + padding, ALIGNMENT),
            bytes(padding),
        )
    )


def descriptor(member: Member, crc32: int) -> bytes:
    """What follows a member's content (APPNOTE 4.3.9)."""
    return _DESCRIPTOR.pack(b"PK\7\x08", crc32, member.size_bytes, member.size_bytes)


def directory_entry(member: Member, crc32: int) -> bytes:
    """A member in the directory (APPNOTE 4.3.12, 4.5.3)."""
    name = member.name.encode()
    return b"".join(
        (
            _ENTRY.pack(
                b"PK\1\2",
                _MADE_BY,
                _VERSION_NEEDED,
                _FLAGS,
                _STORED,
                _TIME,
                _DATE,
                crc32,
                _U32,
                _U32,
                len(name),
                _ZIP64_ENTRY.size,
                0,
                0,
                0,
                _MODE,
                _U32,
            ),
            name,
            _ZIP64_ENTRY.pack(1, 24, member.size_bytes, member.size_bytes, member.header_offset),
        )
    )


def tail(members: int, directory_at: int, directory_bytes: int) -> bytes:
    """The end records (APPNOTE 4.3.14 to 4.3.16)."""
    end_at = directory_at + directory_bytes
    return b"".join(
        (
            _END64.pack(
                b"PK\6\6",
                _END64.size - 12,
                _MADE_BY,
                _VERSION_NEEDED,
                0,
                0,
                members,
                members,
                directory_bytes,
                directory_at,
            ),
            _LOCATOR.pack(b"PK\6\7", 0, end_at, 1),
            _END.pack(b"PK\5\6", 0, 0, _U16, _U16, _U32, _U32, 0),
        )
    )


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


# --- names ---------------------------------------------------------------------------------------


class Names:
    """Decides which names may stand together in one archive (artifact-v1 §5.2).

    Names are safe to write below a folder on any system: no way out, nothing that a file system
    which does not tell case or Unicode normal forms apart would take for the same.
    """

    def __init__(self) -> None:
        self._spelled: dict[str, str] = {}
        """Every file and folder by its folded path: as it was spelled, folders with "/"."""

    def fault(self, name: str) -> str | None:
        """Add a member's name; what is wrong with it, or None."""
        parts = name.split("/")
        for part in parts:
            if fault := name_fault(part):
                return fault
        if len(name.encode()) > MAX_NAME_BYTES:
            return f"is longer than {MAX_NAME_BYTES} bytes"
        folded = ""
        for depth, part in enumerate(parts, 1):
            is_file = depth == len(parts)
            folded += "/" + fold(part)
            spelled = name if is_file else "/".join(parts[:depth]) + "/"
            other = self._spelled.get(folded)
            if other is None:
                self._spelled[folded] = spelled
            elif other != spelled:
                return "would collide with another name where case or Unicode form do not count"
            elif is_file:
                return "is there twice"
        return None


def fold(name: str) -> str:
    """`name` for comparing: NFC of the full case folding of NFC (The Unicode Standard, 3.13)."""
    if name.isascii():
        return name.lower()
    composed = unicodedata.normalize("NFC", name)
    return unicodedata.normalize("NFC", composed.casefold())


# --- reading -------------------------------------------------------------------------------------

Read = Callable[[int, int], bytes]
"""(offset, length) → exactly these plaintext bytes of the payload."""


def read_members(read: Read, payload_bytes: int) -> list[Member]:
    """The members of an archive, all of it but contents and local headers checked.

    artifact-v1 §5.4: the reader MUST take the number of members from the end record, and MUST
    refuse an archive whose directory or end records differ by one byte from those that names,
    sizes and CRC-32s give.

    Raises:
        ArchiveRejected: it breaks artifact-v1 §5.
    """
    if payload_bytes < TAIL_BYTES:
        raise ArchiveRejected("the model's archive is too short")
    end = read(payload_bytes - TAIL_BYTES, TAIL_BYTES)
    fields = _END64.unpack_from(end)
    count, directory_bytes, directory_at = fields[7], fields[8], fields[9]
    if directory_at + directory_bytes + TAIL_BYTES != payload_bytes or end != _tail_or_nothing(
        count, directory_at, directory_bytes
    ):
        raise ArchiveRejected("the model's archive has no end records of the one form allowed")
    if not 0 < count <= MAX_MEMBERS:
        raise ArchiveRejected(
            f"the model's archive has {count:,} members; 1 to {MAX_MEMBERS:,} may"
        )
    if directory_bytes > count * (_ENTRY_OVERHEAD + MAX_NAME_BYTES):
        raise ArchiveRejected("the directory of the model's archive is too long")

    members = list(_members(read(directory_at, directory_bytes), count))
    if directory_offset(members[-1]) != directory_at:
        raise ArchiveRejected("the model's archive has bytes that belong to no member")
    return members


def _tail_or_nothing(members: int, directory_at: int, directory_bytes: int) -> bytes:
    try:
        return tail(members, directory_at, directory_bytes)
    except struct.error:
        return b""


def _members(directory: bytes, count: int) -> Iterator[Member]:
    names, at, before, end = Names(), 0, b"", 0
    for number in range(count):
        name, size_bytes, crc32 = _entry(directory, at, number)
        if number and name <= before:
            raise ArchiveRejected(f"member {number} of the model's archive is out of order")
        before = name
        text = _text(name, number)
        if fault := names.fault(text):
            raise ArchiveRejected(
                f"a name in the model's archive {fault}", metadata={"member": text}
            )
        # The layout goes on from the member before: offsets that overlap, leave gaps or point
        # outside are not what the entry must say.
        offset = _aligned(end + _LOCAL_OVERHEAD + len(name))
        member = Member(text, size_bytes, offset, end)
        end = directory_offset(member)
        expected = _entry_or_nothing(member, crc32)
        if directory[at : at + len(expected)] != expected or not expected:
            raise ArchiveRejected(
                f"member {number} of the model's archive is not a plain stored file in its place",
                metadata={"member": text},
            )
        at += len(expected)
        yield member
    if at != len(directory):
        raise ArchiveRejected("the directory of the model's archive has bytes behind its members")


def _entry(directory: bytes, at: int, number: int) -> tuple[bytes, int, int]:
    """Name, size and CRC-32 as an entry claims them; the rest is compared with what they give."""
    if len(directory) - at >= _ENTRY_OVERHEAD:
        fields = _ENTRY.unpack_from(directory, at)
        crc32, name_bytes = fields[7], fields[10]
        name = directory[at + _ENTRY.size : at + _ENTRY.size + name_bytes]
        extra = at + _ENTRY.size + name_bytes
        if len(directory) - extra >= _ZIP64_ENTRY.size:
            return name, _ZIP64_ENTRY.unpack_from(directory, extra)[2], crc32
    raise ArchiveRejected(f"the directory of the model's archive ends within member {number}")


def _entry_or_nothing(member: Member, crc32: int) -> bytes:
    try:
        return directory_entry(member, crc32)
    except struct.error:  # an offset beyond 2^64
        return b""


def _text(name: bytes, number: int) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ArchiveRejected(
            f"the name of member {number} of the model's archive is not UTF-8"
        ) from None


def check_local_header(read: Read, member: Member) -> None:
    """artifact-v1 §5.4: before a member's content is handed out, its local header MUST be compared
    with the one that its entry in the directory gives.

    Raises:
        ArchiveRejected: it is another.
    """
    expected = local_header(member)
    if read(member.header_offset, len(expected)) != expected:
        raise ArchiveRejected(
            "a member of the model's archive is not what the directory says of it",
            metadata={"member": member.name},
        )
