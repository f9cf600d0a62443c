"""Which series an expression of PromQL names."""

from __future__ import annotations

import re

_TEXT = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`'
_WORDS = {
    "sum",
    "min",
    "max",
    "avg",
    "count",
    "topk",
    "bottomk",
    "quantile",
    "and",
    "or",
    "unless",
    "offset",
    "bool",
    "inf",
    "nan",
    "start",
    "end",
    "atan2",
}
_TOKENS = re.compile(
    rf"(?P<text>{_TEXT})"
    rf"|(?P<labels>\b(?:by|without|on|ignoring|group_left|group_right)\b\s*(?:\([^)]*\))?)"
    r"|(?P<window>\[[^\]]*\])"
    r"|(?P<length>\b\d[\w.]*)"
    rf"|(?P<name>[a-zA-Z_:][\w:]*)(?P<matchers>\{{(?:[^{{}}\"'`]|{_TEXT})*\}})?(?P<call>\s*\()?"
)


def selectors(expression: str) -> set[str]:
    """Every ``name{matchers}`` in the expression, without windows and offsets."""
    found = set()
    for token in _TOKENS.finditer(expression):
        if token["name"] and not token["call"] and token["name"] not in _WORDS:
            found.add(token["name"] + (token["matchers"] or ""))
    return found


def names(expression: str) -> set[str]:
    """The names of the metrics in the expression."""
    return {selector.partition("{")[0] for selector in selectors(expression)}
