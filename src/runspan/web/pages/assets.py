"""The pages' static files: read once, named by the digest of them all, so that a browser may keep them for ever."""

from __future__ import annotations

import gzip
import posixpath
import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

KINDS: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""The content type by the ending of a name. Files with other endings are not served."""

_IMPORT = re.compile(r"""^(?:import|export)\b[^;"']*?["'](\.[^"']+)["']""", re.MULTILINE)
_WORTH_PACKING = 512


@dataclass(frozen=True, slots=True)
class Asset:
    """body: the file. packed: its gzip form, or nothing where that is no shorter."""

    body: bytes
    packed: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """All static files by their names below ``static/``.

    version: digest of all names and bodies. One for all, because a module imports its neighbours by relative names:
    what a page loads is of one version, whatever is deployed meanwhile.
    """

    version: str
    files: dict[str, Asset]

    def modules(self, entry: str) -> list[str]:
        """A module and all that it imports, directly and further on, so that a page can ask for them at once."""
        found: list[str] = []
        waiting = [entry]
        while waiting:
            name = waiting.pop()
            if name in found or name not in self.files:
                continue
            found.append(name)
            text = self.files[name].body.decode()
            waiting += [
                posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in _IMPORT.findall(text)
            ]
        return sorted(found)


@cache
def load_assets() -> Assets:
    """The files of this package."""
    found: dict[str, Asset] = {}
    _collect(files(__package__) / "static", "", found)
    digest = sha256()
    for name in sorted(found):
        body = found[name].body
        digest.update(f"{name}\n{len(body)}\n".encode() + body)
    return Assets(digest.hexdigest()[:16], found)


def _collect(folder: Traversable, prefix: str, found: dict[str, Asset]) -> None:
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            _collect(entry, f"{name}/", found)
            continue
        kind = KINDS.get(name.rpartition(".")[2])
        if kind is not None:
            body = entry.read_bytes()
            packed = gzip.compress(body, mtime=0) if len(body) >= _WORTH_PACKING else b""
            found[name] = Asset(body, packed if len(packed) < len(body) else b"", kind)
