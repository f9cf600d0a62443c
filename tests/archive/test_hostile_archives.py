"""Archives that were made to do harm: their names, links, sizes and bombs are refused with place and reason."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from runspan import Run
from runspan.errors import DocumentError
from runspan.sources import documents, splitter
from runspan.sources.archive import (
    MANIFEST,
    MAX_MANIFEST,
    ArchivePart,
    Manifest,
    archives_in,
    digest_line,
    manifest_of,
    write_manifest,
)
from support.archives import NOW, held
from support.cli import process, runspan
from support.receivers import http_receiver

DOCUMENT = Run.from_dict({"id": "a", "status": "completed", "startedAt": "2025-01-15T09:00:01Z"})
NDJSON_GZ = gzip.compress(DOCUMENT.text + b"\n")


def write(folder: Path, content: bytes = NDJSON_GZ, name: str = "runs-000001.ndjson.gz", **part: Any) -> Path:
    """An archive with one file, whose manifest is as it was written, whatever it says."""
    digests = digest_line(sha256(DOCUMENT.text).digest(), "a")
    members: dict[str, Any] = {
        "name": name,
        "runs": 1,
        "bytes": len(content),
        "sha256": sha256(content).hexdigest(),
        "document_bytes": len(DOCUMENT.text),
        "digests": "runs-000001.sha256",
        "digests_sha256": sha256(digests).hexdigest(),
        "oldest": 0,
        "newest": 0,
        **part,
    }
    found = ArchivePart(**members)
    manifest = Manifest("runspan-archive", 1, "", "", "", "sqlite", NOW, None, "gzip", files=(found,))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = msgspec.structs.replace(manifest, runs=found.runs, document_bytes=found.document_bytes)
    (folder / MANIFEST).write_bytes(write_manifest(manifest))
    for path, data in ((folder / found.digests, digests), (folder / name, content)):
        if "\0" not in str(path) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


def errors(path: Path, **options: bool) -> list[DocumentError]:
    return [found for found in documents(str(path), **options) if isinstance(found, DocumentError)]


def test_what_the_others_change(tmp_path: Path) -> None:
    """Without a change the archive is read."""
    assert held(write(tmp_path / "a")) == {"a": DOCUMENT.text}


# Names and links.


@pytest.mark.parametrize(
    "name",
    [
        "../secret.ndjson.gz",
        "{elsewhere}/runs-000001.ndjson.gz",
        "sub/runs-000001.ndjson.gz",
        "runs-000001.ndjson.gz\0",
        "runs-000001.ndjson.gz\n",
        "..",
        "",
        "runs-1/../../x.ndjson.gz",
        "file:///etc/passwd",
        ".runs-000001.ndjson.gz",
    ],
)
@pytest.mark.parametrize("member", ["name", "digests"])
def test_a_name_out_of_the_folder_is_refused_before_anything_is_opened(tmp_path: Path, name: str, member: str) -> None:
    """Absolute, with dots or a NUL, or with a folder: the manifest is refused, and nothing of it is read."""
    folder = write(tmp_path / "archive")
    manifest = manifest_of(str(folder))
    assert manifest is not None
    wrong = name.replace("{elsewhere}", str(tmp_path))
    part = msgspec.structs.replace(manifest.files[0], **{member: wrong})
    (folder / MANIFEST).write_bytes(write_manifest(msgspec.structs.replace(manifest, files=(part,))))
    with pytest.raises(DocumentError, match=r"manifest\.json: expected names such as runs-000001"):
        manifest_of(str(folder))
    result = runspan("archive", "--check", folder, code=3)
    assert "names such as runs-000001.ndjson.zst" in result.stderr


@pytest.mark.parametrize("name", [MANIFEST, "runs-000001.sha256", "runs-000001.ndjson.gz"])
def test_links_out_of_an_archive_are_followed_only_when_told(tmp_path: Path, name: str) -> None:
    """An archive that was unpacked from elsewhere reads no file of this machine; one on several disks does."""
    folder = write(tmp_path / "archive")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to("../elsewhere")
    result = runspan("archive", "--check", folder, code=3)
    assert f"{folder / name}: expected a file in the folder, got a symbolic link out of it" in result.stderr
    assert "--follow-symlinks" in result.stderr
    with http_receiver() as receiver:
        code = 3 if name == MANIFEST else 1
        runspan("export", folder, "--endpoint", receiver.url, code=code)
        assert receiver.posts == []
        runspan("export", folder, "--endpoint", receiver.url, "--follow-symlinks")
        assert len(receiver.accepted) == 1
    runspan("archive", "--check", folder, "--follow-symlinks")


def test_links_inside_an_archive_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "archive")
    (folder / "runs-000001.ndjson.gz").rename(folder / "data")
    (folder / "runs-000001.ndjson.gz").symlink_to("data")
    assert held(folder) == {"a": DOCUMENT.text}


def test_an_archive_that_is_a_link_is_named_and_skipped(tmp_path: Path) -> None:
    """In a folder of archives. One that is named itself is read."""
    write(tmp_path / "elsewhere" / "archive")
    to = tmp_path / "to"
    write(to / "first")
    (to / "second").symlink_to("../elsewhere/archive")
    skipped: list[str] = []
    found = list(documents(str(to), on_skipped=skipped.append))
    assert (len(found), skipped) == (1, [str(to / "second")])
    assert len(list(documents(str(to), follow_symlinks=True))) == 2
    assert archives_in(str(to)) == [str(to / "first")]
    result = runspan("archive", "--check", to)
    assert f"{to / 'second'}: not read: a symbolic link out of the folder" in result.stderr
    assert held(to / "second") == {"a": DOCUMENT.text}


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_export_follows_links_out_of_a_folder_only_when_told(tmp_path: Path, prefix: str) -> None:
    """The report names and counts what was skipped; also below a URL of this machine's disk."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.json").write_bytes(DOCUMENT.text)
    (folder / "sub" / "b.txt").write_bytes(DOCUMENT.text.replace(b'"a"', b'"b"'))
    (folder / "b.json").symlink_to("sub/b.txt")
    (tmp_path / "secret.json").write_bytes(DOCUMENT.text.replace(b'"a"', b'"secret"'))
    (folder / "c.json").symlink_to("../secret.json")
    where = f"{prefix}{folder}"
    with http_receiver() as receiver:
        done = runspan("export", where, "--endpoint", receiver.url, "--json")
        report = json.loads(done.stdout)
        assert (report["runs_accepted"], report["links_skipped"], report["skipped"]) == (2, 1, [f"{where}/c.json"])
        assert (
            "1 symbolic link out of the folder not followed"
            in runspan("export", where, "--endpoint", receiver.url, "--quiet").stderr
        )
        done = runspan("export", where, "--endpoint", receiver.url, "--json", "--follow-symlinks")
        report = json.loads(done.stdout)
        assert (report["runs_accepted"], report["links_skipped"]) == (3, 0)
        (folder / "a.json").unlink()
        (folder / "b.json").unlink()
        done = runspan("export", where, "--endpoint", receiver.url, code=2)
        assert "only symbolic links out of the folder" in done.stderr
    assert "secret" in runspan("export", tmp_path / "in" / "c.json", "--dry-run").stdout


# Sizes.


@pytest.mark.parametrize("lines", [1, 3])
def test_a_document_over_the_bound_is_refused_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    """The others of its file are read."""
    large = DOCUMENT.text.replace(b'"a"', b'"large","output":"' + b"x" * 5000 + b'"').replace(
        b",", b"\n" * lines + b",", 1
    )
    content = gzip.compress(DOCUMENT.text + b"\n[\n" + large + b"\n]\n" + DOCUMENT.text + b"\n")
    line = digest_line(sha256(DOCUMENT.text).digest(), "a")
    digests = line + digest_line(sha256(large).digest(), "large") + line
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "runs-000001.sha256").write_bytes(digests)
    size = len(large) + 2 * len(DOCUMENT.text)
    write(folder, content, runs=3, document_bytes=size, digests_sha256=sha256(digests).hexdigest())
    assert len(list(documents(str(folder)))) == 3
    assert errors(folder) == []
    monkeypatch.setattr(splitter.split, "__kwdefaults__", {"max_document": 4000})
    found = list(documents(str(folder)))
    assert [isinstance(each, Run) for each in found] == [True, False, True]
    (error,) = errors(folder)
    assert "at most 4000 bytes" in str(error)
    assert error.where.startswith(str(folder / "runs-000001.ndjson.gz"))


def test_a_manifest_over_the_bound_is_refused_unread(tmp_path: Path) -> None:
    """Its size on the disk tells; a file without a size is read up to the bound."""
    folder = write(tmp_path / "archive")
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(MAX_MANIFEST + 1)
    with pytest.raises(DocumentError, match="a manifest of at most 67108864 bytes"):
        manifest_of(str(folder))


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: b"".join([gzip.compress(bytes(1 << 28), 1)] * 2),
    "zstd": lambda: zstandard.ZstdCompressor().compress(bytes(1 << 28)) * 64,
    "a line in gzip": lambda: gzip.compress(b"{" + b"x" * (1 << 28), 1),
    "stray text": lambda: zstandard.ZstdCompressor().compress(b"x" * (1 << 28)) * 8,
}


@pytest.mark.parametrize(
    ("kind", "claimed"), [*((kind, 100) for kind in BOMBS), ("gzip", 1 << 60), ("a line in gzip", 1 << 60)]
)
def test_a_bomb_ends_where_the_manifest_says(tmp_path: Path, kind: str, claimed: int) -> None:
    """The rest is not decompressed, whatever it would become. A manifest that claims more costs time, and no memory."""
    suffix = "gz" if "gzip" in kind else "zst"
    folder = write(tmp_path / "archive", BOMBS[kind](), f"runs-000001.ndjson.{suffix}", document_bytes=claimed)
    script = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
        from runspan.sources import documents
        for found in documents(sys.argv[1]):
            print(found)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ("got more" in done.stdout) == (claimed == 100), done.stdout
    assert done.stdout


def test_a_huge_file_of_digests_is_not_held(tmp_path: Path) -> None:
    """An eighth of a gigabyte on one line, or on millions of them."""
    folder = write(tmp_path / "archive")
    for line in (b"0" * (128 << 20), (b"0" * 64 + b' "a"\n') * (1 << 20)):
        (folder / "runs-000001.sha256").write_bytes(line)
        script = """
            import resource, sys
            resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
            from runspan.sources import documents
            print(*documents(sys.argv[1]))
        """
        for digest in ("0" * 64, sha256(line).hexdigest()):
            write(folder, digests_sha256=digest)
            done = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(script), str(folder)],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
            assert "runs-000001" in done.stdout


def test_nested_manifests(tmp_path: Path) -> None:
    """However deep: an error and no traceback."""
    folder = write(tmp_path / "archive")
    for number in (1100, 1_000_000):
        (folder / MANIFEST).write_bytes(b'{"format":"runspan-archive","version":1,"x":' + b"[" * number)
        done = process("archive", "--check", folder, code=3)
        assert b"the manifest of an archive" in done.stderr
