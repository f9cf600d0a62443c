"""The static files of the pages: read once, packed, and versioned by a digest, so that browsers can cache them forever.

A page loads one script: its entry module with all that it imports. Many small files would take a slow line several
times as long, since each costs a round trip and is compressed without regard to the others. What the entry module
imports later, by ``import("./module.js")``, is another script, with what it needs besides.
"""

from __future__ import annotations

import gzip
import posixpath
import re
from collections.abc import Container
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
_LATER = re.compile(r"""\bimport\("(\.[^"]+)"\)""")
_IMPORT = re.compile(r"""^import \{([^}]*)\} from "(\.[^"]+)";\n""", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
_OTHER_STATEMENT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
_COMMENT = re.compile(r"^ *(?://.*|/\*\*(?s:.*?)\*/)\n", re.MULTILINE)
_INDENTATION = re.compile(r"^ +", re.MULTILINE)
_STYLE_SPACE = re.compile(rb"^ *|/\*.*?\*/\n?", re.MULTILINE | re.DOTALL)
_OPEN_TEMPLATE = re.compile(r"^[^`\n]*`(?:[^`\n]*`[^`\n]*`)*[^`\n]*$", re.MULTILINE)
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
    bodies = {
        name: _STYLE_SPACE.sub(b"", source) if name.endswith(".css") else source for name, source in sources.items()
    }
    for name in filter(_ENTRIES.fullmatch, sources):
        bodies |= _scripts(name, sources)
    digest = sha256()
    for name, body in bodies.items():
        digest.update(f"{name}\n{len(body)}\n".encode() + body)
    files = {name: Asset(body, CONTENT_TYPES[posixpath.splitext(name)[1]]) for name, body in bodies.items()}
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


def _scripts(entry: str, sources: dict[str, bytes]) -> dict[str, bytes]:
    """Return the script of a module and those of the modules that it imports later, by their names."""
    parts = _parts(entry, sources, {})
    scripts: dict[str, str] = {}
    needed: set[str] = set()
    for path in _LATER.findall(parts[entry]):
        name = _resolve(entry, path)
        own = _parts(name, sources, parts)
        text = "".join(own.values())
        shared = sorted(_variable(part) for part in parts if f"= {_variable(part)};" in text)
        needed.update(shared)
        exports = ", ".join(_EXPORT.findall(sources[name].decode()))
        script = posixpath.relpath(entry, posixpath.dirname(name))
        scripts[name] = (
            f'import {{ {", ".join(shared)} }} from "./{script}";\n{text}'
            f"export const {{ {exports} }} = {_variable(name)};\n"
        )
    scripts[entry] = "".join(parts.values())
    if needed:
        scripts[entry] += f"export {{ {', '.join(sorted(needed))} }};\n"
    return {name: text.encode() for name, text in scripts.items()}


def _parts(entry: str, sources: dict[str, bytes], loaded: Container[str]) -> dict[str, str]:
    """Return a module and all that it imports but is not loaded yet, each as a function that returns what it exports.

    Indentation, and comments that have lines of their own, are left out. Raises ValueError for an import or export in
    another form than the modules of the pages use, for a circle of imports, and for a template of several lines, whose
    indentation would count.
    """
    parts: dict[str, str] = {}
    pending: list[str] = []

    def add(name: str) -> str:
        """Append a module behind those that it imports, and return the name of its exports."""
        variable = _variable(name)
        if name in parts or name in loaded:
            return variable
        if name in pending:
            raise ValueError(f"a circle of imports: {' imports '.join([*pending, name])}")
        pending.append(name)

        def imported(match: re.Match[str]) -> str:
            return f"const {{{match[1].replace(' as ', ': ')}}} = {add(_resolve(name, match[2]))};\n"

        text = _INDENTATION.sub("", _COMMENT.sub("", sources[name].decode()))
        if template := _OPEN_TEMPLATE.search(text):
            raise ValueError(f"{name}: {template[0]}: join the lines of a template")
        if name != entry and _LATER.search(text):
            raise ValueError(f"{name}: only {entry} may import later")
        text = _IMPORT.sub(imported, text)
        exports = _EXPORT.findall(text)
        text = _EXPORT.sub("", text)
        if other := _OTHER_STATEMENT.search(text):
            raise ValueError(f"{name}: {other[0]}: use import {{ a }} from, and export of a declaration")
        parts[name] = f"const {variable} = (() => {{\n{text}return {{ {', '.join(exports)} }};\n}})();\n"
        pending.pop()
        return variable

    add(entry)
    return parts


def _resolve(name: str, path: str) -> str:
    """Return the module to which a path in another one leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _variable(name: str) -> str:
    """Return the name of a module's exports in a script."""
    return "$" + re.sub(r"\W", "_", name)
