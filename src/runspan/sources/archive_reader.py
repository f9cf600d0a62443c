"""Reading an archive back in: every document is proved by its digest before anybody gets it, every file by its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

from msgspec import MsgspecError

from runspan.errors import ConfigError, DocumentError
from runspan.sources.archive_manifest import MANIFEST, PROGRESS, ArchivePart, Manifest, read_digests, read_manifest
from runspan.sources.decompress import decompress
from runspan.sources.filesystem import chunks, display_path, folders, list_files, path_inside, read_all
from runspan.sources.splitter import RawDocument, split

UNFINISHED_SUFFIX: Final = ".partial"
"""Of the folder of an archive that is being written on a disk."""

_DAMAGED: Final = "restore this file from another copy of the archive"
_UNFINISHED: Final = "run the same `runspan archive` again, which goes on where it was"
_UNBOUNDED: Final = 1 << 62


def manifest_of(folder: str) -> Manifest | None:
    """The manifest of a folder, None when it is no archive.

    DocumentError when it is damaged; ConfigError when the archive was never finished. OSError when it is not there.
    """
    found = list_files(folder)
    if found is None:
        return None
    name = display_path(folder)
    if MANIFEST in found and not folder.rstrip("/").endswith(UNFINISHED_SUFFIX):
        return read_manifest(read_all(path_inside(folder, MANIFEST)), where=path_inside(name, MANIFEST))
    if PROGRESS in found or MANIFEST in found:
        raise ConfigError(where=name, expected="an archive", got="one that was never finished", hint=_UNFINISHED)
    return None


def archives_in(folder: str) -> list[str]:
    """The finished archives directly in a folder, sorted by name, which is by time."""
    places = [path_inside(folder, name) for name in folders(folder) if not name.endswith(UNFINISHED_SUFFIX)]
    return [place for place in places if MANIFEST in (list_files(place) or ())]


def verified_runs(
    folder: str, part: ArchivePart, *, on_bytes: Callable[[int], object] | None = None, max_document: int = _UNBOUNDED
) -> Iterator[RawDocument]:
    """The documents of a file of an archive. What is not as the manifest says comes as an error in its place.

    A document whose digest is another is not handed out. When the documents no longer can be told apart, the file's
    error is the last piece.
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
        for piece in split(decompress(read(), name=name), name=name, max_document=max_document):
            digest, run_id = digests[count] if count < len(digests) else (b"", "")
            count += 1
            if piece.error is not None or sha256(piece.data).digest() == digest:
                yield piece
            else:
                yield RawDocument(b"", piece.where, piece.end_offset, _other_document(piece.where, run_id))
    except (DocumentError, OSError) as error:
        yield RawDocument(b"", name, 0, error if isinstance(error, DocumentError) else _unreadable(name, error))
        return
    if count != part.runs:
        yield RawDocument(b"", name, 0, _refusal(name, f"{part.runs} documents", f"{count}"))
    elif size != part.bytes or stored.hexdigest() != part.sha256:
        got = f"{size} bytes with another SHA-256" if size == part.bytes else f"{size} bytes"
        yield RawDocument(b"", name, 0, _refusal(name, f"{part.bytes} bytes with SHA-256 {part.sha256}", got))


def digests_of(folder: str, part: ArchivePart) -> list[tuple[bytes, str]]:
    """SHA-256 and run id of each document of a file. DocumentError when what names them is damaged."""
    name = path_inside(display_path(folder), part.digests)
    try:
        content = read_all(path_inside(folder, part.digests))
    except OSError as error:
        raise _unreadable(name, error) from None
    if sha256(content).hexdigest() != part.digests_sha256:
        raise _refusal(name, f"a file with SHA-256 {part.digests_sha256}", "another one")
    try:
        digests = read_digests(content)
    except (ValueError, MsgspecError) as error:
        raise _refusal(name, "a digest and a run id on each line", str(error)) from None
    if len(digests) != part.runs:
        raise _refusal(name, f"{part.runs} lines", f"{len(digests)}")
    return digests


def find_damage(
    folder: str, manifest: Manifest, *, on_bytes: Callable[[int], object] | None = None
) -> Iterator[DocumentError]:
    """Everything in an archive that is not as its manifest says; nothing when all of it can be read back as it was."""
    for part in manifest.files:
        for piece in verified_runs(folder, part, on_bytes=on_bytes):
            if piece.error is not None:
                yield piece.error
    for what, told, found in (
        ("runs", manifest.runs, sum(part.runs for part in manifest.files)),
        ("bytes of documents", manifest.document_bytes, sum(part.document_bytes for part in manifest.files)),
    ):
        if told != found:
            yield _refusal(path_inside(display_path(folder), MANIFEST), f"{told} {what}", f"{found} in its files")


def _unreadable(name: str, error: OSError) -> DocumentError:
    return _refusal(name, "a file that can be read", error.strerror or str(error))


def _other_document(where: str, run_id: str) -> DocumentError:
    expected = f"the document of run {run_id} as it was archived" if run_id else "no document beyond the manifest's"
    return _refusal(where, expected, "another text")


def _refusal(where: str, expected: str, got: str) -> DocumentError:
    return DocumentError(where=where, expected=expected, got=got, hint=_DAMAGED)
