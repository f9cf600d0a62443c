"""Deleting from the embedded store what a finished archive holds, and nothing that changed since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from runspan.backends.sqlite.retention import PurgeResult
from runspan.sources.archive_manifest import Manifest
from runspan.sources.archive_reader import digests_of

BATCH: Final = 500
"""Runs that are deleted at once: what arrives meanwhile waits for milliseconds."""

MAX_NAMED: Final = 20


class Purge(Protocol):
    """A store that deletes runs by their digest."""

    def purge(self, items: list[tuple[bytes, str]], tenant: str) -> PurgeResult: ...

    def vacuum(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """deleted: runs. changed: those that stay because what is stored is not what was archived; named: the first.

    gone: they were not there any more. spans: those of others that went with their runs, which an archive does not
    hold.
    """

    deleted: int = 0
    changed: int = 0
    named: tuple[str, ...] = ()
    gone: int = 0
    spans: int = 0


def purge(store: Purge, folder: str, manifest: Manifest, *, on_progress: Callable[[int], None]) -> PurgeReport:
    """Deletes the runs of an archive that was verified. on_progress: called with the runs that were just looked at.

    Killed on the way it leaves every run either whole in the store or deleted, and all of them in the archive.
    """
    report = PurgeReport()
    for part in manifest.files:
        items = digests_of(folder, part)
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            done = store.purge(batch, manifest.tenant)
            report = PurgeReport(
                report.deleted + done.deleted,
                report.changed + len(done.changed),
                (report.named + done.changed)[:MAX_NAMED],
                report.gone + done.gone,
                report.spans + done.spans,
            )
            on_progress(len(batch))
    store.vacuum()
    return report
