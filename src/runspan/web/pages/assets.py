"""The static files of the pages: read once, and versioned by a digest, so that browsers can cache them forever."""

from __future__ import annotations

import gzip
import posixpath
import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The content type by file extension. Files with other extensions are not served."""

_IMPORT = re.compile(r"""^(?:import|export)\b[^;"']*?["'](\.[^"']+)["']""", re.MULTILINE)
_MIN_GZIP_BYTES = 512
_FOLDER = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file."""

    body: bytes
    gzip_body: bytes
    """The body compressed with gzip; empty if that is not shorter."""
    content_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """All static files."""

    version: str
    """Digest of all names and bodies.

    It covers all files together, because modules import each other by relative paths: a page loads files of one version
    only, even if another one is deployed meanwhile.
    """
    files: dict[str, Asset]
    """The files by their path below ``static/``."""


@cache
def load_assets() -> Assets:
    """Return the files of this package."""
    found: dict[str, Asset] = {}
    digest = sha256()
    for name, path in sorted((path.relative_to(_FOLDER).as_posix(), path) for path in _FOLDER.rglob("*.*")):
        content_type = CONTENT_TYPES.get(path.suffix)
        if content_type is not None:
            body = path.read_bytes()
            gzip_body = gzip.compress(body, mtime=0) if len(body) >= _MIN_GZIP_BYTES else b""
            found[name] = Asset(body, gzip_body if len(gzip_body) < len(body) else b"", content_type)
            digest.update(f"{name}\n{len(body)}\n".encode() + body)
    return Assets(digest.hexdigest()[:16], found)


@cache
def modules(entry: str) -> list[str]:
    """Return a module and all that it imports, directly or indirectly, so that a page can preload them."""
    assets = load_assets().files
    found: set[str] = set()
    pending = [entry]
    while pending:
        name = pending.pop()
        if name not in found and name in assets:
            found.add(name)
            folder = posixpath.dirname(name)
            paths = _IMPORT.findall(assets[name].body.decode())
            pending += [posixpath.normpath(posixpath.join(folder, path)) for path in paths]
    return sorted(found)
