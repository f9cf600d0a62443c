"""Places named by URL, through fsspec: read from, archived to, and refused with what to do when that cannot be."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.errors import ConfigError, DocumentError, StoreError
from runspan.sources import documents, total_bytes
from runspan.sources.archive import archives_in, find_damage, manifest_of
from runspan.sources.filesystem import ObjectPath, display_path, is_url, list_files, read_all
from support.archives import Cut, Killed, fill, finished, held, make, past
from support.cli import process, runspan, server

TWO = b'{"id":"a"}\n{"id":"b"}\n'


@pytest.fixture(params=["memory", "file"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty place."""
    if request.param == "file":
        (tmp_path / "bucket").mkdir()
        yield f"file://{tmp_path}/bucket"
        return
    memory = fsspec.filesystem("memory")
    yield "memory://bucket"
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def put(bucket: str, name: str, content: bytes) -> str:
    url = f"{bucket}/{name}"
    with fsspec.open(url, "wb", auto_mkdir=True) as file:
        file.write(content)
    return url


def outcomes(url: str) -> list[str]:
    return [item.id if isinstance(item, Run) else f"! {item}" for item in documents(url)]


def test_a_file_and_a_folder_are_read_as_on_a_disk(bucket: str) -> None:
    """One object by its URL; the documents of a prefix by name, packed or not, and no other names."""
    url = put(bucket, "runs/1.ndjson", TWO)
    put(bucket, "runs/2.json.gz", gzip.compress(b'{"id":"c"}'))
    put(bucket, "runs/notes.txt", b"no")
    put(bucket, "runs/deeper/3.json", b'{"id":"no"}')
    assert outcomes(url) == ["a", "b"]
    for folder in (f"{bucket}/runs", f"{bucket}/runs/"):
        assert outcomes(folder) == ["a", "b", "c"]
    seen: list[int] = []
    assert len(list(documents(f"{bucket}/runs", on_bytes=seen.append))) == 3
    assert sum(seen) == total_bytes(f"{bucket}/runs")
    assert total_bytes(url) == len(TWO)


def test_errors_name_the_object(bucket: str) -> None:
    """A broken document has the URL as its place; a missing object is reported at once."""
    url = put(bucket, "runs.ndjson", TWO + b"{broken\n")
    *_, error = documents(url)
    assert isinstance(error, DocumentError)
    assert error.where.startswith(f"{url}:3")
    for missing in (f"{bucket}/none.json", f"{bucket}/none/"):
        with pytest.raises(ConfigError) as caught:
            documents(missing)
        assert caught.value.where == missing


def test_an_archive_among_objects(bucket: str, tmp_path: Path) -> None:
    """Written there, it is proved, read back in, found among others, and damage is named; killed, it is no archive and
    the next one resumes."""
    texts = past(150, unfinished=True)
    with SqliteStore(tmp_path / "data") as store:
        fill(store, texts)
        done = make(store, f"{bucket}/archives")
        assert held(done.path) == finished(texts)
        assert archives_in(f"{bucket}/archives") == [done.path]
        again = make(store, f"{bucket}/archives", compression="gzip")
    assert held(again.path) == finished(texts)
    assert len(archives_in(f"{bucket}/archives")) == 2
    there = list_files(done.path)
    assert there is not None
    assert "progress.json" not in there
    name = done.manifest.files[1].name
    content = bytearray(read_all(f"{done.path}/{name}", 1 << 20))
    content[len(content) // 2] ^= 1
    ObjectPath(f"{done.path}/{name}").write(bytes(content))
    found = list(find_damage(done.path, done.manifest))
    assert found
    assert all(name in fault.where for fault in found)
    ObjectPath(f"{done.path}/manifest.json").remove()
    ObjectPath(f"{done.path}/progress.json").write(b"{}")
    with pytest.raises(ConfigError, match="an unfinished one"):
        manifest_of(done.path)
    assert archives_in(f"{bucket}/archives") == [again.path]


def test_a_killed_archive_among_objects_goes_on(bucket: str, tmp_path: Path) -> None:
    """What was put there before is not put again."""
    texts = past(150)
    with SqliteStore(tmp_path / "data") as store:
        fill(store, texts)
        with pytest.raises(Killed):
            make(Cut(store, 100), f"{bucket}/archives")
        assert archives_in(f"{bucket}/archives") == []
        reader = Cut(store, 1000)
        done = make(reader, f"{bucket}/archives")
    assert done.resumed
    assert len(reader.asked) < 130
    assert held(done.path) == texts


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """As a disk that is full is: with the place, and nothing published."""
    (tmp_path / "file").write_text("a file where a folder should be")
    with SqliteStore(tmp_path / "data") as store:
        fill(store, past(20))
        with pytest.raises(StoreError, match="nothing was deleted"):
            make(store, f"file://{tmp_path}/file")


def test_the_command_takes_urls(tmp_path: Path) -> None:
    """Archive to a URL, check it there, and export from it into a real server."""
    texts = past(40)
    data, url = tmp_path / "data", f"file://{tmp_path}/bucket"
    with SqliteStore(data) as store:
        fill(store, texts)
    report = json.loads(runspan("archive", "--before", "1h", "--to", url, "--data", data, "--json").stdout)
    assert report["archive"].startswith(f"{url}/runspan-")
    assert "intact, 40 runs" in runspan("archive", "--check", url).stderr
    with server(tmp_path / "other") as (endpoint, _):
        process("export", url, "--endpoint", endpoint, "--quiet")
    with SqliteStore(tmp_path / "other") as store:
        assert {run_id: store.document(run_id).text for run_id in texts} == texts


# What cannot be.


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Without fsspec, or the package for a kind of URL, the error says what to install."""
    code = (
        "import sys; sys.modules[{missing!r}] = None\n"
        "from runspan.sources import documents\n"
        "from runspan.errors import ConfigError\n"
        "try: documents('s3://bucket/runs.json')\n"
        "except ConfigError as error: print(error)\n"
    )
    for missing, words in (("fsspec", "pip install 'runspan[objects]'"), ("s3fs", "pip install s3fs")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(missing=missing)], capture_output=True, text=True, check=True
        )
        assert words in done.stdout
        assert "s3://bucket/runs.json" in done.stdout


def test_plain_files_do_not_need_fsspec(tmp_path: Path) -> None:
    """It stays optional: files, folders and archives on a disk work without it."""
    (tmp_path / "a.json").write_bytes(TWO)
    code = (
        "import sys; sys.modules['fsspec'] = None\n"
        "from runspan.sources import documents\n"
        f"print(len(list(documents({str(tmp_path)!r}))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_an_unknown_kind_of_url_is_a_wrong_setting() -> None:
    """The error names some that are known."""
    with pytest.raises(ConfigError, match="s3://"):
        documents("nonsense://bucket/runs.json")


@pytest.mark.parametrize("args", [("export",), ("archive", "--check")])
def test_secrets_in_a_url_are_refused_and_never_shown(args: tuple[str, ...]) -> None:
    """A password on a command line can be read by every process; what signs a URL stays out of messages."""
    output = runspan(*args, "ftp://me:hunter2@127.0.0.1/runs.json", code=2).output
    assert "no place for a password" in output
    assert "hunter2" not in output
    assert display_path("https://me@host/a/b?signature=hunter2") == "https://host/a/b"


def test_only_urls_are_urls() -> None:
    """Paths with colons stay paths."""
    assert all(map(is_url, ("s3://b/k", "file:///a", "memory://x", "gs://b", "S3://b")))
    assert not any(map(is_url, ("a/b", "/a", "-", "C:/x", "a:b", "./s3:/x", "://x")))
