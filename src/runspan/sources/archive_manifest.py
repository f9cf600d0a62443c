"""The manifest of an archive: what was put in, so that whoever reads it knows that nothing is missing; no I/O.

An archive is a folder. It is finished when ``manifest.json`` is in it, and not before.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

from runspan.errors import DocumentError

MANIFEST: Final = "manifest.json"
PROGRESS: Final = "progress.json"
"""Stands in an archive that is not finished yet; see ``archive.progress``."""

FORMAT: Final = "runspan-archive"
VERSION: Final = 1
PART_PREFIX: Final = "runs-"
PART_SUFFIXES: Final = {"zstd": ".ndjson.zst", "gzip": ".ndjson.gz"}
"""Compression → what its files are called."""

_DAMAGED: Final = "restore the archive from another copy"


class ArchivePart(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A file of documents.

    name: of the file. bytes, sha256: of the file as it is stored. document_bytes: of the texts of its documents.
    digests: the file beside it that names them, in their order: a line each with the SHA-256 of the document's text in
    hex, a space, and the run id as a JSON string. digests_sha256: of that file.
    oldest, newest: the sort times of its runs in nanoseconds since 1970, see ``contracts.RunQuery``.
    """

    name: str
    runs: int
    bytes: int
    sha256: str
    document_bytes: int
    digests: str
    digests_sha256: str
    oldest: int
    newest: int


class SkipCount(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Runs that are not in the archive for one reason. some: the first of them with what is to be said, by run id."""

    runs: int = 0
    some: tuple[str, ...] = ()


class UnfinishedArchive(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Runs that were listed and are not in the archive.

    unfinished: they had not ended. incomplete: the backend could not prove their newest revision. vanished: deleted
    between list and get. unreadable: anything else.
    """

    unfinished: SkipCount = SkipCount()
    incomplete: SkipCount = SkipCount()
    vanished: SkipCount = SkipCount()
    unreadable: SkipCount = SkipCount()


class Manifest(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What an archive holds.

    before, since: the runs asked for, by sort time in nanoseconds since 1970; since is None without a bound.
    source: the kind of backend. partial: what the backend could not look at, one line each.
    sha256: of this file with this member empty.
    """

    format: str
    version: int
    created_at: str
    created_by: str
    tenant: str
    source: str
    before: int
    since: int | None
    compression: str
    runs: int
    document_bytes: int
    oldest: int | None
    newest: int | None
    left: UnfinishedArchive
    partial: tuple[str, ...]
    files: tuple[ArchivePart, ...]
    sha256: str = ""


class _Head(Struct):
    format: str
    version: int


def is_part_name(name: str) -> bool:
    """Whether a file is called as those of archives are."""
    return name.startswith(PART_PREFIX) and name.endswith(tuple(PART_SUFFIXES.values()))


def write_manifest(manifest: Manifest) -> bytes:
    """The file of a manifest, with its digest in it."""
    unsigned = msgspec.structs.replace(manifest, sha256="")
    return _text(msgspec.structs.replace(manifest, sha256=sha256(_text(unsigned)).hexdigest()))


def read_manifest(content: bytes, *, where: str) -> Manifest:
    """The manifest of a file. DocumentError unless it is exactly what ``write_manifest`` wrote."""
    try:
        head = msgspec.json.decode(content, type=_Head)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _refusal(where, "the manifest of an archive", str(error)) from None
    if head.format != FORMAT:
        raise _refusal(where, f'"format": "{FORMAT}"', repr(head.format))
    if head.version != VERSION:
        raise DocumentError(
            where=where,
            expected=f"version {VERSION} of the format of archives",
            got=f"version {head.version}",
            hint="read it with the newest runspan",
        )
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _refusal(where, "a manifest of this version", str(error)) from None
    unsigned = _text(msgspec.structs.replace(manifest, sha256=""))
    if _text(manifest) != content or sha256(unsigned).hexdigest() != manifest.sha256:
        raise _refusal(where, "a manifest as it was written", "one that was changed since")
    return manifest


def digest_line(digest: bytes, run_id: str) -> bytes:
    """A document's line in the file of digests."""
    return digest.hex().encode() + b" " + msgspec.json.encode(run_id) + b"\n"


def read_digests(content: bytes) -> list[tuple[bytes, str]]:
    """The lines of a file of digests: SHA-256 and run id. ValueError when one is none."""
    lines = content.split(b"\n")[:-1]
    return [(bytes.fromhex(line[:64].decode()), msgspec.json.decode(line[65:], type=str)) for line in lines]


def _text(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _refusal(where: str, expected: str, got: str) -> DocumentError:
    return DocumentError(where=where, expected=expected, got=got, hint=_DAMAGED)
