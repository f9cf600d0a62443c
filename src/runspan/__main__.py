"""``runspan`` and ``python -m runspan``: the command line, or what to install for it."""

import sys

from runspan.extras import missing_extra


def main() -> None:
    """Run the command line."""
    try:
        from runspan.cli import main as command_line  # noqa: PLC0415  # click belongs to an extra
    except ModuleNotFoundError as error:
        sys.exit(f"runspan: {missing_extra(error, 'the command line')}")
    command_line()


if __name__ == "__main__":
    main()
