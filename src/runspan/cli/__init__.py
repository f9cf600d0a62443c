"""The command line: ``runspan``, one file per group of commands."""

from runspan.cli.app import main

__all__ = ["main"]
