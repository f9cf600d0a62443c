"""``deploy/tempo-distributed.yaml``: every target takes it, and it keeps runs whole as ``deploy/tempo.yaml`` does."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.servers import require
from support.servers.programs import ROOT
from support.servers.tempo import IMAGE

FILE: Final = ROOT / "deploy" / "tempo-distributed.yaml"
TARGETS: Final = (
    "distributor",
    "block-builder",
    "live-store",
    "query-frontend",
    "querier",
    "backend-scheduler",
    "backend-worker",
)
DIFFERENT: Final = {
    # Where a process listens is a matter of its environment.
    "distributor.receivers.otlp.protocols.grpc.endpoint",
    "distributor.receivers.otlp.protocols.http.endpoint",
    "storage.trace.backend",
    # Live stores that read from Kafka refuse searches that end in the future.
    "query_frontend.query_end_cutoff",
    # A poll of a bucket costs requests, one of a folder does not.
    "storage.trace.blocklist_poll",
}
SINGLE_ONLY: Final = {
    # What is older than query_backend_after is searched in the blocks of the block builder.
    "live_store.max_block_duration",
    # A process of its own has the time to finish its work.
    "backend_worker.finish_on_shutdown_timeout",
    "storage.trace.local.path",
}


def settings(file: Path) -> dict[str, Any]:
    """The settings of a file by their dotted names."""

    def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            yield name, value
            return
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else key)

    return dict(flat(yaml.safe_load(file.read_text()), ""))


def test_what_both_configurations_set_is_the_same() -> None:
    """The dedicated columns among them; what differs is named here with its reason."""
    single, targets = settings(ROOT / "deploy" / "tempo.yaml"), settings(FILE)
    assert "storage.trace.block.parquet_dedicated_columns" in single
    assert {name for name in single if single[name] != targets.get(name, single[name])} == DIFFERENT
    assert set(single) - set(targets) == SINGLE_ONLY


def test_no_secret_is_in_the_file() -> None:
    """Tempo takes the keys of the store from the environment, a file or the role of the machine by itself."""
    assert not [name for name in settings(FILE) if re.search("key|secret|token|password", name)]


def verify(file: Path, target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = require("tempo", IMAGE).program
    if program is None:
        pytest.skip("needs the program tempo, which checks a configuration without starting")
    command = [program, "-config.verify=true", "-config.expand-env=true", f"-config.file={file}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPO_")}
    return subprocess.run(
        [*command, f"-target={target}"], capture_output=True, text=True, check=False, env=kept | environment
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_takes_the_file(target: str) -> None:
    """Without a warning, which would be an exit code of 1."""
    done = verify(FILE, target)
    assert done.returncode == 0, done.stderr


def test_a_setting_that_tempo_does_not_know_is_refused(tmp_path: Path) -> None:
    """So the test above can fail. A value from the environment is checked as well."""
    (tmp_path / "tempo.yaml").write_text(FILE.read_text().replace("block_retention:", "retention_of_blocks:"))
    assert "retention_of_blocks" in verify(tmp_path / "tempo.yaml", "backend-worker").stderr
    done = verify(FILE, "querier", TEMPO_S3_INSECURE="perhaps")
    assert done.returncode != 0
    assert "perhaps" in done.stderr
