"""The help texts: complete, with examples, and one name for one thing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from runspan.cli import main
from runspan.errors import ERROR_STATUSES
from support.cli import runspan, subcommands

ROOT = Path(__file__).parents[2]
Words = tuple[str, ...]


def commands(group: click.Group = main, path: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    yield path, group
    for name, command in subcommands(group).items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def options(command: click.Command) -> list[click.Option]:
    """The options apart from --version; --help is not among a command's own."""
    return [each for each in command.params if isinstance(each, click.Option) and each.name != "version"]


OPTIONS = [(path, option) for path, command in COMMANDS.items() for option in options(command)]


def variables(option: click.Option) -> list[str]:
    return [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())


def flat(text: str) -> str:
    """Help as one line: it is wrapped wherever the terminal ends, at hyphens too."""
    return re.sub(r"(?<=-) ", "", " ".join(text.split()))


def test_the_commands_are_those_that_are_promised() -> None:
    """Scripts depend on these names."""
    assert {" ".join(path) for path in COMMANDS if path} == {
        "serve",
        "archive",
        "erase",
        "backup",
        "check",
        "restore",
        "export",
        "stats",
        "sync",
        "list",
        "get",
        "verify",
        "resolve",
        "demo",
        "keys",
        "keys create",
        "keys list",
        "keys revoke",
        "keys rotate",
    }


@pytest.mark.parametrize(
    ("path", "option"), OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value.name
)
def test_every_option_has_help_and_shows_its_variable(path: Words, option: click.Option) -> None:
    """The command's help explains the option, and names the environment variable that sets it."""
    assert option.help
    assert option.help.endswith(".")
    assert variables(option)
    assert variables(option)[0].startswith("RUNSPAN_")
    shown = flat(runspan(*path, "-h").output)
    assert flat(option.help) in shown
    assert f"env var: {', '.join(variables(option))}" in shown


def test_an_option_and_its_variable_have_the_same_meaning_in_every_command() -> None:
    """No variable sets two different options, and an option has no second variable except where a name says so."""
    flags: dict[str, set[str]] = {}
    for _, option in OPTIONS:
        for variable in variables(option):
            flags.setdefault(variable, set()).add(option.opts[-1])
            assert re.fullmatch(r"RUNSPAN_[A-Z_]+|OTEL_SERVICE_NAME", variable)
    assert {variable: names for variable, names in flags.items() if len(names) > 1} == {}
    for path, command in COMMANDS.items():
        names = [variable for option in options(command) for variable in variables(option)]
        assert len(names) == len(set(names)), path


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_of_the_command(path: Words) -> None:
    """A line of it can be copied into a shell, and its options exist."""
    shown = runspan(*path, "-h").output
    lines = [line for line in shown.splitlines() if re.search(rf"^    .*\brunspan {' '.join(path)}".rstrip(), line)]
    assert lines
    for line in lines:
        words = line.split("runspan ", 1)[1].split("|")[0].split(">")[0].split()
        command = next((COMMANDS[tuple(words[:n])] for n in (2, 1) if tuple(words[:n]) in COMMANDS), None)
        assert command is not None, line
        known = {flag for option in options(command) for flag in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_its_terminal_and_uses_a_wide_one(path: Words) -> None:
    """80 columns are enough, and a wide terminal is used up to 100, in subcommands as well."""
    narrow = runspan(*path, "-h", COLUMNS="80").output.splitlines()
    wide = runspan(*path, "-h", COLUMNS="200").output.splitlines()
    described = [line for line in narrow if not line.startswith(("  GET", "    "))]
    assert max(map(len, described)) <= 80
    assert max(map(len, wide)) <= 100
    assert len(wide) <= len(narrow)


def test_each_exit_code_is_listed_on_one_line() -> None:
    """Every code of the table of errors is listed once, with its meaning."""
    shown = runspan("-h").output
    listed = re.findall(r"^    (\d+) +(\S.*)$", shown[shown.index("Exit codes:") :], re.MULTILINE)
    assert [int(code) for code, _ in listed] == sorted({int(code) for code, _ in listed})
    assert {row.exit_code for row in ERROR_STATUSES.values()} | {0, 130, 141} == {int(code) for code, _ in listed}
    assert dict(listed)["7"] == "unauthorized or forbidden"


def test_no_option_takes_a_secret() -> None:
    """A command line is read by every process on the machine: keys come from the environment or from a file."""
    for _, option in OPTIONS:
        if re.search("key|secret|token|password|headers?$", option.opts[-1]):
            assert option.opts[-1] in ("--api-key-file", "--platform-key-file")
    for path in (("export",), ("list",), ("get",), ("sync",)):
        assert "RUNSPAN_API_KEY" in runspan(*path, "-h").output


def test_the_version_is_printed() -> None:
    """One line, for bug reports."""
    assert re.fullmatch(r"runspan \d+\.\d+\.\d+\S*\n", runspan("--version").stdout)


def test_a_command_imports_what_it_needs_and_no_more() -> None:
    """The start-up time of a command does not depend on what the others need."""
    slow = ("flask", "grpc", "httpx", "opentelemetry.sdk", "rich")
    code = "import sys; from runspan.cli import main; main(['{}', '-h'], standalone_mode=False)\n"
    code += f"print(*[name for name in {slow} if name in sys.modules], file=sys.stderr)"
    for name, allowed in (("--version", set()), ("keys", {"flask"}), ("list", {"rich"})):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True)
        assert set(done.stderr.split()) <= allowed, name


def test_a_duration_has_a_unit() -> None:
    """A number alone could be meant as seconds or as days; only 0 is the same in every unit."""
    for value in ("30", "5 m", "1w", "h", "1e3s"):
        assert (
            f"expected a duration such as 30s, 5m, 2h or 7d, got '{value}'"
            in runspan("list", f"--stuck={value}", code=2).stderr
        )
    for value in ("0", "30s", "5m", "1.5h", "7d"):
        assert "no runs are kept here" in runspan("list", f"--stuck={value}", "--data", "nowhere", code=2).stderr


OF_OTHERS = {
    "--bootstrap-server", "--build", "--conditions", "--config", "--constraint", "--create", "--enable-feature",
    "--external-url", "--full", "--output", "--partitions", "--profile", "--replicas", "--replication-factor",
    "--reports", "--rollover", "--shards", "--site", "--strict", "--topic", "--unit", "--unit-count", "--volumes",
    "--wait",
}  # fmt: skip
"""Options of other programs that the documentation names."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+\b(?!-)", page.read_text()))
    assert named - OF_OTHERS <= {name for _, option in OPTIONS for name in option.opts} | {"--help"}


@pytest.mark.parametrize(
    "page", [ROOT / "docs" / "operate.md", ROOT / "docs" / "security.md"], ids=lambda page: page.name
)
def test_defaults_of_serve_are_those_of_the_documentation(page: Path) -> None:
    """In the tables of limits: the option, and what it is without being set."""
    defaults = {option.opts[0]: str(option.default) for path, option in OPTIONS if path == ("serve",)}
    rows = "".join(line for line in page.read_text().splitlines(keepends=True) if line.startswith("| "))
    stated = [
        *re.findall(r"`(--[a-z-]+) ([\d.]+[smhd]?)`", rows),
        *re.findall(r"`(--[a-z-]+-per-minute)` (\d+)", rows),
    ]
    assert len(stated) > 1
    assert {name: value for name, value in stated if defaults[name] != value} == {}
