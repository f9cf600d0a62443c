"""Fixtures that more than one test file uses, and the number of examples of a property."""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import httpx
from hypothesis import HealthCheck, settings

pytest_plugins = ["support.servers.fixtures", "support.sync_fixtures"]

# `make test` tries each property with a few new examples every time, `make campaign` with many.
for name, examples in (("suite", 50), ("campaign", 300)):
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Each client of httpx reads the certificate authorities anew, for 20 ms and for plain HTTP too: here once a process.
_read_certificates = httpx.create_ssl_context
_certificates = cache(_read_certificates)


def _shared_ssl_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    use = _read_certificates if trust_env else _certificates  # whose variables may change
    return use(verify=verify, cert=cert, trust_env=trust_env)


httpx._transports.default.create_ssl_context = _shared_ssl_context
