"""Programs of the operations stack: one that an environment variable names, else one on PATH.

They run beside the tests' own servers and talk to them over loopback, so a container is no place for them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from support.servers.finding import USED, missing

ROOT: Final = Path(__file__).parents[3]
_PATHS: Final = {
    "otelcol": ("otelcol", str(ROOT / "build" / "collector" / "otelcol")),
    "prometheus": ("prometheus",),
    "promtool": ("promtool",),
    "alertmanager": ("alertmanager", "prometheus-alertmanager"),
    "amtool": ("amtool",),
}
_PARTS: Final = {"otelcol": "collector", "promtool": "prometheus", "amtool": "alertmanager"}
"""What ``RUNSPAN_REQUIRE`` may say as well for a program."""
_HINTS: Final = {"otelcol": "build it with .ci/collector"}


def require_program(name: str) -> str:
    """The program's path; without one the test is skipped with the reason, or fails when ``RUNSPAN_REQUIRE`` names it.

    ``RUNSPAN_TEST_OTELCOL`` and its like name the file.
    """
    variable = f"RUNSPAN_TEST_{name.upper()}"
    wanted = os.environ.get(variable)
    candidates = (wanted,) if wanted else _PATHS[name]
    found = next(filter(None, map(shutil.which, candidates)), None)
    if found is None:
        reason = f"{variable} names no program: {wanted}" if wanted else f"no {variable}, no program {name} on PATH"
        named = name if name in os.environ.get("RUNSPAN_REQUIRE", "") else _PARTS.get(name, name)
        missing(named, "; ".join(filter(None, (reason, _HINTS.get(name)))))
    USED.add(f"the program {found}")
    return found
