"""Screenshots for the documentation: written when ``RUNSPAN_SCREENSHOTS`` is set, and only looked at otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from playwright.sync_api import Page

FOLDER: Final = Path(__file__).parents[3] / "docs" / "screenshots"
_PNG: Final = b"\x89PNG\r\n\x1a\n"


def shot(page: Page, name: str) -> None:
    """Takes ``docs/screenshots/NAME.png`` of what is on the screen; without the variable the file must be there."""
    file = FOLDER / f"{name}.png"
    picture = page.screenshot(animations="disabled", caret="hide")
    assert picture.startswith(_PNG)
    if os.environ.get("RUNSPAN_SCREENSHOTS"):
        FOLDER.mkdir(exist_ok=True)
        file.write_bytes(picture)
    assert file.exists(), f"RUNSPAN_SCREENSHOTS=1 makes {file.name}"
