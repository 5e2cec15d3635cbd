"""The members of a tar, front to back, with nothing overlooked.

Python's own tarfile takes a damaged header for the end and stops without a word; so do the readers of
WebDataset. Here every block of 512 bytes must be what its place demands, from the first to the last, and
whatever is not a plain file or a folder is refused: links, devices, sparse files, names that leave the
archive. Nothing is ever extracted to a member's name.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.config import StoreConfig
from pipeline.data.store import Store, open_store
from pipeline.errors import ShardError

BLOCK = 512
_READ_BYTES = 2**22
_MOST_BYTES = 2**30
"""Largest member that is read; no picture comes near it."""
_MOST_NAME_BYTES = 2**16
"""Longest extended header that is read: names, times and comments."""
_FILES, _FOLDER, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"0\x007", b"5", b"L", b"K", b"xX", b"g"
_REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a sparse file", b"M": "a part of another archive", b"V": "a volume label",
}  # fmt: skip
_AGAIN = "make the tar again, or copy it again"


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar; `offset` is the first byte of its data."""

    name: str
    offset: int
    data: bytes


@contextmanager
def originals(root: str) -> Iterator[Store]:
    """The store at `root`, past any copies that this machine has of its shards."""
    with tempfile.TemporaryDirectory(prefix="ccs-audit-") as empty:
        store = open_store(root, StoreConfig(cache_dir=empty))
        try:
            yield store
        finally:
            store.close()


class TarStream:
    """A tar that is read once, front to back, and hashed on the way."""

    def __init__(self, store: Store, name: str) -> None:
        self.where = f"{store.root}/{name}"
        self.num_bytes = store.size(name)
        self._store, self._name = store, name
        self._at = 0
        self._block, self._block_at = b"", 0
        self._digest = hashlib.sha256()

    def members(self) -> Iterator[TarMember]:
        """All files of the tar, to its very end.

        Raises ShardError naming shard, member and offset for the first thing that is not as it must be.
        """
        extended: dict[str, str] = {}
        for_all: dict[str, str] = {}
        while True:
            at = self._at
            header = self._take(BLOCK, "a header, or the end-of-archive marker,")
            if not any(header):
                self._finish(at, extended)
                return
            kind, name, size = self._parse(header, at)
            if kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL:
                fields = self._extension(kind, size, at)
                if kind == _PAX_GLOBAL:
                    for_all |= fields
                else:
                    extended |= fields
                continue
            extended = for_all | extended
            name, size = extended.get("path", name), self._size(extended, size, at)
            self._refuse_kind(kind, name, extended, at)
            extended = {}
            if kind == _FOLDER or (kind == b"\x00" and name.endswith("/")):
                self._require(size == 0, at, f"the folder {name[:80]!r} has {size} bytes")
                continue
            self._require(size <= _MOST_BYTES, at, f"{name[:80]!r} has {size} bytes, {_MOST_BYTES} at most")
            yield self._file(self._plain_name(name, at), size)

    def sha256(self) -> str:
        """The sha256 of all bytes, 64 hex digits; reads what `members` left unread after an error."""
        while self._at < self.num_bytes:
            self._take(min(_READ_BYTES, self.num_bytes - self._at), "the rest")
        return self._digest.hexdigest()

    def _file(self, name: str, size: int) -> TarMember:
        at = self._at
        data = self._take(size, f"the data of {name!r}")
        self._take(-size % BLOCK, f"the padding of {name!r}")
        return TarMember(name, at, data)

    def _parse(self, header: bytes, at: int) -> tuple[bytes, str, int]:
        """(kind, name, size) of a header whose checksum is right."""
        stored = _octal(header[148:156])
        field_blank = header[:148] + b" " * 8 + header[156:]
        signed = sum(field_blank) - 256 * sum(byte > 127 for byte in field_blank)
        self._require(
            stored in (sum(field_blank), signed), at, "what should be a header is damaged (checksum)"
        )
        size = _octal(header[124:136])
        self._require(size is not None and size >= 0, at, "a header with a size that is no number")
        assert size is not None
        name = _text(header[:100])
        if header[257:263] == b"ustar\x00" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        return header[156:157], name, size

    def _extension(self, kind: bytes, size: int, at: int) -> dict[str, str]:
        """What an extended header says of the member after it."""
        self._require(size <= _MOST_NAME_BYTES, at, f"an extended header of {size} bytes")
        data = self._take(size, "an extended header")
        self._take(-size % BLOCK, "an extended header's padding")
        if kind == _LONG_NAME:
            return {"path": _text(data)}
        return {} if kind == _LONG_LINK else self._pax(data, at)

    def _pax(self, data: bytes, at: int) -> dict[str, str]:
        fields: dict[str, str] = {}
        while data:
            match = re.match(rb"(\d{1,6}) ([^=\n]+)=", data)
            length = int(match[1]) if match else 0
            if match is None or not match.end() < length <= len(data) or data[length - 1 : length] != b"\n":
                raise self._error(at, "an extended header that cannot be read")
            fields[_text(match[2])] = _text(data[match.end() : length - 1])
            data = data[length:]
        return fields

    def _size(self, extended: dict[str, str], size: int, at: int) -> int:
        text = extended.get("size")
        if text is None:
            return size
        self._require(text.isascii() and text.isdecimal(), at, f"a size of {text[:20]!r}")
        return int(text)

    def _refuse_kind(self, kind: bytes, name: str, extended: dict[str, str], at: int) -> None:
        what = _REFUSED.get(kind)
        if any(field.startswith("GNU.sparse.") for field in extended):
            what = _REFUSED[b"S"]
        if what is None and kind not in _FILES + _FOLDER:
            what = f"of an unknown kind {kind.decode('latin-1')!r}"
        self._require(what is None, at, f"{name[:80]!r} is {what}, not a plain file")

    def _plain_name(self, name: str, at: int) -> str:
        """The name without a leading `./`; refuses what would leave the archive if it were extracted."""
        plain = name.removeprefix("./")
        parts = plain.split("/")
        bad = not plain.isprintable() or "\\" in plain or len(plain) > 500 or "\ufffd" in plain
        self._require(
            not bad and not {"", ".", ".."} & set(parts), at, f"a member named {name[:80]!r}; refused"
        )
        return plain

    def _finish(self, at: int, extended: dict[str, str]) -> None:
        """Reads the end-of-archive marker and sees to it that nothing comes after."""
        self._require(not extended, at, "the end comes after an extended header")
        if any(self._take(BLOCK, "the second half of the end-of-archive marker")):
            raise self._error(at, "one block of zeros, where two are the end and none may stand alone")
        while self._at < self.num_bytes:
            begin = self._at
            if any(self._take(min(_READ_BYTES, self.num_bytes - begin), "the rest")):
                raise self._error(
                    begin, "data after the end-of-archive marker (two tars in one?), which no reader finds"
                )

    def _take(self, num_bytes: int, what: str) -> bytes:
        """The next bytes; raises ShardError where the tar ends before."""
        if self._at + num_bytes > self.num_bytes:
            raise ShardError(
                f"{self.where} is cut short: {what} at offset {self._at} needs {num_bytes} bytes, the "
                f"file ends at {self.num_bytes}; copy it again"
            )
        parts: list[bytes] = []
        while num_bytes:
            if self._at == self._block_at + len(self._block):
                self._block_at = self._at
                length = min(_READ_BYTES, self.num_bytes - self._at)
                self._block = self._store.read(self._name, self._at, length)
                self._digest.update(self._block)
            begin = self._at - self._block_at
            parts.append(self._block[begin : begin + num_bytes])
            self._at += len(parts[-1])
            num_bytes -= len(parts[-1])
        return b"".join(parts)

    def _require(self, condition: bool, at: int, what: str) -> None:
        if not condition:
            raise self._error(at, what)

    def _error(self, at: int, what: str) -> ShardError:
        return ShardError(f"{self.where}: at offset {at}: {what}; {_AGAIN}")


def _octal(field: bytes) -> int | None:
    """A number of a header: octal digits, or, for large files, 256-based with its first bit set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1)) if field[0] == 0x80 else None
    text = field.strip(b" \x00")
    return int(text, 8) if re.fullmatch(rb"[0-7]+", text) else None


def _text(field: bytes) -> str:
    return field.partition(b"\x00")[0].decode(errors="replace")
