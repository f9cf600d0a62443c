"""The format of an archive, and reading one: every document is verified by its digest before it is yielded.

An archive is a folder with files of documents, a file of digests for each of them, and ``manifest.json``. It is
finished when the manifest is in it, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

from runspan.errors import PARSE_ERRORS, ConfigError, DocumentError
from runspan.sources.filesystem import chunks, decompress, display_path, folders, list_files, path_inside, read_all
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

_DAMAGED_MANIFEST: Final = "restore the archive from another copy"
_DAMAGED_FILE: Final = "restore this file from another copy of the archive"
_UNFINISHED: Final = "run the same `runspan archive` again to resume it"
_UNLIMITED: Final = 1 << 62


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
    return manifest


def digest_line(digest: bytes, run_id: str) -> bytes:
    """Return a document's line in the file of digests."""
    return digest.hex().encode() + b" " + msgspec.json.encode(run_id) + b"\n"


def manifest_of(folder: str) -> Manifest | None:
    """Return the manifest of a folder, or None when it is no archive.

    DocumentError when it is damaged; ConfigError when the archive is unfinished. OSError without the folder.
    """
    found = list_files(folder)
    if found is None:
        return None
    name = display_path(folder)
    if MANIFEST in found and not folder.rstrip("/").endswith(UNFINISHED_SUFFIX):
        return read_manifest(read_all(path_inside(folder, MANIFEST)), where=path_inside(name, MANIFEST))
    if PROGRESS in found or MANIFEST in found:
        raise ConfigError(where=name, expected="a finished archive", got="an unfinished one", hint=_UNFINISHED)
    return None


def archives_in(folder: str) -> list[str]:
    """Return the finished archives directly in a folder, sorted by name, which is by time."""
    paths = [path_inside(folder, name) for name in folders(folder) if not name.endswith(UNFINISHED_SUFFIX)]
    return [path for path in paths if MANIFEST in (list_files(path) or ())]


def verified_runs(
    folder: str, part: ArchivePart, *, on_bytes: Callable[[int], object] | None = None
) -> Iterator[RawDocument]:
    """Yield the documents of a file of an archive. What differs from the manifest is an error in its place.

    A document with another digest is not yielded. When the documents cannot be separated any more, the last piece is
    the error of the file.
    """
    path, name = path_inside(folder, part.name), path_inside(display_path(folder), part.name)
    try:
        digests = digests_of(folder, part)
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

    count = 0
    try:
        for piece in split(decompress(read(), name=name), name=name, max_document=_UNLIMITED):
            digest, run_id = digests[count] if count < len(digests) else (b"", "")
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


def digests_of(folder: str, part: ArchivePart) -> list[tuple[bytes, str]]:
    """Return SHA-256 and run id of each document of a file. DocumentError when the file of digests is damaged."""
    name = path_inside(display_path(folder), part.digests)
    try:
        content = read_all(path_inside(folder, part.digests))
    except OSError as error:
        raise _unreadable(name, error) from None
    if sha256(content).hexdigest() != part.digests_sha256:
        raise _damage(name, f"a file with SHA-256 {part.digests_sha256}", "another one")
    lines = content.split(b"\n")[:-1]
    try:
        digests = [(bytes.fromhex(line[:64].decode()), msgspec.json.decode(line[65:], type=str)) for line in lines]
    except PARSE_ERRORS as error:
        raise _damage(name, "a digest and a run id on each line", str(error)) from None
    if len(digests) != part.runs:
        raise _damage(name, f"{part.runs} lines", f"{len(digests)}")
    return digests


def find_damage(
    folder: str, manifest: Manifest, *, on_bytes: Callable[[int], object] | None = None
) -> Iterator[DocumentError]:
    """Yield everything in an archive that differs from its manifest: nothing when all of it can be read back."""
    for part in manifest.files:
        for piece in verified_runs(folder, part, on_bytes=on_bytes):
            if piece.error is not None:
                yield piece.error
    for what, expected, found in (
        ("runs", manifest.runs, sum(part.runs for part in manifest.files)),
        ("bytes of documents", manifest.document_bytes, sum(part.document_bytes for part in manifest.files)),
    ):
        if expected != found:
            yield _damage(path_inside(display_path(folder), MANIFEST), f"{expected} {what}", f"{found} in its files")


def _text(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _unreadable(name: str, error: OSError) -> DocumentError:
    return _damage(name, "a file that can be read", error.strerror or str(error))


def _damage(where: str, expected: str, got: str, hint: str = _DAMAGED_FILE) -> DocumentError:
    return DocumentError(where=where, expected=expected, got=got, hint=hint)
