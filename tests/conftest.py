"""Fixtures that more than one test file uses, the number of examples of a property, and the number of workers."""

from __future__ import annotations

import os
import ssl
import time
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "support.faults",
    "support.preload",
    "support.servers.fixtures",
    "support.states",
    "support.sync_fixtures",
    "web.pages.browser",
]

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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip what would begin after ``RUNSPAN_TEST_DEADLINE``, in seconds since 1970."""
    if time.time() > float(os.environ.get("RUNSPAN_TEST_DEADLINE", "inf")):
        pytest.skip("RUNSPAN_TEST_DEADLINE has passed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Half as many workers again as there are cores: tests often wait for servers, processes and the disk."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0))
    return cores + (cores + 1) // 2
