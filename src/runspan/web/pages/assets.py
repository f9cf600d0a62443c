"""The static files of the pages: read once, packed, and versioned by a digest, so that browsers can cache them forever.

A page loads one script: its entry module with all that it imports. Many small files would take a slow line several
times as long, since each costs a round trip and is compressed without regard to the others.
"""

from __future__ import annotations

import gzip
import posixpath
import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import zstandard

CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The content type by file extension. Files with other extensions are not served."""

_ENTRIES = re.compile(r"(?:.+/)?(?:main|worker|shell)\.js")
"""The modules that pages and workers start with."""
_IMPORT = re.compile(r"""^import \{([^}]*)\} from "(\.[^"]+)";\n""", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
_OTHER_STATEMENT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
_COMMENT = re.compile(r"^ *(?://.*|/\*\*(?s:.*?)\*/)\n", re.MULTILINE)
_MIN_PACKED_BYTES = 512
_ZSTD_LEVEL = 19
_FOLDER = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """All static files."""

    version: str
    """Digest of all names and bodies: a page loads files of one version only, even if another is deployed meanwhile."""
    files: dict[str, Asset]
    """The files by their path below ``static/``. The modules that pages start with include what they import."""


@cache
def load_assets() -> Assets:
    """Return the files of this package."""
    sources = {
        path.relative_to(_FOLDER).as_posix(): path.read_bytes()
        for path in sorted(_FOLDER.rglob("*.*"))
        if path.suffix in CONTENT_TYPES
    }
    files: dict[str, Asset] = {}
    digest = sha256()
    for name, source in sources.items():
        body = _bundle(name, sources) if _ENTRIES.fullmatch(name) else source
        files[name] = Asset(body, CONTENT_TYPES[posixpath.splitext(name)[1]])
        digest.update(f"{name}\n{len(body)}\n".encode() + body)
    return Assets(digest.hexdigest()[:16], files)


@cache
def packed(name: str, coding: str) -> bytes:
    """Return a file in a content coding, ``gzip`` or ``zstd``; empty if that is not shorter."""
    body = load_assets().files[name].body
    if len(body) < _MIN_PACKED_BYTES:
        return b""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    encoded = compressor.compress(body) if coding == "zstd" else gzip.compress(body, mtime=0)
    return encoded if len(encoded) < len(body) else b""


def _bundle(entry: str, sources: dict[str, bytes]) -> bytes:
    """Return a module as one script with all that it imports, each in a function that returns what it exports.

    Comments that have lines of their own are left out. Raises ValueError for an import or export in another form than
    the modules of the pages use, and for a circle of imports.
    """
    parts: dict[str, str] = {}
    pending: list[str] = []

    def add(name: str) -> str:
        """Append a module behind those that it imports, and return the name of its exports."""
        variable = "$" + re.sub(r"\W", "_", name)
        if name in parts:
            return variable
        if name in pending:
            raise ValueError(f"a circle of imports: {' imports '.join([*pending, name])}")
        pending.append(name)

        def imported(match: re.Match[str]) -> str:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2]))
            return f"const {{{match[1].replace(' as ', ': ')}}} = {add(path)};\n"

        text = _IMPORT.sub(imported, _COMMENT.sub("", sources[name].decode()))
        exports = _EXPORT.findall(text)
        text = _EXPORT.sub("", text)
        if other := _OTHER_STATEMENT.search(text):
            raise ValueError(f"{name}: {other[0]}: use import {{ a }} from, and export of a declaration")
        parts[name] = f"const {variable} = (() => {{\n{text}return {{ {', '.join(exports)} }};\n}})();\n"
        pending.pop()
        return variable

    add(entry)
    return "".join(parts.values()).encode()
