"""How run documents are read from files, folders and standard input, and what is reported when they cannot be."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from runspan.errors import ConfigError, DocumentError
from runspan.model.document import Run
from runspan.sources import documents, pieces, total_bytes

TWO = b'{"id":"a"}\n{"id":"b"}\n'


def outcomes(path: Path | str) -> list[str]:
    """The id of each run, and the text of each error."""
    return [item.id if isinstance(item, Run) else f"! {item}" for item in documents(str(path))]


def lines(count: int) -> bytes:
    """NDJSON that does not compress to nearly nothing."""
    digits = random.Random(7)
    return b"".join(b'{"id":"%d","input":"%0100x"}\n' % (number, digits.getrandbits(400)) for number in range(count))


def write(path: Path, data: bytes) -> Path:
    """A file with the data."""
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    """Packed as the zstd program does, with the checksum."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKINGS = pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])


@pytest.mark.parametrize("name", ["runs.ndjson", "runs.json", "runs", "runs.json.gz"])
@PACKINGS
def test_packing_is_recognised_by_its_bytes(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    """A file is read by what is in it, whatever it is called."""
    assert outcomes(write(tmp_path / name, pack(TWO))) == ["a", "b"]


def test_gzip_of_several_members(tmp_path: Path) -> None:
    """Members follow each other, may cut a document, may be empty, and may be padded with zero bytes."""
    parts = [gzip.compress(part) for part in (TWO[:15], b"", TWO[15:], b'{"id":"c"}')]
    assert outcomes(write(tmp_path / "a", b"".join(parts))) == ["a", "b", "c"]
    assert outcomes(write(tmp_path / "b", b"\0\0".join(parts) + b"\0" * 600_000)) == ["a", "b", "c"]


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    """Frames follow each other, may cut a document, may be empty, and may have no content at all, as pzstd's do."""
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0size"
    parts = [zstd(part) for part in (TWO[:15], b"", TWO[15:], b'{"id":"c"}')]
    assert outcomes(write(tmp_path / "a", b"".join(parts))) == ["a", "b", "c"]
    assert outcomes(write(tmp_path / "b", skippable + skippable.join(parts))) == ["a", "b", "c"]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_zstd(tmp_path: Path, kept: float) -> None:
    """Every document of the complete blocks is read, then the cut is reported once."""
    packed = zstd(lines(30_000))
    cut = packed[: int(len(packed) * kept)]
    readable = zstandard.ZstdDecompressor().decompressobj().decompress(cut).count(b"\n")
    assert readable > 100
    found = list(documents(str(write(tmp_path / "runs.zst", cut))))
    assert [item.id for item in found[:-1] if isinstance(item, Run)] == [str(number) for number in range(readable)]
    assert isinstance(found[-1], DocumentError)
    assert found[-1].where == f"{tmp_path / 'runs.zst'} compressed byte {len(cut)}"


def test_damaged_zstd(tmp_path: Path) -> None:
    """A changed byte is found by the structure or by the checksum; what was complete before it is read."""
    packed = bytearray(zstd(lines(20_000)))
    packed[len(packed) * 3 // 4] ^= 1
    *ids, error = outcomes(write(tmp_path / "a", bytes(packed)))
    assert 0 < len(ids) <= 20_000
    assert error.startswith(f"! {tmp_path / 'a'} compressed byte ")
    assert "complete zstd data" in error
    *ids, error = outcomes(write(tmp_path / "b", zstd(TWO) + b"junk"))
    assert ids == ["a", "b"]
    assert "complete zstd data" in error


def test_empty_files_have_no_documents(tmp_path: Path) -> None:
    """An empty file is no error, packed or not."""
    assert outcomes(write(tmp_path / "c.zst", zstd(b""))) == []
    assert outcomes(write(tmp_path / "a.json", b"")) == []
    assert outcomes(write(tmp_path / "b.gz", gzip.compress(b""))) == []


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_gzip(tmp_path: Path, kept: float) -> None:
    """Every document that can still be decompressed is read, then the cut is reported once."""
    plain = lines(5000)
    packed = gzip.compress(plain)
    packed = packed[: int(len(packed) * kept)]
    readable = zlib.decompressobj(31).decompress(packed).count(b"\n")
    assert readable > 100
    found = list(documents(str(write(tmp_path / "runs.gz", packed))))
    assert [item.id for item in found[:-1] if isinstance(item, Run)] == [str(number) for number in range(readable)]
    assert isinstance(found[-1], DocumentError)
    assert found[-1].where == f"{tmp_path / 'runs.gz'} compressed byte {len(packed)}"
    assert "missing" in found[-1].hint


def test_gzip_cut_in_its_last_bytes(tmp_path: Path) -> None:
    """A file that lacks only its checksum gives all of its lines, and the error."""
    for cut in (1, 8):
        *ids, error = outcomes(write(tmp_path / "a", gzip.compress(TWO)[:-cut]))
        assert ids == ["a", "b"]
        assert "end of the file inside the data" in error


def test_gzip_damaged_in_the_middle(tmp_path: Path) -> None:
    """Documents before a block that cannot be decompressed are read, then the damage is reported."""
    first, second = lines(3000), lines(10)
    good = gzip.compress(first)
    # The first block of the second member says that it is of the reserved kind.
    bad = bytearray(gzip.compress(second))
    bad[10] |= 0b110
    found = list(documents(str(write(tmp_path / "runs.gz", good + bytes(bad) + gzip.compress(TWO)))))
    assert len(found) == 3001
    assert all(isinstance(item, Run) for item in found[:-1])
    assert isinstance(found[-1], DocumentError)
    assert found[-1].where.endswith(f"compressed byte {len(good) + 10}")
    assert "invalid block type" in found[-1].got


def test_gzip_damage_keeps_what_the_same_block_gave_before_it(tmp_path: Path) -> None:
    """What was inflated in the call that met the damage is not lost with it."""
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)
    packed = stored.compress(TWO) + stored.flush(zlib.Z_FULL_FLUSH)
    *ids, error = outcomes(write(tmp_path / "a", packed + b"\xff" * 20))
    assert ids == ["a", "b"]
    assert f"compressed byte {len(packed)}" in error


def test_gzip_with_a_wrong_checksum(tmp_path: Path) -> None:
    """A wrong checksum is reported after the documents, which may be wrong too."""
    packed = bytearray(gzip.compress(TWO))
    packed[-8] ^= 1
    *ids, error = outcomes(write(tmp_path / "a", bytes(packed)))
    assert ids == ["a", "b"]
    assert "incorrect data check" in error


def test_junk_after_gzip(tmp_path: Path) -> None:
    """What follows the last member and is no gzip is reported."""
    *ids, error = outcomes(write(tmp_path / "a", gzip.compress(TWO) + b"junk"))
    assert ids == ["a", "b"]
    assert "incorrect header check" in error


@pytest.mark.parametrize(
    ("magic", "tool"),
    [(b"\xfd7zXZ\0", "xz"), (b"BZh91AY", "bzip2"), (b"PK\3\4..", "unzip")],
)
def test_other_packings_are_named(tmp_path: Path, magic: bytes, tool: str) -> None:
    """A file packed otherwise is refused once, with the command that unpacks it."""
    (error,) = documents(str(write(tmp_path / "a.json", magic + b"\n{}\n" * 9)))
    assert isinstance(error, DocumentError)
    assert tool in error.hint


def test_errors_name_the_file(tmp_path: Path) -> None:
    """An error names the path as it was given, with line and place, and the other documents go."""
    path = write(tmp_path / "runs.ndjson", b'{"id":"a"}\n{"id":"x","steps":[{"id":1}]}\n{"id":"b"}\n')
    a, error, b = documents(str(path))
    assert isinstance(a, Run)
    assert isinstance(b, Run)
    assert isinstance(error, DocumentError)
    assert error.where == f"{path}:2 steps[0].id"


@pytest.mark.parametrize("name", ["missing.json", "no/such/folder", "a\0b"])
def test_a_missing_file_is_reported_at_once(tmp_path: Path, name: str) -> None:
    """A path with nothing to read is a wrong setting, reported before the first document."""
    with pytest.raises(ConfigError) as caught:
        documents(str(tmp_path / name))
    assert name in caught.value.where
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported_at_once(tmp_path: Path) -> None:
    """A file without permission is a wrong setting."""
    path = write(tmp_path / "runs.json", TWO)
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        documents(str(path))


def test_a_folder_gives_its_files_sorted(tmp_path: Path) -> None:
    """A folder's JSON and NDJSON files are read by name, packed or not; nothing hidden, other or deeper."""
    for index, name in enumerate(["c.JSON", "a.ndjson.gz", "b.jsonl", "d.json.gz", "e.ndjson", "f.jsonl.gz"]):
        write(tmp_path / name, b'{"id":"%d"}' % index)
    for name in ["notes.txt", ".hidden.json", "g.gz", "h.zst", "json"]:
        write(tmp_path / name, b"no")
    (tmp_path / "folder.json").mkdir()
    assert [Path(piece.where).name[0] for piece in pieces(str(tmp_path))] == list("abcdef")
    assert outcomes(tmp_path) == ["1", "2", "0", "3", "4", "5"]


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    """A folder without documents is a wrong setting, and the hint says which names count."""
    with pytest.raises(ConfigError, match=r"\*\.ndjson"):
        documents(str(tmp_path))


def test_one_bad_file_does_not_stop_a_folder(tmp_path: Path) -> None:
    """A file that cannot be opened or unpacked is an error in its place."""
    write(tmp_path / "a.json", b'{"id":"a"}')
    (tmp_path / "b.json").symlink_to(tmp_path / "gone")
    write(tmp_path / "c.json", gzip.compress(b'{"id":"c"}\n')[:-3])
    write(tmp_path / "d.json", b'{"id":"d"}')
    a, broken, c, cut, d = documents(str(tmp_path))
    assert [item.id for item in (a, c, d) if isinstance(item, Run)] == ["a", "c", "d"]
    assert isinstance(broken, DocumentError)
    assert broken.where == str(tmp_path / "b.json")
    assert "No such file" in broken.got
    assert isinstance(cut, DocumentError)


class Failing(io.BytesIO):
    """A stream that breaks off, as a file on a lost network share does."""

    def read1(self, size: int | None = -1, /) -> bytes:
        data = super().read1(size)
        if not data:
            raise OSError(5, "Input/output error")
        return data


def test_a_read_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents before it are read, then the failure is reported with the stream's name."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Failing(TWO + b'{"id":"cut"}')))
    assert outcomes("-") == [
        "a",
        "b",
        "! stdin: expected a file that can be read, got Input/output error (documents after this place were not read)",
    ]


def test_pieces_say_where_documents_end(tmp_path: Path) -> None:
    """Offsets count unpacked bytes, so that a position in a packed file means something."""
    path = write(tmp_path / "a.gz", gzip.compress(TWO))
    assert [(piece.where, piece.end_offset) for piece in pieces(str(path))] == [(f"{path}:1", 10), (f"{path}:2", 22)]


@PACKINGS
def test_progress_adds_up(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The bytes reported add up to the total, as stored, and are reported on the way."""
    for name in ("a.json", "b.json"):
        write(tmp_path / name, pack(lines(10_000)))
    seen: list[int] = []
    for _ in documents(str(tmp_path), on_bytes=seen.append):
        pass
    assert sum(seen) == total_bytes(str(tmp_path)) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(seen) > 4


def test_the_total_of_a_pipe_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe has no size, named or on standard input; a file on standard input has."""
    os.mkfifo(tmp_path / "pipe")
    assert total_bytes(str(tmp_path / "pipe")) is None
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TWO)))
    assert total_bytes("-") is None
    with open(write(tmp_path / "a.json", TWO)) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert total_bytes("-") == len(TWO)


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
def test_a_small_file_that_unpacks_to_a_huge_one(tmp_path: Path, pack: str) -> None:
    """Packed a thousand to one and more, a file still takes a bounded memory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b'{"id":"a"}\n' + b" " * (1 << 20) + b"\n"
    packed = b"".join(packer.compress(block) for _ in range(100)) + packer.flush()
    path = write(tmp_path / "a", zstd(block * 100) if pack == "zstd" else packed)
    tracemalloc.start()
    try:
        assert outcomes(path) == ["a"] * 100
        assert tracemalloc.get_traced_memory()[1] < (48 << 20 if pack == "zstd" else 8 << 20)
    finally:
        tracemalloc.stop()


READER = """
import sys
from runspan.sources import documents
for item in documents("-"):
    print(getattr(item, "id", item), flush=True)
"""


@PACKINGS
def test_standard_input(pack: Callable[[bytes], bytes]) -> None:
    """Standard input is read like a file, and is called stdin in errors."""
    data = pack(TWO + b"bad\n")
    done = subprocess.run(
        [sys.executable, "-c", READER], input=data, capture_output=True, check=True, env=environment()
    )
    a, b, error = done.stdout.decode().splitlines()
    assert (a, b) == ("a", "b")
    assert error.startswith("stdin:3 ")


def test_standard_input_gives_documents_as_they_come() -> None:
    """A document is handed out while the writer of the pipe is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as reader:
        assert reader.stdin
        assert reader.stdout
        for name in (b"a", b"b", b"c"):
            reader.stdin.write(b'{"id":"%s"}\n' % name)
            reader.stdin.flush()
            assert reader.stdout.readline().strip() == name
        reader.stdin.close()
        assert reader.wait() == 0


def environment() -> dict[str, str]:
    """The environment of a reader that imports what this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
