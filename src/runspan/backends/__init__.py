"""Where traces are kept and read: the embedded store, and the stores of others behind the same contract.

``connect``: a backend's URL to the backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runspan.backends.sqlite import SqliteStore
from runspan.errors import SettingError
from runspan.http.urls import redact_url

if TYPE_CHECKING:
    from runspan.backends.jaeger import JaegerReader
    from runspan.backends.tempo import TempoReader


FORMS = ("sqlite:DIR", "tempo+http(s)://HOST:PORT", "jaeger+http(s)://HOST:PORT")
"""The URLs that ``connect`` takes."""

_NO_VARIABLES: Mapping[str, str] = {}


def connect(
    url: str,
    *,
    retention_days: float | None = None,
    env: Mapping[str, str] = _NO_VARIABLES,
    services: Sequence[str] | None = None,
) -> SqliteStore | TempoReader | JaegerReader:
    """The backend of a URL, opened. SettingError when the URL is none of ``FORMS``.

    ``sqlite:DIR``: the embedded store in a directory, relative or absolute, taken literally up to the end.
    ``tempo+http://host:port/prefix`` and ``jaeger+…``: read from there; nothing is asked before the first call.
    retention_days: for the embedded store; see ``SqliteStore``. env: where the ``RUNSPAN_BACKEND_…`` variables are
    looked up, such as ``os.environ``; see ``backends.remote.config``. services: the names that
    runs were sent under, for Jaeger; without them ``RUNSPAN_BACKEND_SERVICES``, else all that Jaeger knows.
    """
    kind = url.partition(":")[0].partition("+")[0].lower()
    if "+" in url.partition(":")[0] and kind in ("tempo", "jaeger"):
        return _remote(kind, url, env, services)
    return open_store(url, retention_days=retention_days, forms=FORMS)


def open_store(url: str, *, retention_days: float | None = None, forms: tuple[str, ...] = FORMS[:1]) -> SqliteStore:
    """The embedded store of a URL. SettingError when the URL is another backend's or none."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme != "sqlite":
        got = repr(redact_url(url))
        raise SettingError(where="backend", expected=" or ".join(forms), got=got, hint=f"write {forms[0]}")
    if not rest:
        raise SettingError(where="backend", expected=forms[0], got=repr(url), hint="name a directory: sqlite:data")
    return SqliteStore(Path(rest), retention_days=retention_days)


def _remote(kind: str, url: str, env: Mapping[str, str], services: Sequence[str] | None) -> TempoReader | JaegerReader:
    # Imported here, so that who uses the embedded store alone pays for no HTTP client.
    from runspan.backends.remote.config import remote_config  # noqa: PLC0415

    settings = remote_config(url, env)
    if kind == "tempo":
        from runspan.backends.tempo import TempoReader  # noqa: PLC0415

        return TempoReader(settings)
    from runspan.backends.jaeger import JaegerReader  # noqa: PLC0415

    named = [name.strip() for name in env.get("RUNSPAN_BACKEND_SERVICES", "").split(",") if name.strip()]
    return JaegerReader(settings, services=services or named or None)
