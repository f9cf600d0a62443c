"""Hosts that no client can look up, and text that UTF-8 cannot encode: errors at once, wherever they are set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from runspan import ConfigError, Recorder, connect
from runspan.backends.runspan_api import RunspanApiReader
from runspan.cli import main
from runspan.delivery import exporter_config
from runspan.http.urls import parse_url
from runspan.platform_api.client import parse_api_url

WRONG = [
    "http://collector..svc",  # as http://collector.$NAMESPACE.svc, the variable not set
    "http://.svc:4318",
    "http://.",
    f"http://{'a' * 64}.svc",
    "http://" + ".".join(["a" * 60] * 5),
    "http://h\x7f",
    "http://exa mple",
    "http://${HOST}:4318",
    "http://%zz",
    "http://xn--",
    "http://☃.example",
    "http://h\udcff",
    "http://h/\udcff",
]
RIGHT = [
    "http://collector",
    "http://collector.monitoring.svc.cluster.local.:4318",
    "http://otel_collector:4318",
    "http://127.0.0.1:4318/v1/traces?tenant=7",
    "http://[::1]:4318",
    "http://[fe80::1%25eth0]:4318",
    "http://bücher.example",
    "http://xn--bcher-kva.example",
    "http://ann:p%40ss@collector",
    f"http://{'a' * 63}.svc",
]

PLACES: dict[str, Callable[[str], Any]] = {
    "recorder": lambda url: Recorder(endpoint=url),
    "recorder, environ": lambda url: Recorder(environ={"OTEL_EXPORTER_OTLP_ENDPOINT": url}),
    "recorder, gRPC": lambda url: Recorder(endpoint=url, protocol="grpc"),
    "export": lambda url: exporter_config({}, endpoint=url),
    "export, variable": lambda url: exporter_config({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}),
    "export, gRPC": lambda url: exporter_config({}, endpoint=url, protocol="grpc"),
    "sync": lambda url: parse_api_url("URL", url, key_variable="KEY"),
    "list, get": RunspanApiReader,
    "list, get from Tempo": lambda url: connect(f"tempo+{url}"),
    "list, get from Jaeger": lambda url: connect(f"jaeger+{url}"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", WRONG, ids=ascii)
def test_a_host_that_cannot_be_looked_up_is_refused_at_once(place: str, url: str) -> None:
    """The ConfigError says where and what, instead of a traceback for each attempt."""
    with pytest.raises(ConfigError) as caught:
        PLACES[place](url)
    error = caught.value
    assert error.where
    assert error.expected
    assert error.got
    str(error).encode()


@pytest.mark.parametrize("url", RIGHT)
def test_every_other_host_is_left_to_the_network(url: str) -> None:
    """Names with underscores, a final dot, other scripts, and addresses."""
    parse_url("URL", url, "a URL")


def test_the_error_guesses_at_a_variable_and_shows_no_login() -> None:
    """A template without its value leaves an empty part of a name."""
    with pytest.raises(ConfigError) as caught:
        exporter_config({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ann:s3cret@collector..svc"})
    assert str(caught.value) == (
        "OTEL_EXPORTER_OTLP_ENDPOINT: expected the name or address of a host, got 'collector..svc' "
        "(a part of it is empty: is a variable not set?)"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", __file__, "--endpoint", "http://collector..svc"],
        ["sync", "http://collector..svc", "--endpoint", "http://127.0.0.1:9"],
        ["list", "--backend", "http://collector..svc"],
        ["get", "run_1", "--backend", "tempo+http://collector..svc"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_name_the_wrong_option(arguments: list[str], tmp_path: Any) -> None:
    """Exit code 2, as for every other wrong option."""
    checkpoint = ["--state-file", str(tmp_path / "sync.db")] if arguments[0] == "sync" else []
    result = CliRunner().invoke(main, [*arguments, *checkpoint])
    assert result.exit_code == 2
    assert "'collector..svc'" in result.stderr


# Text and numbers.

NOT_UTF8 = "caf\udce9"  # bytes of another encoding, as Python decodes them from the environment


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"environ": {"OTEL_SERVICE_NAME": NOT_UTF8}}, "OTEL_SERVICE_NAME"),
        ({"environ": {"OTEL_RESOURCE_ATTRIBUTES": f"site={NOT_UTF8}"}}, "OTEL_RESOURCE_ATTRIBUTES"),
        ({"environ": {"OTEL_RESOURCE_ATTRIBUTES": f"{NOT_UTF8}=1"}}, "OTEL_RESOURCE_ATTRIBUTES"),
        ({"environ": {"RUNSPAN_API_KEY": NOT_UTF8}}, "RUNSPAN_API_KEY"),
        ({"environ": {"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}}, "OTEL_EXPORTER_OTLP_TIMEOUT"),
        ({"service_name": NOT_UTF8}, "service_name"),
        ({"resource_attributes": {"site": NOT_UTF8}}, "resource_attributes"),
        ({"resource_attributes": {"shard": 1}}, "resource_attributes"),
        ({"tenant": NOT_UTF8}, "tenant"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_at_once(arguments: dict[str, Any], named: str) -> None:
    """When the recorder is created, not by its thread while runs pile up; and no key is shown."""
    with pytest.raises(ConfigError) as caught:
        Recorder(**{"endpoint": "http://127.0.0.1:9", **arguments})
    error = caught.value
    assert (error.where, bool(error.expected), bool(error.got)) == (named, True, True)
    str(error).encode()
    assert named != "RUNSPAN_API_KEY" or "caf" not in str(error)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RUNSPAN_SERVICE_NAME", NOT_UTF8),
        ("OTEL_SERVICE_NAME", NOT_UTF8),
        ("OTEL_RESOURCE_ATTRIBUTES", f"site={NOT_UTF8}"),
        ("RUNSPAN_TIMEOUT", "nan"),
    ],
)
def test_an_export_refuses_them_too(variable: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A usage error, and no traceback."""
    monkeypatch.setenv(variable, value)
    document = tmp_path / "run.json"
    document.write_text('{"id":"run_1","status":"completed","steps":[]}')
    result = CliRunner().invoke(
        main, ["export", str(document), "--endpoint", "http://127.0.0.1:9", "--retry-max-time", "0"]
    )
    assert result.exit_code == 2, result.stderr
