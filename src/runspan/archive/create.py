"""Making an archive: collect, write, read back, publish; what was killed in between goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from typing import Final

import msgspec
from msgspec import Struct

from runspan._version import __version__
from runspan.archive.select import CollectedRun, RetryingReader, before, collect
from runspan.archive.targets import (
    ArchiveTarget,
    exclusive,
    existing_names,
    open_target,
    target_name,
    translate_os_errors,
    unfinished,
)
from runspan.archive.writer import PART_BYTES, PartWriter
from runspan.contracts import Cursor, RunQuery
from runspan.errors import StoreError
from runspan.model.run import Run
from runspan.sources.archive_manifest import (
    FORMAT,
    PROGRESS,
    VERSION,
    ArchivePart,
    Manifest,
    UnfinishedArchive,
    write_manifest,
)
from runspan.sources.archive_reader import find_damage

SECOND: Final = 1_000_000_000


class AgeRange(Struct, frozen=True):
    """How long ago runs must have started, and may have at most; nanoseconds. since: None: however long ago."""

    before: int
    since: int | None

    def __str__(self) -> str:
        since = "" if self.since is None else f" --since {format_duration(self.since)}"
        return f"--before {format_duration(self.before)}{since}"


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """What to archive, and where to.

    before, since: nanoseconds since 1970; runs that started at or after ``since`` and earlier than ``before``.
    asked: the same two as they were asked for, as lengths of time, which stay the same when the clock goes on.
    source: the kind of backend. source_url: tells one backend from another when a killed archive goes on; kept only as
    a digest. to: a folder or a URL, in which the archive becomes a folder of its own.
    """

    tenant: str
    before: int
    since: int | None
    source: str
    source_url: str
    to: str
    asked: AgeRange
    compression: str = "zstd"


class ArchiveProgress(Struct, rename="camel"):
    """What stands in the file of progress of an archive that is not finished. after: where the list goes on."""

    source_digest: str
    created_at: str
    tenant: str
    before: int
    since: int | None
    source: str
    compression: str
    after: tuple[int, str]
    left: UnfinishedArchive
    partial: tuple[str, ...]
    parts: tuple[ArchivePart, ...]
    asked: AgeRange | None = None


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """What came of it. path: the archive, "" when there was nothing to archive. resumed: one that was killed before."""

    path: str
    manifest: Manifest
    resumed: bool

    @property
    def complete(self) -> bool:
        """Whether every run that had ended is in it."""
        left = self.manifest.left
        return not (self.manifest.partial or left.incomplete.runs or left.unreadable.runs)


@dataclass(frozen=True, slots=True)
class ArchiveCallbacks:
    """Told on the way. found: after each run, with what came of it. checked: how many bytes were just read back.

    other: of each unfinished archive of the same runs that another request began: where it is, and what that asked for.
    """

    found: Callable[[CollectedRun], None]
    checked: Callable[[int], None]
    other: Callable[[str, str], None] = lambda where, asked: None


def create_archive(
    request: ArchiveRequest,
    reading: RetryingReader,
    *,
    now: int,
    telling: ArchiveCallbacks,
    part_bytes: int = PART_BYTES,
) -> ArchiveResult:
    """Writes the archive, reads back every byte of it and proves every document, and only then gives it its name.

    now: nanoseconds since 1970. StoreError when it cannot be written, or comes back otherwise than it was written.
    """
    with translate_os_errors(request.to), exclusive(request.to):
        work = _ArchiveJob.begin(request, now, telling.other)
        work.collect(reading, telling, part_bytes)
        manifest = work.manifest()
        if not work.progress.parts:
            return ArchiveResult("", manifest, resumed=False)
        place = work.place
        for fault in find_damage(place.path, manifest, on_bytes=telling.checked):
            raise StoreError(
                "what was written does not come back",
                where=fault.where or place.path,
                expected=fault.expected,
                got=fault.got,
                hint="nothing was deleted; delete this unfinished archive, check the disk, and archive again",
            )
        place.publish(write_manifest(manifest))
        return ArchiveResult(place.path, manifest, work.resumed)


class _ArchiveJob:
    """An archive on its way."""

    def __init__(self, name: str, to: str, progress: ArchiveProgress, *, resumed: bool) -> None:
        self.progress = progress
        self.resumed = resumed
        self._name, self._to = name, to
        self._place: ArchiveTarget | None = None

    @classmethod
    def begin(cls, request: ArchiveRequest, now: int, other: Callable[[str, str], None]) -> _ArchiveJob:
        """One that was killed, when its request was the same but for the moment; else a new one.

        One of other bounds holds other runs, which ``--purge`` would delete, so it is never gone on with. It stays for
        its own command: to refuse would stop a nightly archive because of another that somebody tried once.
        """
        digest = sha256(request.source_url.encode()).hexdigest()
        for name, content in sorted(unfinished(request.to).items()):
            try:
                progress = msgspec.json.decode(content, type=ArchiveProgress)
            except msgspec.MsgspecError:
                continue
            if progress.source_digest != digest or progress.tenant != request.tenant:
                continue
            if progress.compression == request.compression and progress.asked == request.asked:
                return cls(name, request.to, progress, resumed=True)
            asked = str(progress.asked) if progress.asked else "bounds that it does not tell"
            other(target_name(request.to, name), f"{asked} --format {progress.compression}")
        moment = datetime.fromtimestamp(now / SECOND, UTC)
        progress = ArchiveProgress(
            source_digest=digest,
            created_at=moment.isoformat(timespec="seconds").replace("+00:00", "Z"),
            tenant=request.tenant,
            before=request.before,
            since=request.since,
            source=request.source,
            compression=request.compression,
            after=_pair(before(request.before)),
            left=UnfinishedArchive(),
            partial=(),
            parts=(),
            asked=request.asked,
        )
        return cls(_free_name(moment, existing_names(request.to)), request.to, progress, resumed=False)

    @property
    def place(self) -> ArchiveTarget:
        """Made when the first file is written, so that nothing to archive leaves nothing behind."""
        self._place = self._place or open_target(self._to, self._name)
        return self._place

    def collect(self, reading: RetryingReader, telling: ArchiveCallbacks, part_bytes: int) -> None:
        """Writes the rest of the list, file by file."""
        progress = self.progress

        def partial(line: str) -> None:
            if line not in progress.partial:
                progress.partial = (*progress.partial, line)

        query = RunQuery(tenant=progress.tenant, since=progress.since)
        writer: PartWriter | None = None
        place = Cursor(*progress.after)
        for found in collect(reading, query, after=place, on_partial=partial):
            place = found.place
            if isinstance(found.what, Run):
                writer = writer or PartWriter(len(progress.parts) + 1, progress.compression, target=part_bytes)
                writer.add(found.what)
            else:
                progress.left = found.what.counted(progress.left)
            telling.found(found)
            if writer is not None and writer.full:
                self._keep(writer, place)
                writer = None
        if writer is not None:
            self._keep(writer, place)

    def manifest(self) -> Manifest:
        """What was written, as its manifest says it."""
        progress, parts = self.progress, self.progress.parts
        return Manifest(
            format=FORMAT,
            version=VERSION,
            created_at=progress.created_at,
            created_by=f"runspan {__version__}",
            tenant=progress.tenant,
            source=progress.source,
            before=progress.before,
            since=progress.since,
            compression=progress.compression,
            runs=sum(part.runs for part in parts),
            document_bytes=sum(part.document_bytes for part in parts),
            oldest=min((part.oldest for part in parts), default=None),
            newest=max((part.newest for part in parts), default=None),
            left=progress.left,
            partial=progress.partial,
            files=parts,
        )

    def _keep(self, writer: PartWriter, after: Cursor) -> None:
        """The file is durable before the progress says so: one that was killed writes it anew at worst."""
        written = writer.finish()
        self.place.write(written.part.digests, written.digests)
        self.place.write(written.part.name, written.content)
        progress = self.progress
        progress.parts = (*progress.parts, written.part)
        progress.after = _pair(after)
        self.place.write(PROGRESS, msgspec.json.encode(progress))


def _pair(place: Cursor) -> tuple[int, str]:
    return place.time, place.run_id


def format_duration(nanoseconds: int) -> str:
    """A length of time as an option takes it: ``30d``, ``36h``, ``90m``."""
    minutes = nanoseconds // (60 * SECOND)
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes and minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


def _free_name(moment: datetime, names: set[str]) -> str:
    stem = f"runspan-{moment:%Y%m%dT%H%M%SZ}"
    return next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in names)
