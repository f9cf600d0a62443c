"""Regular expressions that find a text in Tempo's attributes as ``codec.full_text`` finds it in a document; no I/O.

An attribute holds a string as it reads, or as JSON, where characters may be written as escapes. Tempo's expressions are
those of RE2 (https://github.com/google/re2/wiki/Syntax), whose flag ``i`` compares by simple case folding. Characters
that full case folding makes longer are named one by one, so that no text is missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from runspan.codec.full_text import fold

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789 !#$%()*,-.:;?@[]^_{|}~")
"""Characters that writers of JSON write as they are."""
_PLAIN_ESCAPED: Final = r"\\u00(?:2[013-589ac-e]|3[0-9abf]|4[0-9a-f]|5[0-9abd-f]|6[1-9a-f]|7[0-9a-e])"
"""An escape of a character of ``_PLAIN``, or of its upper case. A value with one is a candidate whatever it says."""
_LAST_FOLDED: Final = 0x1E921
"""The last character that case folding changes."""
_SHORT_ESCAPES: Final = {'"': '"', "\\": r"\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def text_pattern(text: str) -> str:
    """Return an expression that matches all of every attribute that contains a text, and few others."""
    folded = fold(text)
    alternatives = [f".*{''.join([_character(character) for character in folded])}.*"]
    longer = [character for character, its in _folding()[1].items() if _may_meet(its, folded)]
    if longer:
        alternatives.append(f".*(?:{'|'.join([_written(character) for character in longer])}).*")
    if not _PLAIN.isdisjoint(folded):
        alternatives.append(f".*{_PLAIN_ESCAPED}.*")
    return f"(?is){'|'.join(alternatives)}"


def _character(character: str) -> str:
    """Return the expression for a folded character and those that are folded to it."""
    forms = [character, *_folding()[0].get(character, "")]
    if character not in _PLAIN:
        return f"(?:{'|'.join([_written(form) for form in forms])})"
    others = [_written(form) for form in forms if not form.isascii()]
    return f"(?:{'|'.join([re.escape(character), *others])})" if others else re.escape(character)


def _written(character: str) -> str:
    """Return the expression for a character as it is, and as JSON may escape it."""
    units = character.encode("utf-16-be", "surrogatepass")
    escaped = "".join([rf"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)])
    forms = [re.escape(character), escaped]
    if character in _SHORT_ESCAPES:
        forms.append(rf"\\{_SHORT_ESCAPES[character]}")
    return "|".join(forms)


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
