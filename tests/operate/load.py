"""Documents sent one export after another, and which of them the receiver took."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from pathlib import Path
from types import TracebackType

from operate.kit import document, step
from runspan import Run
from support.cli import command, environment


class Load:
    """Exports documents to a receiver from a thread of its own until the block ends or ``stop`` is called.

    each: documents in one export. size: bytes of a document's output. retry_for: seconds that an export tries.
    """

    def __init__(self, directory: Path, otlp: str, *, each: int, size: int, retry_for: float) -> None:
        self.sent: dict[str, bytes] = {}
        self._directory, self._otlp = directory, otlp
        self._each, self._size, self._retry_for = each, size, retry_for
        self._letters = directory / "letters.ndjson"
        self._ended = threading.Event()
        self._failed: list[str] = []
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Returns once the last export has ended."""
        self._ended.set()
        self._thread.join()
        assert not self._failed, self._failed

    @property
    def taken(self) -> dict[str, bytes]:
        """The documents that the receiver has acknowledged, by run id. For after the end."""
        lines = self._letters.read_bytes().splitlines() if self._letters.exists() else []
        left = {json.loads(line)["id"] for line in lines}
        return {run_id: text for run_id, text in self.sent.items() if run_id not in left}

    def _work(self) -> None:
        for number in itertools.count():
            if self._ended.is_set():
                return
            file = self._directory / f"{number}.ndjson"
            texts = dict(self._document(f"run_{number}_{place}") for place in range(self._each))
            file.write_bytes(b"".join(text + b"\n" for text in texts.values()))
            self.sent |= texts
            done = subprocess.run(
                command(
                    "export",
                    file,
                    "--endpoint",
                    self._otlp,
                    "--dead-letter",
                    self._letters,
                    "--retry-max-time",
                    f"{self._retry_for}s",
                    "--batch-spans",
                    100,
                    "--quiet",
                ),
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode not in {0, 1} or "Traceback" in done.stderr:
                self._failed.append(done.stderr)
                return
            file.unlink()

    def _document(self, run_id: str) -> tuple[str, bytes]:
        padded = step("pad", output="x" * self._size)
        run = Run.from_json(json.dumps(document(run_id, "wf_load", steps=[step("look"), padded])).encode())
        return run.id, run.text
