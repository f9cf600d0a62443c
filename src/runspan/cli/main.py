"""The ``runspan`` command itself: its group, and what its help begins and ends with."""

from __future__ import annotations

import click

from runspan._version import __version__
from runspan.cli.archive import archive_runs
from runspan.cli.demo import demo
from runspan.cli.errors import CliGroup, exit_codes
from runspan.cli.export import export
from runspan.cli.keys import keys
from runspan.cli.query import get, list_runs
from runspan.cli.serve import serve
from runspan.cli.sync import sync
from runspan.cli.verify import verify


@click.group(
    cls=CliGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""\
Every option has an environment variable: --max-body is RUNSPAN_MAX_BODY. `runspan COMMAND -h` names them.

\b
Exit codes:
{exit_codes()}
""",
)
@click.version_option(__version__, message="runspan %(version)s")
def main() -> None:
    """Workflow run logs as OpenTelemetry traces, and the exact run documents back.

    \b
    A first look, with sample runs:
      runspan demo
    A server with an embedded store, and runs sent to it:
      runspan serve --data ./data
      runspan export runs.ndjson --endpoint http://127.0.0.1:8321
    Reading them back, from its directory or over its API:
      runspan list --data ./data --status failed
      runspan get run_abc123 --backend http://127.0.0.1:8321
    """


for command in (serve, export, sync, list_runs, get, verify, archive_runs, keys, demo):
    main.add_command(command)
