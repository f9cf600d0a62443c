"""What a sync shows while it runs: a bar on a terminal, with rate, backlog and lag."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from runspan.cli.output import format_elapsed
from runspan.model.timestamps import SECOND
from support.cli import command, environment
from support.faulty_platform import Faults, platform
from support.sync import local_server, run_document


def test_a_terminal_sees_a_bar_with_rate_backlog_and_lag(tmp_path: Path) -> None:
    """On a real terminal. The report follows, and standard output stays empty."""
    with local_server(tmp_path / "a") as source, local_server(tmp_path / "b") as target:
        source.fill(*(run_document(f"run_{number}", start=number) for number in range(60)))
        with platform(source.url, faults=Faults(slow=1.0), pause=0.1) as mock:
            controller, terminal = os.openpty()
            args = ("sync", mock.url, "--endpoint", target.url, "--state-file", tmp_path / "cp")
            child = subprocess.Popen(
                command(*args), stdout=subprocess.PIPE, stderr=terminal, env=environment(TERM="xterm", COLUMNS="160")
            )
            os.close(terminal)
            seen = b""
            with child:
                try:
                    while chunk := os.read(controller, 65536):
                        seen += chunk
                except OSError:
                    pass  # the terminal was closed
                finally:
                    os.close(controller)
                assert child.stdout is not None
                assert child.stdout.read() == b""
                assert child.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"\d+/60 .*\d/s, backlog \d+, lag \d+d", text)
    assert "60 runs sent" in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m 1s"), (7200, "2h"), (90_061, "1d 1h"), (200_000, "2d 7h")],
)
def test_a_duration_has_two_units_at_most(seconds: int, expected: str) -> None:
    """The largest ones that are not 0."""
    assert format_elapsed(seconds * SECOND) == expected
