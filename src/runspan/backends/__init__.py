"""The embedded store and other stores behind the same contract, and ``connect``, which opens one by its URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runspan.backends.sqlite import Limits, SqliteStore
from runspan.errors import ConfigError
from runspan.http.urls import redact_url

if TYPE_CHECKING:
    from runspan.backends.remote.config import RemoteConfig
    from runspan.backends.remote.tenants import HeaderReader
    from runspan.contracts import TraceReader


FORMS = ("sqlite:DIR", "tempo+http(s)://HOST:PORT", "jaeger+http(s)://HOST:PORT")
"""The forms of URLs that ``connect`` accepts."""

_NO_VARIABLES: Mapping[str, str] = {}


def connect(
    url: str,
    *,
    retention_days: float | None = None,
    limits: Limits | None = None,
    max_expire_share: float = 1.0,
    index: bool | None = None,
    env: Mapping[str, str] = _NO_VARIABLES,
    services: Sequence[str] | None = None,
) -> SqliteStore | TraceReader:
    """Open the backend of a URL. ConfigError if the URL has none of ``FORMS``.

    ``sqlite:DIR``: The embedded store in a directory, relative or absolute, literally up to the end.
    ``tempo+http://host:port/prefix`` and ``jaeger+…``: A reader; it sends no request before the first call.

    retention_days, max_expire_share, limits, index: For the embedded store; see ``SqliteStore``.
    env: The ``RUNSPAN_BACKEND_…`` variables, such as ``os.environ``; see ``backends.remote.config``.
    services: The service names of the runs, for Jaeger; else ``RUNSPAN_BACKEND_SERVICES``, else all that Jaeger has.
    """
    kind, plus, _ = url.partition(":")[0].lower().partition("+")
    if not plus or kind not in ("tempo", "jaeger"):
        return open_store(
            url,
            retention_days=retention_days,
            max_expire_share=max_expire_share,
            limits=limits,
            index=index,
            forms=FORMS,
        )
    # Imported here, so that callers of the embedded store alone load no HTTP client.
    from runspan.backends.remote.config import remote_config  # noqa: PLC0415

    config = remote_config(url, env)
    if kind == "tempo":
        from runspan.backends.tempo import TempoReader  # noqa: PLC0415

        return _of_tenants(TempoReader(config), config)
    from runspan.backends.jaeger import JaegerReader  # noqa: PLC0415

    named = [name.strip() for name in env.get("RUNSPAN_BACKEND_SERVICES", "").split(",") if name.strip()]
    return _of_tenants(JaegerReader(config, services=services or named or None), config)


def _of_tenants(reader: HeaderReader, config: RemoteConfig) -> TraceReader:
    from runspan.backends.remote.tenants import TenantReader  # noqa: PLC0415

    return TenantReader(reader, config) if config.has_tenants else reader


def open_store(
    url: str,
    *,
    retention_days: float | None = None,
    limits: Limits | None = None,
    max_expire_share: float = 1.0,
    index: bool | None = None,
    forms: tuple[str, ...] = FORMS[:1],
) -> SqliteStore:
    """Open the embedded store of a URL. ConfigError if the URL is another backend's or none."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme != "sqlite":
        got = repr(redact_url(url))
        raise ConfigError(where="backend", expected=" or ".join(forms), got=got, hint=f"write {forms[0]}")
    if not rest:
        raise ConfigError(where="backend", expected=forms[0], got=repr(url), hint="name a directory: sqlite:data")
    return SqliteStore(
        Path(rest), retention_days=retention_days, max_expire_share=max_expire_share, limits=limits, index=index
    )
