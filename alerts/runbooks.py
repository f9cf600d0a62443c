"""Makes the server's page of ``docs/runbooks.md``: the target of ``runbook_url``, which must be a URL."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).parent.parent
RUNBOOKS: Final = ROOT / "docs" / "runbooks.md"
PAGE: Final = ROOT / "src" / "runspan" / "web" / "pages" / "templates" / "runbooks-content.html"
_HEAD: Final = "{# Written by `python -m alerts` from docs/runbooks.md: change texts there. #}\n"
_SERVER: Final = "http://127.0.0.1:8321"
_HERE: Final = "RUNSPANROOT"


def page(text: str) -> str:
    """The HTML of the runbooks, a template. Each heading has the id of its alert, and links to runs lead to the server.

    Links to files of the repository, which the server does not have, become their text. Those to other servers, whose
    addresses it does not know, become their text and the address in the stack.
    """
    text = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text).replace(f"]({_SERVER}", f"]({_HERE}")
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]*)\)", r"\1: `\2`", text)
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token, content in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", content.content.lower().replace(" ", "-"))
    html = parser.renderer.render(tokens, parser.options, {})
    # Queries contain braces, which a template would read.
    escaped = html.replace("{", "&#123;").replace("}", "&#125;").replace(_HERE, "{{ root }}")
    return _HEAD + escaped
