"""The Tab key: the documented scripts are what shells read, and complete commands and options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runspan.cli.app import _COMMANDS
from support.cli import environment

README = (Path(__file__).parents[2] / "README.md").read_text()
SCRIPT = Path(sys.executable).with_name("runspan")
PATH = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"
COMPLETE = """
{line}
COMP_WORDS=({words}) COMP_CWORD={last}
_runspan_completion runspan
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def documented(shell: str) -> str:
    found = re.search(rf"^.*_RUNSPAN_COMPLETE={shell}_source.*$", README, re.MULTILINE)
    assert found is not None
    return found[0].partition("  #")[0].strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runspan", "''"], set(_COMMANDS)),
        (["runspan", "ex"], {"export"}),
        (["runspan", "keys", "r"], {"revoke", "rotate"}),
        (["runspan", "export", "--dead"], {"--dead-letter"}),
        (["runspan", "list", "--status", "fa"], {"failed"}),
    ],
)
def test_bash_completes_commands_options_and_values(words: list[str], expected: set[str]) -> None:
    program = COMPLETE.format(line=documented("bash"), words=" ".join(words), last=len(words) - 1)
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, env=environment(PATH=PATH), timeout=60
    )
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_documented_script_is_printed(shell: str) -> None:
    assert documented(shell)
    env = environment(PATH=PATH, _RUNSPAN_COMPLETE=f"{shell}_source")
    done = subprocess.run([SCRIPT], capture_output=True, text=True, check=True, env=env, timeout=60)
    assert f"_RUNSPAN_COMPLETE={shell}_complete" in done.stdout
    assert done.stderr == ""


def test_the_completion_of_a_command_imports_none() -> None:
    """It is as fast as the help."""
    program = """
import sys
from runspan.cli import main
try:
    main(prog_name="runspan")
except SystemExit:
    print(sorted(name for name in sys.modules if name.startswith("runspan.cli.")), file=sys.stderr)
"""
    env = environment(_RUNSPAN_COMPLETE="bash_complete", COMP_WORDS="runspan ", COMP_CWORD="1")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env, timeout=60
    )
    assert done.stdout.split() == [f"plain,{name}" for name in _COMMANDS]
    assert done.stderr == "['runspan.cli.app', 'runspan.cli.output']\n"
