"""The extras of the package: which one has a module that is not installed."""

from __future__ import annotations

import re

from runspan.errors import ConfigError


def missing_extra(error: ModuleNotFoundError, what: str) -> Exception:
    """Return the ConfigError that names the extra that ``what`` needs; the error itself if no extra has the module."""
    from importlib import metadata  # noqa: PLC0415  # slow to import, and seldom needed

    module = (error.name or "").partition(".")[0]
    for requirement in metadata.requires("runspan") or ():
        match = re.match(r"([\w-]+).*; extra == ['\"](\w+)['\"]", requirement)
        if match and match[1].replace("-", "_") == module:
            return ConfigError(
                where=what,
                expected=f"the package {match[1]}",
                got="no such package",
                hint=f"pip install 'runspan[{match[2]}]'",
            )
    return error
