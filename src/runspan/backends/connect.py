"""``connect``: a backend's URL to the backend."""

from __future__ import annotations

from pathlib import Path

from runspan.backends.sqlite import SqliteStore
from runspan.errors import SettingError

FORMS = ("sqlite:DIR",)
"""The URLs that ``connect`` takes."""

_PLANNED = ("tempo+http", "tempo+https", "jaeger+http", "jaeger+https")


def connect(url: str, *, retention_days: float | None = None) -> SqliteStore:
    """The backend of a URL, opened. SettingError when the URL is none of ``FORMS``.

    ``sqlite:DIR``: the embedded store in a directory, relative or absolute, taken literally up to the end.
    retention_days: for the embedded store; see ``SqliteStore``.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "sqlite":
        if not rest:
            raise SettingError(where="backend", expected=FORMS[0], got=repr(url), hint="name a directory: sqlite:data")
        return SqliteStore(Path(rest), retention_days=retention_days)
    if colon and scheme in _PLANNED:
        raise SettingError("not in this version", where="backend", expected=" or ".join(FORMS), got=repr(url))
    raise SettingError(where="backend", expected=" or ".join(FORMS), got=repr(url), hint="write sqlite:DIR")
