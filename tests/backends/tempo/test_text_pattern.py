"""The expression for a text matches every attribute of a document that contains it."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest

from runspan import Run
from runspan.backends.tempo.text_pattern import _LAST_FOLDED, text_pattern
from runspan.codec.full_text import find_text

CHARACTERS = 'abcfilstyK57 _-./\\"&<>\n\tßẞİ\u0131ŉǰẖẗẚﬀﬁﬂﬃﬄﬅ\u017fKÅåÉé\u03a3\u03c3\u03c2ΐ日\U0001f600\U00010400'


def random_escapes(chance: random.Random, text: str) -> str:
    """Return the JSON of a string in which any characters are escapes."""
    written = []
    for character in text:
        units = character.encode("utf-16-be")
        escaped = "".join([f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)])
        plain = json.dumps(character, ensure_ascii=False)[1:-1]
        written.append(chance.choice([plain, plain, escaped, escaped.upper().replace("U", "u")]))
    return f'"{"".join(written)}"'


def test_every_value_that_contains_a_text_is_matched() -> None:
    """Whatever its characters are folded to, and however they are written."""
    chance = random.Random(4711)
    found = 0
    for _ in range(4000):
        value = "".join(chance.choices(CHARACTERS, k=chance.randrange(1, 9)))
        start = chance.randrange(len(value))
        part = value[start : chance.randrange(start, len(value)) + 1]
        folded = part.casefold()
        text = chance.choice([part, part.upper(), folded, folded[1:] or folded, folded[:-1] or folded])
        written = random_escapes(chance, value)
        if find_text(Run.from_json(f'{{"id":"-","input":{written}}}'), text) is None:
            continue
        found += 1
        pattern = text_pattern(text)
        assert re.fullmatch(pattern, written), (written, text)
        assert re.fullmatch(pattern, value), (value, text)
    assert found > 2000


@pytest.mark.parametrize(
    ("text", "value"),
    [("cus_4711", '{"id":"cus_471"}'), ("cus_4711", '"Stra\\u00dfe"'), ("a.c", "abc"), ("4" * 200, "4" * 15)],
)
def test_few_others_are_matched(text: str, value: str) -> None:
    """No character of a text has a meaning, and an escape that is not in it makes no match."""
    assert not re.fullmatch(text_pattern(text), value)


def test_all_characters_that_folding_changes_are_known() -> None:
    """A later version of Unicode may have more."""
    assert all(chr(code).casefold() == chr(code) for code in range(_LAST_FOLDED + 1, sys.maxunicode + 1))
