"""Create an archive: collect the runs, write and read them back, publish; then purge them from the store."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count, islice
from typing import Any, Final

import msgspec
import zstandard
from msgspec import Struct

from runspan._version import __version__
from runspan.archive import targets
from runspan.archive.select import MAX_NAMED, CollectedRun, RetryingReader, collect
from runspan.backends.sqlite import PurgeReport, SqliteStore
from runspan.contracts import Cursor, RunQuery
from runspan.delivery.dead_letters import framed
from runspan.errors import PARSE_ERRORS, StoreError
from runspan.model.document import Run, sort_time
from runspan.model.timestamps import SECOND
from runspan.sources import archive

PART_BYTES: Final = 32 << 20
"""The size of the documents in one file, about. A file is compressed in memory, and is the most that a killed process
has to do again."""

_PURGED_AT_ONCE: Final = 500
"""Runs that one transaction deletes: what arrives meanwhile waits for milliseconds."""

_ZSTD_LEVEL: Final = 9
_GZIP_LEVEL: Final = 6


class AgeRange(Struct, frozen=True):
    """How long ago runs have started, in nanoseconds."""

    before: int
    """At least."""
    since: int | None
    """At most; None without a limit."""

    def __str__(self) -> str:
        since = "" if self.since is None else f" --since {format_duration(self.since)}"
        return f"--before {format_duration(self.before)}{since}"


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """What to archive, and where."""

    tenant: str
    source: str
    """The kind of backend."""
    source_url: str
    """Distinguishes one backend from another when an unfinished archive is resumed. Only its digest is stored."""
    to: str
    """The folder or URL in which the archive becomes a folder."""
    ages: AgeRange
    """Select runs that started this long ago; ages, unlike times, stay the same when the command is run again."""
    compression: str = "zstd"


class ArchiveProgress(Struct, rename="camel"):
    """The content of PROGRESS, the file in an unfinished archive from which it is resumed."""

    source_digest: str
    ages: AgeRange
    after: Cursor
    """The cursor of the list after the last run that was written."""
    manifest: archive.Manifest
    """The manifest of what was written, without its totals."""


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """A finished archive."""

    path: str
    """The archive, or "" when there was nothing to archive."""
    manifest: archive.Manifest
    resumed: bool
    """Whether an unfinished archive was resumed."""

    @property
    def complete(self) -> bool:
        """Whether every run that had ended is in it."""
        skipped = self.manifest.skipped
        return not (self.manifest.partial or skipped.incomplete.runs or skipped.unreadable.runs)


def create_archive(
    request: ArchiveRequest,
    reader: RetryingReader,
    *,
    now: int,
    on_collected: Callable[[CollectedRun], None],
    on_checked: Callable[[int], None],
    on_other: Callable[[str, str], None],
    part_bytes: int = PART_BYTES,
) -> ArchiveResult:
    """Write an archive, read back every byte of it, verify every document, and only then give it its name.

    - ``now``: nanoseconds since 1970.
    - ``on_collected``: called after each run.
    - ``on_checked``: called with the number of bytes that were just read back.
    - ``on_other``: called with path and options of each unfinished archive of the same source that another request
      began.

    StoreError when it cannot be written, or does not come back as it was written.
    """
    with targets.translate_os_errors(request.to), targets.exclusive(request.to):
        job = _ArchiveJob.begin(request, now, on_other)
        job.collect(reader, on_collected, part_bytes)
        manifest = job.manifest()
        if not manifest.files:
            return ArchiveResult("", manifest, resumed=False)
        for damage in archive.find_damage(job.target.path, manifest, on_bytes=on_checked):
            raise StoreError(
                "what was written does not come back",
                where=damage.where or job.target.path,
                expected=damage.expected,
                got=damage.got,
                hint="nothing was deleted; delete this unfinished archive, check the disk, and archive again",
            )
        job.target.publish(archive.write_manifest(manifest))
        return ArchiveResult(job.target.path, manifest, job.resumed)


class _ArchiveJob:
    """An unfinished archive."""

    def __init__(self, name: str, to: str, progress: ArchiveProgress, *, resumed: bool) -> None:
        self.progress = progress
        self.resumed = resumed
        self.target = targets.open_target(to, name)

    @classmethod
    def begin(cls, request: ArchiveRequest, now: int, on_other: Callable[[str, str], None]) -> _ArchiveJob:
        """Resume an archive whose request was the same, except for the moment, or begin a new one.

        An archive of other ages contains other runs, which ``--purge`` would delete, so it is never resumed. It stays
        for its own command: an error would stop a nightly archive because of another one that was tried once.
        """
        digest = sha256(request.source_url.encode()).hexdigest()
        for name, content in sorted(targets.unfinished(request.to).items()):
            try:
                progress = msgspec.json.decode(content, type=ArchiveProgress)
            except PARSE_ERRORS:
                continue
            if progress.source_digest != digest or progress.manifest.tenant != request.tenant:
                continue
            if progress.manifest.compression == request.compression and progress.ages == request.ages:
                return cls(name, request.to, progress, resumed=True)
            on_other(targets.target_name(request.to, name), f"{progress.ages} --format {progress.manifest.compression}")
        before, since = request.ages.before, request.ages.since
        moment = datetime.fromtimestamp(now / SECOND, UTC)
        manifest = archive.Manifest(
            format=archive.FORMAT,
            version=archive.VERSION,
            created_at=moment.isoformat(timespec="seconds").replace("+00:00", "Z"),
            created_by=f"runspan {__version__}",
            tenant=request.tenant,
            source=request.source,
            before=max(0, now - before),
            since=None if since is None else max(0, now - since),
            compression=request.compression,
        )
        progress = ArchiveProgress(digest, request.ages, Cursor.behind(manifest.before), manifest)
        return cls(_free_name(moment, targets.existing_names(request.to)), request.to, progress, resumed=False)

    def collect(self, reader: RetryingReader, on_collected: Callable[[CollectedRun], None], part_bytes: int) -> None:
        """Write the rest of the list, file by file."""
        manifest = self.progress.manifest

        def partial(line: str) -> None:
            if line not in self.progress.manifest.partial:
                self._change(partial=(*self.progress.manifest.partial, line))

        query = RunQuery(tenant=manifest.tenant, since=manifest.since)
        writer: PartWriter | None = None
        cursor = self.progress.after
        for collected in collect(reader, query, after=cursor, on_partial=partial):
            cursor = collected.cursor
            if isinstance(collected.result, Run):
                number = len(self.progress.manifest.files) + 1
                writer = writer or PartWriter(number, manifest.compression, target=part_bytes)
                writer.add(collected.result)
            else:
                self._change(skipped=collected.result.added_to(self.progress.manifest.skipped))
            on_collected(collected)
            if writer is not None and writer.full:
                self._write(writer, cursor)
                writer = None
        if writer is not None:
            self._write(writer, cursor)

    def manifest(self) -> archive.Manifest:
        """Return the manifest of what was written."""
        parts = self.progress.manifest.files
        return msgspec.structs.replace(
            self.progress.manifest,
            runs=sum(part.runs for part in parts),
            document_bytes=sum(part.document_bytes for part in parts),
            oldest=min((part.oldest for part in parts), default=None),
            newest=max((part.newest for part in parts), default=None),
        )

    def _write(self, writer: PartWriter, after: Cursor) -> None:
        """Write a file, and then the progress: a process that is killed in between writes the file again."""
        part, content, digests = writer.finish()
        self.target.write(part.digests, digests)
        self.target.write(part.name, content)
        self._change(files=(*self.progress.manifest.files, part))
        self.progress.after = after
        self.target.write(archive.PROGRESS, msgspec.json.encode(self.progress))

    def _change(self, **members: Any) -> None:
        self.progress.manifest = msgspec.structs.replace(self.progress.manifest, **members)


class PartWriter:
    """Compresses documents in memory until there are enough for a file."""

    def __init__(self, number: int, compression: str, *, target: int = PART_BYTES) -> None:
        """``number``: of the file in the archive, from 1. ``target``: bytes of documents."""
        self._stem = f"{archive.PART_PREFIX}{number:06}"
        self._suffix = archive.PART_SUFFIXES[compression]
        self._target = target
        self._compressor = _compressor(compression)
        self._compressed: list[bytes] = []
        self._digests: list[bytes] = []
        self._times: list[int] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        return self._bytes >= self._target

    def add(self, run: Run) -> None:
        """Append a document: its line, or an array of its own when the text has several lines."""
        self._compressed.append(self._compressor.compress(framed(run.text)))
        self._digests.append(archive.digest_line(sha256(run.text).digest(), run.id))
        self._times.append(sort_time(run.envelope))
        self._bytes += len(run.text)

    def finish(self) -> tuple[archive.ArchivePart, bytes, bytes]:
        """Return the entry in the manifest, the file and its file of digests. No document can be added after that."""
        content = b"".join([*self._compressed, self._compressor.flush()])
        digests = b"".join(self._digests)
        part = archive.ArchivePart(
            name=self._stem + self._suffix,
            runs=len(self._digests),
            bytes=len(content),
            sha256=sha256(content).hexdigest(),
            document_bytes=self._bytes,
            digests=f"{self._stem}.sha256",
            digests_sha256=sha256(digests).hexdigest(),
            oldest=min(self._times),
            newest=max(self._times),
        )
        return part, content, digests


def purge(
    store: SqliteStore, folder: str, manifest: archive.Manifest, *, on_progress: Callable[[int], None]
) -> PurgeReport:
    """Delete the runs of a verified archive. ``on_progress``: called with the number of runs that were just examined.

    If the process is killed, every run is either complete in the store or deleted, and all are in the archive.
    """
    report = PurgeReport()
    for part in manifest.files:
        items = archive.digests_of(folder, part)
        while batch := list(islice(items, _PURGED_AT_ONCE)):
            report += store.purge(batch, manifest.tenant)
            report = replace(report, named=report.named[:MAX_NAMED])
            on_progress(len(batch))
    store.vacuum()
    return report


def format_duration(nanoseconds: int) -> str:
    """Return a duration as an option takes it: ``30d``, ``36h``, ``90m``."""
    minutes = nanoseconds // (60 * SECOND)
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes and minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


def _free_name(moment: datetime, names: set[str]) -> str:
    stem = f"runspan-{moment:%Y%m%dT%H%M%SZ}"
    return next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in names)


def _compressor(compression: str) -> zlib._Compress | zstandard.ZstdCompressionObj:
    if compression == "gzip":
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
