"""Archives: all ended runs are in them exactly, every change is reported, and none looks finished that is not."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from conformance.harness import foreign_otlp, otlp
from runspan import Run, encode
from runspan.archive.create import AgeRange, purge
from runspan.archive.select import RetryingReader, collect
from runspan.archive.targets import LocalTarget, exclusive
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Cursor, Document, RunQuery
from runspan.errors import (
    BackendBusy,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    DocumentError,
    NotFound,
    RateLimited,
    StoreError,
    TraceIncomplete,
)
from runspan.model.span import run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.sources import documents, tenants, total_bytes
from runspan.sources.archive import (
    SkipCount,
    archives_in,
    find_damage,
    manifest_of,
    read_manifest,
    write_manifest,
)
from support.archives import NOW, SECOND, Cut, Killed, Troubled, fill, finished, held, make, past
from support.cli import runspan
from support.corpus import cases

COUNT = 300


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    return past(COUNT, unfinished=True)


@pytest.fixture
def store(tmp_path: Path, texts: dict[str, bytes]) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "data") as store:
        fill(store, texts)
        yield store


@pytest.fixture
def archived(store: SqliteStore, tmp_path: Path) -> Path:
    return Path(make(store, tmp_path / "to").path)


# What is in it.


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_everything_that_ended_is_in_the_archive_byte_for_byte(
    store: SqliteStore, tmp_path: Path, texts: dict[str, bytes], compression: str
) -> None:
    """Over several files, each document once; runs that have not ended are left, counted, and some of them named."""
    done = make(store, tmp_path / "to", compression=compression)
    ended = finished(texts)
    assert held(done.path) == ended
    manifest = done.manifest
    assert len(manifest.files) > 5
    assert manifest.runs == len(ended)
    assert manifest.document_bytes == sum(map(len, ended.values()))
    assert manifest.skipped.unfinished.runs == COUNT - len(ended) > 0
    assert set(manifest.skipped.unfinished.examples) <= texts.keys() - ended.keys()
    assert done.complete
    assert not done.resumed
    assert total_bytes(done.path) == sum(part.bytes for part in manifest.files)


def test_documents_of_every_kind_come_back(tmp_path: Path) -> None:
    """An archive carries what the codec carries, also texts with line breaks and unusual ids."""
    texts = [Run.from_json(text).text for text in cases().values()]
    texts = [text.replace(b'"id":"run_1"', b'"id":"run_1-%d"' % number, 1) for number, text in enumerate(texts)]
    usual = [text for text in texts if len(text) < 100_000]
    runs = {run.id: run.text for run in map(Run.from_json, usual) if run.finished}
    assert len(runs) > 90
    assert any(b"\n" in text for text in runs.values())
    with SqliteStore(tmp_path / "data") as store:
        fill(store, runs)
        assert held(make(store, tmp_path / "to", ages=AgeRange(-NOW, None)).path) == runs


def test_usual_tools_can_check_an_archive(archived: Path) -> None:
    """sha256sum proves the files, and the files of digests prove the documents."""
    manifest = json.loads((archived / "manifest.json").read_text())
    for part in manifest["files"]:
        content = (archived / part["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
        if shutil.which("zstd"):
            plain = subprocess.run(["zstd", "-dc", archived / part["name"]], capture_output=True, check=True).stdout
            digests = [line[:64] for line in (archived / part["digests"]).read_text().splitlines()]
            assert [hashlib.sha256(line).hexdigest() for line in plain.splitlines()] == digests


def test_only_runs_of_the_time_asked_for(store: SqliteStore, tmp_path: Path, texts: dict[str, bytes]) -> None:
    """Runs that started at the bound itself are not earlier than it; those at the lower bound are in."""
    with SqliteStore(tmp_path / "times") as times:
        for second in range(10):
            text = b'{"id":"r%d","status":"completed","startedAt":"2025-01-01T00:00:0%dZ"}' % (second, second)
            times.put(Run.from_json(text), observed_at=NOW)
        edge = 1_735_689_600 * SECOND
        ages = AgeRange(NOW - edge - 6 * SECOND, NOW - edge - 2 * SECOND)
        done = make(times, tmp_path / "to", ages=ages)
    assert sorted(held(done.path)) == ["r2", "r3", "r4", "r5"]


def test_each_tenant_has_its_own(tmp_path: Path, texts: dict[str, bytes]) -> None:
    """An archive holds one tenant's runs and says whose."""
    ended = finished(texts)
    names = sorted(ended)
    with SqliteStore(tmp_path / "data") as store:
        fill(store, {name: ended[name] for name in names[:20]}, "acme")
        fill(store, {name: ended[name] for name in names[20:30]})
        acme = make(store, tmp_path / "to", tenant="acme").path
        default = make(store, tmp_path / "to").path
    assert sorted(held(acme)) == names[:20]
    assert sorted(held(default)) == names[20:30]
    assert tenants(acme) == {"acme"}
    assert tenants(str(tmp_path / "to")) == {"acme", ""}


def test_nothing_to_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    """No folder that looks like an archive, and a path that says so."""
    with SqliteStore(tmp_path / "data") as store:
        done = make(store, tmp_path / "to")
    assert done.path == ""
    assert archives_in(str(tmp_path / "to")) == []
    assert [entry.name for entry in (tmp_path / "to").iterdir() if entry.is_dir()] == []


def test_archives_of_one_second_do_not_collide(store: SqliteStore, tmp_path: Path) -> None:
    """The second gets a name of its own, and a folder of archives is read as all of them."""
    first, second = make(store, tmp_path / "to"), make(store, tmp_path / "to")
    assert [first.path, second.path] == archives_in(str(tmp_path / "to"))
    assert len(list(documents(str(tmp_path / "to")))) == first.manifest.runs * 2


def test_only_one_archives_into_a_folder(store: SqliteStore, tmp_path: Path) -> None:
    """The second reports it, and does not resume what the first is writing."""
    with exclusive(str(tmp_path / "to")), pytest.raises(ConfigError, match="no other process archives"):
        make(store, tmp_path / "to")
    assert make(store, tmp_path / "to").path


# A backend that has its troubles.


def test_what_cannot_be_archived_is_told_and_the_rest_is(
    store: SqliteStore, tmp_path: Path, texts: dict[str, bytes]
) -> None:
    """Each run that is left has its reason in the manifest, and the archive says that it is not complete."""
    gone, behind, torn, refused, late, *_ = names = sorted(finished(texts))
    reader = Troubled(
        store,
        {
            gone: NotFound("not here"),
            behind: Document(texts[behind], ("step 3 of a newer revision is missing",)),
            torn: TraceIncomplete("cut", missing=("the root",)),
            refused: BackendRefused("no", where="there"),
            late: Document(texts[late].replace(b'"status":"', b'"status":"suspended","was":"', 1)),
            "": ("a block could not be read",),
        },
    )
    done = make(reader, tmp_path / "to")
    assert held(done.path).keys() == set(names[5:])
    skipped = done.manifest.skipped
    assert skipped.vanished == SkipCount(1, (gone,))
    assert skipped.incomplete.runs == 2
    assert f"{behind}: step 3 of a newer revision is missing" in skipped.incomplete.examples
    assert skipped.unreadable == SkipCount(1, (f"{refused}: there: no",))
    assert skipped.unfinished.runs == COUNT - len(names) + 1
    assert done.manifest.partial == ("a block could not be read",)
    assert not done.complete


def test_a_backend_that_is_busy_is_asked_again(store: SqliteStore, texts: dict[str, bytes]) -> None:
    """It waits as long as it is asked to; a backend that stays away ends the archive with its error."""
    first, *_ = sorted(finished(texts))
    reader = Troubled(store, {first: [BackendUnreachable("gone"), BackendBusy("later", retry_after=0.3)]})
    waits: list[tuple[str, float]] = []
    reading = RetryingReader(reader, 1, on_retry=lambda trouble, seconds: waits.append((trouble, seconds)))
    begun = time.monotonic()
    found = collect(reading, RunQuery(), after=Cursor.behind(NOW), on_partial=print)
    assert sum(isinstance(item.result, Run) for item in found) == len(finished(texts))
    assert time.monotonic() - begun > 0.3
    assert [trouble for trouble, _ in waits] == ["later", "gone"]
    assert waits[0][1] == 0.3
    reader = Troubled(store, {first: BackendUnreachable("gone for good")})
    begun = time.monotonic()
    with pytest.raises(BackendUnreachable):
        list(collect(RetryingReader(reader, 4, 0.5), RunQuery(), after=Cursor.behind(NOW), on_partial=print))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("asked", [86_400.0, 1e11, float("inf")])
def test_a_backend_that_asks_for_more_patience_than_there_is_ends_it_at_once(
    store: SqliteStore, texts: dict[str, bytes], asked: float
) -> None:
    """However long it asks to wait, the archive does not sleep for it."""
    trouble = RateLimited("slowly", retry_after=asked)
    reader = Troubled(store, dict.fromkeys(texts, trouble))
    waits: list[float] = []
    reading = RetryingReader(reader, 2, on_retry=lambda trouble, seconds: waits.append(seconds))
    with pytest.raises(RateLimited, match="slowly"):
        list(collect(reading, RunQuery(), after=Cursor.behind(NOW), on_partial=print))
    assert waits == []


# Going on.


def test_one_that_was_cut_goes_on_where_it_was(store: SqliteStore, tmp_path: Path, texts: dict[str, bytes]) -> None:
    """What it has on disk stays, it keeps its own time range, and until it is finished it is not read as an archive."""
    to = tmp_path / "to"
    with pytest.raises(Killed):
        make(Cut(store, 180), to)
    (folder,) = [entry for entry in to.iterdir() if entry.is_dir()]
    assert folder.suffix == ".partial"
    assert archives_in(str(to)) == []
    for path in (folder, to):
        with pytest.raises(ConfigError):
            documents(str(path))
    written = {entry.name: entry.stat().st_mtime_ns for entry in folder.glob("*.zst")}
    assert len(written) > 2
    reader = Cut(store, COUNT)
    done = make(reader, to, now=NOW + 5 * SECOND)
    assert done.resumed
    assert done.manifest.before == NOW - 3600 * SECOND
    assert held(done.path) == finished(texts)
    assert len(reader.asked) < len(finished(texts)) - 80
    assert {name: (Path(done.path) / name).stat().st_mtime_ns for name in written} == written
    assert sorted(entry.suffix for entry in Path(done.path).iterdir() if entry.name not in written)[0] == ".json"
    assert not list(Path(done.path).glob("progress*"))


def test_another_request_does_not_go_on_with_it(store: SqliteStore, tmp_path: Path, texts: dict[str, bytes]) -> None:
    """Another tenant, backend, packing or length of either bound begins an archive of its own, and says so."""
    with pytest.raises(Killed):
        make(Cut(store, 180), tmp_path / "to")
    reported: list[tuple[str, str]] = []

    def other_archive(path: str, options: str) -> None:
        reported.append((Path(path).suffix, options))

    hour = 3600 * SECOND
    others = (
        {"compression": "gzip"},
        {"ages": AgeRange(2 * hour, None)},
        {"ages": AgeRange(hour, 2 * NOW)},
        {"source_url": "sqlite:elsewhere"},
        {"tenant": "acme"},
    )
    for other in others:
        assert not make(store, tmp_path / "to", other=other_archive, **other).resumed
    assert reported == [(".partial", "--before 1h --format zstd")] * 3  # those of other runs are not reported
    assert make(store, tmp_path / "to", other=other_archive).resumed
    assert len(reported) == 3


def test_purge_never_reaches_what_a_killed_archive_of_younger_runs_holds(
    tmp_path: Path, texts: dict[str, bytes]
) -> None:
    """A killed archive with a shorter --before is left for its own command, and what it holds stays in the store."""
    data, to = tmp_path / "data", tmp_path / "to"
    with SqliteStore(data) as store:
        fill(store, texts)
        source = f"sqlite:{data.resolve()}"
        with pytest.raises(Killed):
            make(Cut(store, 180), to, source_url=source)
    output = runspan("archive", "--before", "9999d", "--to", to, "--data", data, "--purge").stderr
    assert "an unfinished archive of --before 1h --format zstd" in output
    assert "nothing to archive" in output
    output = runspan("archive", "--before", "1h", "--to", to, "--data", data, "--purge").stderr
    assert "resumed an unfinished archive" in output
    assert f"{len(finished(texts))} runs purged" in output


def test_what_does_not_come_back_is_no_archive(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes a byte is reported with the file, and nothing is published."""
    write = LocalTarget.write

    def lying(self: LocalTarget, name: str, content: bytes) -> None:
        changed = bytearray(content)
        if name.endswith(".zst") and "000002" in name:
            changed[len(changed) // 2] ^= 4
        write(self, name, bytes(changed))

    monkeypatch.setattr(LocalTarget, "write", lying)
    with pytest.raises(StoreError, match=r"does not come back.*|runs-000002") as caught:
        make(store, tmp_path / "to")
    assert "runs-000002.ndjson.zst" in caught.value.where
    assert archives_in(str(tmp_path / "to")) == []


def test_a_disk_that_is_full_is_told(store: SqliteStore, tmp_path: Path) -> None:
    """The error names the place, and says that nothing was deleted."""
    (tmp_path / "to").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="nothing was deleted"):
        make(store, tmp_path / "to")


# Damage.


def test_any_changed_byte_is_found_and_named(archived: Path, texts: dict[str, bytes]) -> None:
    """Each of 150 random bytes in all files is reported with its file; the documents that still come back are
    those that were archived."""
    random = Random(20261125)
    ended = finished(texts)
    names = sorted(entry.name for entry in archived.iterdir())
    for number in range(150):
        path = archived / names[number % len(names)]
        content = path.read_bytes()
        at, bit = random.randrange(len(content)), 1 << random.randrange(8)
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        found = list(_faults(archived))
        assert found, (path.name, at, bit)
        assert any(path.name in fault.where for fault in found), (path.name, at, bit, found)
        try:
            read = [item for item in documents(str(archived)) if isinstance(item, Run)]
        except DocumentError:
            assert path.name == "manifest.json"
        else:
            assert all(ended[run.id] == run.text for run in read)
        path.write_bytes(content)
    assert list(_faults(archived)) == []


@pytest.mark.parametrize("change", ["cut", "longer", "missing", "swapped"])
@pytest.mark.parametrize("name", ["runs-000002.ndjson.zst", "runs-000002.sha256"])
def test_a_file_that_is_not_the_archives_is_named(archived: Path, change: str, name: str) -> None:
    """Shortened, lengthened, away, or another one under its name."""
    path = archived / name
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        other = (archived / name.replace("02", "01")).read_bytes()
        path.write_bytes({"cut": content[:-7], "longer": content + b"\0", "swapped": other}[change])
    assert any(name in fault.where for fault in _faults(archived))


def test_a_changed_document_is_not_handed_out(tmp_path: Path, store: SqliteStore) -> None:
    """Even when file and packing are well-formed, the digest of the document shows it; the others are read."""
    folder = Path(make(store, tmp_path / "to", compression="gzip").path)
    (name, *_) = sorted(entry.name for entry in folder.glob("*.gz"))
    lines = gzip.decompress((folder / name).read_bytes()).splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"status":"', b'"status": "')
    (folder / name).write_bytes(gzip.compress(b"".join(lines)))
    errors = [item for item in documents(str(folder)) if isinstance(item, DocumentError)]
    assert errors[0].where.endswith(f"{name}:4")
    assert "as it was archived" in errors[0].expected
    assert "SHA-256" in errors[1].expected
    assert len(errors) == 2
    alone = [item for item in documents(str(folder / name)) if isinstance(item, DocumentError)]
    assert list(map(str, alone)) == list(map(str, errors))


def test_a_manifest_is_only_what_was_written(archived: Path) -> None:
    """Another format, a newer version, a member more, or the same values written otherwise: refused with a reason."""
    content = (archived / "manifest.json").read_bytes()
    manifest = read_manifest(content, where="m")
    assert write_manifest(manifest) == content
    for changed, words in (
        (content.replace(b'"version": 1', b'"version": 2'), "version of runspan that wrote it"),
        (content.replace(b"runspan-archive", b"something-else"), "something-else"),
        (content.replace(b'"source"', b'"sauce"'), "manifest of this version"),
        (content.replace(b"\n", b"\n\n", 1), "changed since"),
        (content[:-100], "manifest of an archive"),
        (b"\xff", "manifest of an archive"),
    ):
        with pytest.raises(DocumentError, match=words):
            read_manifest(changed, where="m")


def _faults(folder: Path) -> Iterator[DocumentError]:
    try:
        manifest = manifest_of(str(folder))
    except DocumentError as error:
        yield error
        return
    assert manifest is not None
    yield from find_damage(str(folder), manifest)


# Purging.


def test_purge_deletes_what_is_archived_and_nothing_else(
    store: SqliteStore, tmp_path: Path, texts: dict[str, bytes]
) -> None:
    """A run that changed, one whose newer revision is on its way, one of another tenant with the same id, and those
    that have not ended stay; foreign spans go with their run; a second purge finds nothing."""
    done = make(store, tmp_path / "to")
    changed, arriving, twin, seen, *rest = sorted(finished(texts))
    later = Run.from_json(texts[changed].replace(b'"id":', b'"corrected":true,"id":', 1))
    store.put(later, observed_at=NOW)
    newer = Run.from_json(texts[arriving].replace(b'"name":', b'"corrected":true,"name":'))
    *_, revision_span = encode(newer, observed_at=NOW + 1, after_root=True)
    store.write(read_protobuf(otlp([revision_span])))
    store.put(Run.from_json(texts[twin]), tenant="acme", observed_at=NOW)
    store.write(read_protobuf(foreign_otlp(run_ids(seen).trace_id, b"foreign1", "chat")))
    report = purge(store, done.path, done.manifest, on_progress=lambda runs: None)
    assert report.named == tuple(sorted(report.named)) or set(report.named) == {changed, arriving}
    assert (report.deleted, report.changed, report.spans) == (len(rest) + 2, 2, 1)
    assert store.document(changed).text == later.text
    assert store.document(twin, "acme").text == texts[twin]
    for run_id in (twin, seen, *rest):
        with pytest.raises(NotFound):
            store.document(run_id)
    assert store.document(arriving).incomplete
    for run_id in texts.keys() - finished(texts).keys():
        assert store.document(run_id).text == texts[run_id]
    again = purge(store, done.path, done.manifest, on_progress=lambda runs: None)
    assert (again.deleted, again.gone) == (0, report.deleted)


# The command.


def test_the_command_archives_checks_and_purges(tmp_path: Path, texts: dict[str, bytes]) -> None:
    """From a data directory, with a report for people and one for programs."""
    data, to = tmp_path / "data", tmp_path / "to"
    with SqliteStore(data) as store:
        fill(store, texts)
    ended = finished(texts)
    output = runspan("archive", "--before", "1h", "--to", to, "--data", data).stderr
    assert f"archived {len(ended)} runs" in output
    assert f"{COUNT - len(ended)} runs left because they have not ended" in output
    (folder,) = archives_in(str(to))
    assert f"runspan export {folder}" in output
    output = runspan("archive", "--check", to).stderr
    assert f"intact, {len(ended)} runs" in output
    report = json.loads(
        runspan("archive", "--before", "1h", "--to", to, "--data", data, "--purge", "--json", "--format", "gzip").stdout
    )
    assert report["complete"]
    assert report["purged"]["deleted"] == report["runs"] == len(ended)
    assert held(report["archive"]) == ended
    assert "nothing to archive" in runspan("archive", "--before", "1h", "--to", to, "--data", data).stderr
    part = next(Path(folder).glob("*.zst"))
    part.write_bytes(part.read_bytes()[:-1])
    output = runspan("archive", "--check", to, code=3).stderr
    assert f"{part}" in output
    assert "DAMAGED" in output
    checked = json.loads(runspan("archive", "--check", to, "--json", code=3).stdout)
    assert [item["intact"] for item in checked["archives"]] == [False, True]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--before TIME and --to DIR"),
        (("--before", "1h"), "one of the two"),
        (("--before", "1h", "--to", "x", "--since", "30m"), "longer ago than --before"),
        (("--before", "1h", "--to", "x", "--purge", "--backend", "tempo+http://127.0.0.1:9"), "embedded store"),
        (("--before", "1h", "--to", "s3://b/x", "--data", "nowhere"), "no runs are kept here"),
    ],
)
def test_a_wrong_request_is_told(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    """Before anything is written."""
    assert words in runspan("archive", *args, code=2).output


def test_a_place_without_an_archive_is_told(tmp_path: Path) -> None:
    """Nothing to check is no success."""
    assert "no archive is here" in runspan("archive", "--check", tmp_path, code=5).output


def test_the_documentation_shows_the_manifest(archived: Path) -> None:
    """Every member that a manifest has is explained."""
    content = (Path(__file__).parents[2] / "docs" / "archive.md").read_text()
    manifest = json.loads((archived / "manifest.json").read_text())
    for name in {*manifest, *manifest["files"][0], *manifest["skipped"]}:
        assert f"`{name}`" in content or f'"{name}"' in content, name
