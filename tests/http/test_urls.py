"""Hosts that no client could look up, and text that nothing could carry: told at once, wherever somebody sets them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from runspan import Recorder, SettingError, connect
from runspan.backends.runspan_api import RunspanApiReader
from runspan.cli import main
from runspan.delivery import exporter_config
from runspan.http.urls import validate_host
from runspan.platform_api.client import base_url

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
    "sync": base_url,
    "list, get": RunspanApiReader,
    "list, get from Tempo": lambda url: connect(f"tempo+{url}"),
    "list, get from Jaeger": lambda url: connect(f"jaeger+{url}"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", WRONG, ids=ascii)
def test_a_host_that_cannot_be_looked_up_is_told_at_once(place: str, url: str) -> None:
    """A SettingError that says where and what, in place of a stack trace at each try."""
    with pytest.raises(SettingError) as caught:
        PLACES[place](url)
    error = caught.value
    assert error.where
    assert error.expected
    assert error.got
    str(error).encode()


@pytest.mark.parametrize("url", RIGHT)
def test_every_other_host_is_left_to_the_network(url: str) -> None:
    """Names with underscores, a final dot, other scripts, and addresses."""
    validate_host("URL", url)


def test_the_error_guesses_at_a_variable_and_shows_no_login() -> None:
    """An empty part of a name is what a template without its value leaves."""
    with pytest.raises(SettingError) as caught:
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
def test_commands_end_with_the_setting_that_is_wrong(arguments: list[str], tmp_path: Any) -> None:
    """Exit code 2, as for every other wrong setting."""
    checkpoint = ["--state-file", str(tmp_path / "sync.db")] if arguments[0] == "sync" else []
    result = CliRunner().invoke(main, [*arguments, *checkpoint])
    assert result.exit_code == 2
    assert "'collector..svc'" in result.stderr


# Text and numbers.

NO_TEXT = "caf\udce9"  # bytes of another encoding, as Python gives them out of the environment


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"environ": {"OTEL_SERVICE_NAME": NO_TEXT}}, "OTEL_SERVICE_NAME"),
        ({"environ": {"OTEL_RESOURCE_ATTRIBUTES": f"site={NO_TEXT}"}}, "OTEL_RESOURCE_ATTRIBUTES"),
        ({"environ": {"OTEL_RESOURCE_ATTRIBUTES": f"{NO_TEXT}=1"}}, "OTEL_RESOURCE_ATTRIBUTES"),
        ({"environ": {"RUNSPAN_API_KEY": NO_TEXT}}, "RUNSPAN_API_KEY"),
        ({"environ": {"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}}, "OTEL_EXPORTER_OTLP_TIMEOUT"),
        ({"service_name": NO_TEXT}, "service_name"),
        ({"resource_attributes": {"site": NO_TEXT}}, "resource_attributes"),
        ({"resource_attributes": {"shard": 1}}, "resource_attributes"),
        ({"tenant": NO_TEXT}, "tenant"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_settings_that_nothing_could_carry_are_told_at_once(settings: dict[str, Any], named: str) -> None:
    """When the recorder is made, not by its thread while runs pile up; and a key is not shown."""
    with pytest.raises(SettingError) as caught:
        Recorder(**{"endpoint": "http://127.0.0.1:9", **settings})
    error = caught.value
    assert (error.where, bool(error.expected), bool(error.got)) == (named, True, True)
    str(error).encode()
    assert named != "RUNSPAN_API_KEY" or "caf" not in str(error)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RUNSPAN_SERVICE_NAME", NO_TEXT),
        ("OTEL_SERVICE_NAME", NO_TEXT),
        ("OTEL_RESOURCE_ATTRIBUTES", f"site={NO_TEXT}"),
        ("RUNSPAN_TIMEOUT", "nan"),
    ],
)
def test_an_export_tells_them_too(variable: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A usage error, and no stack trace."""
    monkeypatch.setenv(variable, value)
    document = tmp_path / "run.json"
    document.write_text('{"id":"run_1","status":"completed","steps":[]}')
    result = CliRunner().invoke(
        main, ["export", str(document), "--endpoint", "http://127.0.0.1:9", "--retry-max-time", "0"]
    )
    assert result.exit_code == 2, result.stderr
