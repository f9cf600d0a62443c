"""Regular expressions that find a text in Tempo's attributes as ``codec.full_text`` finds it in a document; no I/O.

An attribute holds a string as it reads, or as JSON, where characters may be written as escapes. Tempo compares an
expression with all strings of a block, whatever their attribute. One that consists of literals, with anything before
and behind, costs a tenth of any other, so the expression names all ways of writing a part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Final

from runspan.codec.full_text import fold

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789 !#$%()*,-.:;?@[]^_{|}~")
"""Characters that writers of JSON write as they are."""
_MAX_WRITTEN: Final = 32
"""Ways of writing the part of a text: with all the escapes, Tempo is fast with 256 literals."""
_MAX_PART: Final = 16
"""Characters of the part."""
_LAST_FOLDED: Final = 0x1E921
"""The last character that case folding changes."""
_SHORT_ESCAPES: Final = {
    '"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"
}  # fmt: skip


def text_pattern(text: str) -> str:
    """Return an expression that matches all of every attribute that contains a text, and others."""
    part = _part(fold(text))
    literals = dict.fromkeys("".join(written) for written in product(*[_forms(character) for character in part]))
    for character, folded in _folding()[1].items():
        if _may_meet(folded, part):
            literals |= dict.fromkeys(_written(character))
    for character in _PLAIN.intersection(part):
        for form in (character, *_folding()[0].get(character, "")):
            literals |= dict.fromkeys(_escapes(form))
    return f"(?s).*(?:{'|'.join([re.escape(literal) for literal in sorted(literals)])}).*"


def _part(folded: str) -> str:
    """Return the longest part of a folded text that there are few ways of writing."""
    counts = [len(_forms(character)) for character in folded]
    parts = [
        folded[start:end]
        for start in range(len(folded))
        for end in range(start + 1, min(start + _MAX_PART, len(folded)) + 1)
        if prod(counts[start:end]) <= _MAX_WRITTEN
    ]
    return max(parts, key=len, default=folded[:1])


def _forms(character: str) -> list[str]:
    """Return the ways of writing a folded character, and those that are folded to it, without needless escapes."""
    forms = [character, *_folding()[0].get(character, "")]
    if character not in _PLAIN:
        return [written for form in forms for written in _written(form)]
    return [written for form in forms for written in ([form] if form.isascii() else _written(form))]


def _written(character: str) -> list[str]:
    """Return a character as it is and as JSON may escape it."""
    short = [_SHORT_ESCAPES[character]] if character in _SHORT_ESCAPES else []
    return [character, *short, *_escapes(character)]


def _escapes(character: str) -> Iterable[str]:
    """Return the escapes of a character in hex, whose digits may have either case."""
    units = character.encode("utf-16-be", "surrogatepass")
    escape = "".join([f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)])
    if len(units) > 2:
        return [escape, escape.upper().replace("U", "u")]
    return ["\\u" + "".join(digits) for digits in product(*[{digit, digit.upper()} for digit in escape[2:]])]


def _may_meet(folded: str, text: str) -> bool:
    """Return whether a text can begin, end or lie in what a character is folded to."""
    return text in folded or folded in text or any(_overlaps(folded, text))


def _overlaps(folded: str, text: str) -> Iterator[bool]:
    for length in range(1, len(folded)):
        yield text.endswith(folded[:length])
        yield text.startswith(folded[-length:])


@lru_cache(maxsize=1)
def _folding() -> tuple[dict[str, str], dict[str, str]]:
    """Return the other characters that are folded to one, by that one; and what becomes longer, by the character."""
    same: dict[str, str] = {}
    longer: dict[str, str] = {}
    for character in map(chr, range(_LAST_FOLDED + 1)):
        folded = character.casefold()
        if len(folded) > 1:
            longer[character] = folded
        elif folded != character:
            same[folded] = same.get(folded, "") + character
    return same, longer
