"""``runspan keys``, and what a key may do at a running server: another process notices each change at once."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import httpx
import pytest

from support.cli import generated, runspan, server, write_ndjson
from support.states import State


def made(where: Path | State, name: str, *args: object) -> tuple[str, str]:
    """The secret and the id of a new key."""
    options = where.args if isinstance(where, State) else ["--data", where]
    key = json.loads(runspan("keys", "create", *options, "--name", name, "--json", *args).stdout)
    return key["key"], key["id"]


def status(url: str, key: str = "") -> int:
    return httpx.get(f"{url}/api/v1/runs", headers={"x-api-key": key} if key else {}, trust_env=False).status_code


def test_a_key_from_its_making_to_its_end(state: State, tmp_path: Path) -> None:
    """The first key closes an open server; a rotated key is valid beside its successor; a revoked one is not."""
    with server(tmp_path, *state.args) as (url, _):
        assert status(url) == 200
        old, old_id = made(state, "exporter")
        assert (status(url), status(url, "wfk_wrong"), status(url, old)) == (401, 401, 200)
        rotated = runspan("keys", "rotate", *state.args, old_id, "--grace", "1h")
        new = rotated.stdout.strip()
        assert new != old
        assert (status(url, old), status(url, new)) == (200, 200)
        assert "is revoked" in runspan("keys", "revoke", *state.args, old_id).stderr
        assert (status(url, old), status(url, new)) == (401, 200)
        gone = runspan("keys", "rotate", *state.args, old_id, code=2)
        assert "expected an active key, got revoked" in gone.stderr


def test_revoking_the_last_key_opens_nothing(state: State, tmp_path: Path) -> None:
    """A server that ever had a key stays closed."""
    with server(tmp_path, *state.args) as (url, _):
        secret, key_id = made(state, "only")
        assert status(url, secret) == 200
        runspan("keys", "revoke", *state.args, key_id)
        assert (status(url), status(url, secret)) == (401, 401)


def test_a_rotation_without_grace_ends_the_old_key(state: State, tmp_path: Path) -> None:
    """--grace 0m is for a key that leaked."""
    with server(tmp_path, *state.args) as (url, _):
        old, old_id = made(state, "leaked")
        new = runspan("keys", "rotate", *state.args, old_id, "--grace", "0m", "--json")
        assert (status(url, old), status(url, json.loads(new.stdout)["key"])) == (401, 200)
    lines = runspan("keys", "list", *state.args, "--json").stdout.splitlines()
    assert sorted(json.loads(line)["state"] for line in lines) == ["active", "expired"]


def test_permissions_are_those_given(tmp_path: Path) -> None:
    """A reading key cannot write, a writing key cannot read, and the command says which permission is missing."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(10))
    data = tmp_path / "data"
    with server(data) as (url, _):
        reading, _ = made(data, "reader", "--permission", "runs:read")
        writing, _ = made(data, "writer", "--permission", "runs:write")
        refused = runspan("export", path, "--endpoint", url, code=1, RUNSPAN_API_KEY=reading)
        assert "HTTP 403" in refused.stderr
        assert "hint: use an API key with the permission runs:write" in refused.stderr
        assert "HTTP 401" in runspan("export", path, "--endpoint", url, code=1).stderr
        runspan("export", path, "--endpoint", url, RUNSPAN_API_KEY=writing)
        assert len(runspan("list", "--backend", url, "--json", RUNSPAN_API_KEY=reading).stdout.splitlines()) == 10
        forbidden = runspan("list", "--backend", url, code=7, RUNSPAN_API_KEY=writing)
        assert "expected the permission runs:read" in forbidden.stderr
        unauthorized = runspan("get", "run_1", "--backend", url, code=7)
        assert "hint: set RUNSPAN_API_KEY" in unauthorized.stderr
        post = {"content": b'{"id":"run_x"}', "headers": {"x-api-key": reading, "content-type": "application/json"}}
        assert httpx.post(f"{url}/api/v1/runs", **post, trust_env=False).status_code == 403  # type: ignore[arg-type]


def test_tenants_see_their_own_runs_only(tmp_path: Path) -> None:
    """Equal run ids of two tenants are two runs; no tenant lists, gets or writes those of another."""
    texts = {name: generated(30, seed=seed) for name, seed in (("acme", 1), ("beta", 2))}
    files = {name: write_ndjson(tmp_path / f"{name}.ndjson", found) for name, found in texts.items()}
    data = tmp_path / "data"
    with server(data) as (url, _):
        keys = {name: made(data, name, "--tenant", name)[0] for name in texts}
        for name, path in files.items():
            runspan("export", path, "--endpoint", url, "--tenant", name, RUNSPAN_API_KEY=keys[name])
        for name, found in texts.items():
            own = {"RUNSPAN_API_KEY": keys[name]}
            listed = runspan("list", "--backend", url, "--json", **own).stdout.splitlines()
            assert {json.loads(line)["id"] for line in listed} == found.keys()
            for run_id in list(found)[:5]:
                assert runspan("get", run_id, "--backend", url, **own).stdout_bytes == found[run_id]
        hers = next(run_id for run_id in texts["beta"] if run_id not in texts["acme"])
        acme = {"RUNSPAN_API_KEY": keys["acme"]}
        runspan("get", hers, "--backend", url, code=5, **acme)
        runspan("list", "--backend", url, "--tenant", "beta", code=7, **acme)
        foreign = runspan("export", files["beta"], "--endpoint", url, "--tenant", "beta", code=1, **acme)
        assert "0 runs accepted" in foreign.stderr
        assert "30 runs rejected" in foreign.stderr
    assert len(runspan("list", "--data", data, "--tenant", "beta", "--json").stdout.splitlines()) == 30
    assert runspan("list", "--data", data, "--json").stdout == ""


def test_a_key_comes_from_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    """The file may end in a line break; no message repeats the key."""
    data, path = tmp_path / "data", write_ndjson(tmp_path / "runs.ndjson", generated(5))
    secret, _ = made(data, "exporter")
    file = tmp_path / "exporter.key"
    file.write_text(secret + "\n")
    wrong = tmp_path / "wrong.key"
    wrong.write_text("wfk_" + "w" * 32)
    empty = tmp_path / "empty.key"
    empty.touch()
    with server(data, "--access-log") as (url, child):
        results = [
            runspan("export", path, "--endpoint", url, "--api-key-file", file, RUNSPAN_API_KEY="wfk_other"),
            runspan("list", "--backend", url, "--json", RUNSPAN_API_KEY_FILE=str(file)),
            runspan("list", "--backend", url, "--api-key-file", wrong, code=7),
            runspan("list", "--backend", url, "--api-key-file", empty, code=2),
            runspan("list", "--backend", url, "--api-key-file", tmp_path, code=2),
        ]
        assert len(results[1].stdout.splitlines()) == 5
        assert child.end() == 0
    output = "".join(result.output for result in results) + "".join(child.lines)
    assert "wfk_" not in output
    assert "POST '/v1/traces' 200" in output


def test_creating_prints_the_secret_alone_on_standard_output(tmp_path: Path) -> None:
    """So that it can be put into a file; what people need to know goes to standard error."""
    result = runspan("keys", "create", "--data", tmp_path / "new", "--name", "a b", "--expires", "90d")
    assert re.fullmatch(r"wfk_[A-Za-z0-9]{32}\n", result.stdout)
    assert "(a b): keep it now" in result.stderr
    assert result.stdout.strip() not in result.stderr
    (line,) = runspan("keys", "list", "--data", tmp_path / "new", "--json").stdout.splitlines()
    key = json.loads(line)
    assert (key["name"], key["state"], key["permissions"]) == ("a b", "active", ["runs:read", "runs:write"])
    assert key["expires"] > key["created"]
    assert "sha256" not in line


def test_the_list_is_for_people_too(tmp_path: Path) -> None:
    """One line a key; names that would steer a terminal are spelled out."""
    for name in ("one", "two\x1b[31m"):
        runspan("keys", "create", "--data", tmp_path, "--name", name, "--tenant", "acme")
    lines = runspan("keys", "list", "--data", tmp_path).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["active", "active"]
    assert lines[1].endswith("acme  two\\x1b[31m")


@pytest.mark.parametrize("args", [("list",), ("revoke", "abc"), ("rotate", "abc")])
def test_a_directory_without_keys_is_reported_and_not_created(args: tuple[str, ...], tmp_path: Path) -> None:
    """Only ``create`` makes a directory."""
    result = runspan("keys", args[0], "--data", tmp_path / "nowhere", *args[1:], code=2)
    assert "no API keys are kept here" in result.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("create",), 2, "Missing option '--name'"),
        (("create", "--name", "x", "--permission", "all"), 2, "Invalid value for '--permission'"),
        (("create", "--name", "x", "--expires", "soon"), 2, "expected a duration"),
        (("revoke", "abc"), 5, "key abc: no such key"),
        (("rotate", "abc"), 5, "hint: `runspan keys list` shows the ids"),
    ],
)
def test_wrong_use_has_its_exit_code(args: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    """Nothing is created or changed."""
    runspan("keys", "create", "--data", tmp_path, "--name", "first")
    assert message in runspan("keys", args[0], "--data", tmp_path, *args[1:], code=code).stderr
    assert len(runspan("keys", "list", "--data", tmp_path).stdout.splitlines()) == 1


def test_the_key_file_is_private_and_other_modes_cause_a_warning(tmp_path: Path) -> None:
    """The file is made private; one that others can open is warned about, with the command that closes it."""
    runspan("keys", "create", "--data", tmp_path, "--name", "x")
    file = tmp_path / "keys.sqlite3"
    assert file.stat().st_mode & 0o777 == 0o600
    assert runspan("keys", "list", "--data", tmp_path).stderr == ""
    os.chmod(file, 0o664)
    assert f"chmod 600 {file}" in runspan("keys", "list", "--data", tmp_path).stderr
