"""The parts of every HTTP client: TLS, an httpx client with a deadline, a bounded body, and errors as text."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from runspan._version import __version__
from runspan.errors import BackendRefused, QueryError, SettingError
from runspan.http.transport import DeadlineTransport
from runspan.http.urls import sanitize_message

USER_AGENT = f"runspan/{__version__}"


class ResponseTooLarge(BackendRefused):
    """The body of a response exceeds the bound; the same request again would cost as much."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Paths of the PEM files for TLS; None where the default applies."""

    certificate: str | None = None
    """The certificate authorities to trust."""

    client_certificate: str | None = None
    client_key: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return the context of these files, None if there are none. SettingError if one cannot be loaded."""
        if not (self.certificate or self.client_certificate):
            return None
        try:
            if self.certificate:
                context = ssl.create_default_context(cafile=self.certificate)
            else:
                context = httpx.create_ssl_context(trust_env=False)
            if self.client_certificate:
                context.load_cert_chain(self.client_certificate, self.client_key)
        except OSError as error:
            raise self._unreadable(error) from None
        return context

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the bytes of the three files in the order of the fields. SettingError if one cannot be read."""
        try:
            return _read(self.certificate), _read(self.client_certificate), _read(self.client_key)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> SettingError:
        files = ", ".join(filter(None, (self.certificate, self.client_certificate, self.client_key)))
        got = error.strerror or str(error)
        return SettingError(where=f"TLS files {files}", expected="readable PEM files", got=got)


def _read(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None


def create_client(
    base: str, *, headers: Mapping[str, str], tls: ssl.SSLContext | None = None, connections: int
) -> httpx.Client:
    """Return a client for the server of a base URL. It follows no redirects, which would carry its secrets elsewhere.

    Proxies and logins of the environment are ignored: they would be configuration that no caller passed in.
    """
    return httpx.Client(
        headers={"user-agent": USER_AGENT, **headers},
        transport=DeadlineTransport(base, tls=tls, connections=connections),
        trust_env=False,
    )


def read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the decoded body of a response that is being streamed.

    Reading stops as soon as the body exceeds ``max_bytes``; the result is then longer than that.
    """
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            break
    return b"".join(chunks)


def describe_error(error: Exception, secrets: Iterable[str] = ()) -> str:
    """Return an error of httpx as text: its class, and its message without secrets."""
    message = sanitize_message(str(error), secrets)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def url_too_long(where: str) -> QueryError:
    """Return the error for parameters of which httpx makes no URL: it allows 64 KiB, and encodes everything else."""
    return QueryError(
        where=where,
        expected="filters, ids and a tenant that fit into a URL",
        got="more than 64 KiB of them",
        hint="use shorter ones",
    )
