"""The format of an archive, and reading one: every document is verified by its digest before it is yielded.

An archive is a folder with files of documents, a file of digests for each of them, and ``manifest.json``. It is
finished when the manifest is in it, and not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

from runspan.errors import PARSE_ERRORS, ConfigError, DocumentError
from runspan.sources.filesystem import (
    chunks,
    decompress,
    display_path,
    folders,
    leads_out,
    list_files,
    path_inside,
    read_all,
)
from runspan.sources.splitter import RawDocument, split

MANIFEST: Final = "manifest.json"
PROGRESS: Final = "progress.json"
"""The file in an unfinished archive from which it is resumed; see ``archive.create.ArchiveProgress``."""

UNFINISHED_SUFFIX: Final = ".partial"
"""Of the folder of an archive that is being written to a disk."""

FORMAT: Final = "runspan-archive"
VERSION: Final = 1
PART_PREFIX: Final = "runs-"
PART_SUFFIXES: Final = {"zstd": ".ndjson.zst", "gzip": ".ndjson.gz"}
"""Compression → suffix of its files."""

MAX_MANIFEST: Final = 64 << 20
"""Bytes of a manifest: a hundred thousand files of documents."""

_PART_NAME: Final = re.compile(r"runs-[0-9]{1,20}\.ndjson\.(?:zst|gz)")
_DIGESTS_NAME: Final = re.compile(r"runs-[0-9]{1,20}\.sha256")
_LINE: Final = 8192
"""Bytes of a line of a file of digests: more than a SHA-256 and a run id of which every byte is escaped."""

_FRAME: Final = 5
"""Bytes that separate a document from the next one, at most."""

_DAMAGED_MANIFEST: Final = "restore the archive from another copy"
_DAMAGED_FILE: Final = "restore this file from another copy of the archive"
_UNFINISHED: Final = "run the same `runspan archive` again to resume it"


def ignore(path: str) -> None:
    """Do nothing."""


class ArchivePart(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A file of documents."""

    name: str
    runs: int
    bytes: int
    """The size of the file as it is stored."""
    sha256: str
    """Of the file as it is stored."""
    document_bytes: int
    """The size of the texts of its documents."""
    digests: str
    """The name of the file of digests. It has a line for each document, in their order: the SHA-256 of the text in hex,
    a space, and the run id as a JSON string."""
    digests_sha256: str
    oldest: int
    """The first sort time of its runs, in nanoseconds since 1970; see ``contracts.RunQuery``."""
    newest: int


class SkipCount(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Runs that are not in the archive for one reason."""

    runs: int = 0
    examples: tuple[str, ...] = ()
    """The ids of the first of them, with details."""


class SkippedRuns(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Runs that were listed and are not in the archive."""

    unfinished: SkipCount = SkipCount()
    incomplete: SkipCount = SkipCount()
    """The backend could not prove their newest revision."""
    vanished: SkipCount = SkipCount()
    """They were deleted after they were listed."""
    unreadable: SkipCount = SkipCount()
    """Every other reason."""


class Manifest(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What an archive contains."""

    format: str
    version: int
    created_at: str
    created_by: str
    tenant: str
    source: str
    """The kind of backend."""
    before: int
    """Only runs that started earlier were selected; nanoseconds since 1970."""
    since: int | None
    """Only runs that started then or later were selected, if this is not None."""
    compression: str
    runs: int = 0
    document_bytes: int = 0
    oldest: int | None = None
    newest: int | None = None
    skipped: SkippedRuns = SkippedRuns()
    partial: tuple[str, ...] = ()
    """What the backend could not search, one line each."""
    files: tuple[ArchivePart, ...] = ()
    sha256: str = ""
    """Of the manifest with this member empty."""


class _Version(Struct):
    format: str
    version: int


def write_manifest(manifest: Manifest) -> bytes:
    """Return the content of a manifest's file, with its digest in it."""
    unsigned = msgspec.structs.replace(manifest, sha256="")
    return _text(msgspec.structs.replace(manifest, sha256=sha256(_text(unsigned)).hexdigest()))


def read_manifest(content: bytes, *, where: str) -> Manifest:
    """Return the manifest of a file. DocumentError unless it is exactly what ``write_manifest`` wrote."""
    hint = _DAMAGED_MANIFEST
    try:
        found = msgspec.json.decode(content, type=_Version)
    except PARSE_ERRORS as error:
        raise _damage(where, "the manifest of an archive", str(error), hint) from None
    if found.format != FORMAT:
        raise _damage(where, f'"format": "{FORMAT}"', repr(found.format), hint)
    if found.version != VERSION:
        hint = "read it with the version of runspan that wrote it"
        raise _damage(where, f"version {VERSION} of the archive format", f"version {found.version}", hint)
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except PARSE_ERRORS as error:
        raise _damage(where, "a manifest of this version", str(error), hint) from None
    unsigned = _text(msgspec.structs.replace(manifest, sha256=""))
    if _text(manifest) != content or sha256(unsigned).hexdigest() != manifest.sha256:
        raise _damage(where, "a manifest as it was written", "one that was changed since", hint)
    for part in manifest.files:
        if not (_PART_NAME.fullmatch(part.name) and _DIGESTS_NAME.fullmatch(part.digests)):
            expected = f"names such as {PART_PREFIX}000001.ndjson.zst and {PART_PREFIX}000001.sha256"
            raise _damage(where, expected, f"{part.name[:80]!r} and {part.digests[:80]!r}", hint)
    return manifest


def digest_line(digest: bytes, run_id: str) -> bytes:
    """Return a document's line in the file of digests."""
    return digest.hex().encode() + b" " + msgspec.json.encode(run_id) + b"\n"


def manifest_of(folder: str, *, follow_symlinks: bool = False) -> Manifest | None:
    """Return the manifest of a folder, or None when it is no archive.

    - ``follow_symlinks``: whether it may be a symbolic link out of the folder.

    DocumentError when it is damaged; ConfigError when the archive is unfinished. OSError without the folder.
    """
    found = list_files(folder)
    if found is None:
        return None
    name = display_path(folder)
    if MANIFEST in found and not folder.rstrip("/").endswith(UNFINISHED_SUFFIX):
        where = path_inside(name, MANIFEST)
        path = _member(folder, MANIFEST, follow_symlinks=follow_symlinks)
        if (size := found[MANIFEST]) is not None and size > MAX_MANIFEST:
            raise _damage(where, f"a manifest of at most {MAX_MANIFEST} bytes", f"{size} bytes", _DAMAGED_MANIFEST)
        return read_manifest(read_all(path, MAX_MANIFEST), where=where)
    if PROGRESS in found or MANIFEST in found:
        raise ConfigError(where=name, expected="a finished archive", got="an unfinished one", hint=_UNFINISHED)
    return None


def archives_in(
    folder: str, *, follow_symlinks: bool = False, on_skipped: Callable[[str], object] = ignore
) -> list[str]:
    """Return the finished archives directly in a folder, sorted by name, which is by time.

    Symbolic links out of the folder are skipped unless ``follow_symlinks`` is set, and passed to ``on_skipped``.
    """
    found = []
    for name in folders(folder):
        path = path_inside(folder, name)
        if name.endswith(UNFINISHED_SUFFIX):
            continue
        if not follow_symlinks and leads_out(folder, name):
            on_skipped(display_path(path))
        elif MANIFEST in (list_files(path) or ()):
            found.append(path)
    return found


def verified_runs(
    folder: str,
    part: ArchivePart,
    *,
    follow_symlinks: bool = False,
    on_bytes: Callable[[int], object] | None = None,
) -> Iterator[RawDocument]:
    """Yield the documents of a file of an archive. What differs from the manifest is an error in its place.

    A document with another digest, or larger than ``MAX_DOCUMENT``, is not yielded. When the documents cannot be
    separated any more, or are more than the manifest says, the last piece is the error of the file.

    - ``follow_symlinks``: whether the file may be a symbolic link out of the folder.
    """
    name = path_inside(display_path(folder), part.name)
    try:
        path = _member(folder, part.name, follow_symlinks=follow_symlinks)
        digests = digests_of(folder, part, follow_symlinks=follow_symlinks)
        following = next(digests, None)  # reads the whole file of digests first
    except DocumentError as error:
        yield RawDocument(b"", name, 0, error)
        return
    stored = sha256()
    size = 0

    def read() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks(path, on_bytes):
            stored.update(chunk)
            size += len(chunk)
            yield chunk

    def content() -> Iterator[bytes]:
        # A few bytes may become terabytes: no more is decompressed than the documents and what is between them.
        most = part.document_bytes + _FRAME * part.runs
        for chunk in decompress(read(), name=name):
            most -= len(chunk)
            if most < 0:
                raise _damage(name, f"{part.document_bytes} bytes of documents", "more")
            yield chunk

    count = 0
    try:
        for piece in split(content(), name=name):
            digest, run_id = following or (b"", "")
            following = next(digests, None)
            count += 1
            if piece.error is not None or sha256(piece.data).digest() == digest:
                yield piece
            else:
                expected = f"the document of run {run_id} as it was archived" if run_id else "no further document"
                yield RawDocument(b"", piece.where, piece.end_offset, _damage(piece.where, expected, "another text"))
    except (DocumentError, OSError) as error:
        yield RawDocument(b"", name, 0, error if isinstance(error, DocumentError) else _unreadable(name, error))
        return
    if count != part.runs:
        yield RawDocument(b"", name, 0, _damage(name, f"{part.runs} documents", f"{count}"))
    elif size != part.bytes or stored.hexdigest() != part.sha256:
        got = f"{size} bytes with another SHA-256" if size == part.bytes else f"{size} bytes"
        yield RawDocument(b"", name, 0, _damage(name, f"{part.bytes} bytes with SHA-256 {part.sha256}", got))


def digests_of(folder: str, part: ArchivePart, *, follow_symlinks: bool = False) -> Iterator[tuple[bytes, str]]:
    """Yield SHA-256 and run id of each document of a file.

    DocumentError, before the first of them, when the file of digests is not the one that was written.
    """
    name = path_inside(display_path(folder), part.digests)
    path = _member(folder, part.digests, follow_symlinks=follow_symlinks)
    digest = sha256()
    try:
        for chunk in chunks(path):
            digest.update(chunk)
        if digest.hexdigest() != part.digests_sha256:
            raise _damage(name, f"a file with SHA-256 {part.digests_sha256}", "another one")
        count = 0
        for line in _lines(path):
            yield bytes.fromhex(line[:64].decode()), msgspec.json.decode(line[65:], type=str)
            count += 1
    except OSError as error:
        raise _unreadable(name, error) from None
    except PARSE_ERRORS as error:
        raise _damage(name, "a digest and a run id on each line", str(error)) from None
    if count != part.runs:
        raise _damage(name, f"{part.runs} lines", f"{count}")


def _lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a file that end in a line break. ValueError when one is longer than ``_LINE``."""
    left = b""
    for chunk in chunks(path):
        *lines, left = (left + chunk).split(b"\n")
        yield from lines
        if len(left) > _LINE:
            raise ValueError(f"a line of more than {_LINE} bytes")


def find_damage(
    folder: str,
    manifest: Manifest,
    *,
    follow_symlinks: bool = False,
    on_bytes: Callable[[int], object] | None = None,
) -> Iterator[DocumentError]:
    """Yield everything in an archive that differs from its manifest: nothing when all of it can be read back."""
    for part in manifest.files:
        for piece in verified_runs(folder, part, follow_symlinks=follow_symlinks, on_bytes=on_bytes):
            if piece.error is not None:
                yield piece.error
    for what, expected, found in (
        ("runs", manifest.runs, sum(part.runs for part in manifest.files)),
        ("bytes of documents", manifest.document_bytes, sum(part.document_bytes for part in manifest.files)),
    ):
        if expected != found:
            yield _damage(path_inside(display_path(folder), MANIFEST), f"{expected} {what}", f"{found} in its files")


def _member(folder: str, name: str, *, follow_symlinks: bool) -> str:
    """Return the path of a file of an archive. DocumentError when it is a link out of the archive, unless that is
    allowed."""
    if leads_out(folder, name) and not follow_symlinks:
        where = path_inside(display_path(folder), name)
        raise _damage(where, "a file in the folder", "a symbolic link out of it", "to read it, use --follow-symlinks")
    return path_inside(folder, name)


def _text(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _unreadable(name: str, error: OSError) -> DocumentError:
    return _damage(name, "a file that can be read", error.strerror or str(error))


def _damage(where: str, expected: str, got: str, hint: str = _DAMAGED_FILE) -> DocumentError:
    return DocumentError(where=where, expected=expected, got=got, hint=hint)
