"""Values as HTML text: escaped, numbers as people read them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Surrogates of file names that are not UTF-8, control characters, and marks that turn the direction of text around.
_UNFIT = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MINUS = "\u2212"
NONE = "\u2013"
"""Stands for a value that there is not."""


def escaped(text: str) -> str:
    """Text that is safe between tags and in quoted attributes; what cannot be shown becomes U+FFFD."""
    return html.escape(_UNFIT.sub("\ufffd", text), quote=True)


def shown(value: Any) -> str:
    """A value of the run's facts, escaped.

    Args:
        value: text, a number, a truth value, None, or lists and mappings of them; anything else by its str().
    """
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", _MINUS)
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", _MINUS)
    if isinstance(value, Mapping):
        return ", ".join(f"{escaped(str(key))}: {shown(one)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return ", ".join(shown(one) for one in value)
    return escaped(str(value))


def percent(value: float | None, decimals: int = 1) -> str:
    """A share from 0 to 1 in percent."""
    return NONE if value is None else f"{100 * value:.{decimals}f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """A table of mappings; the keys of all of them, in their order, are its columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{shown(row[key]) if key in row else ''}</td>" for key in columns) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table class="facts"><caption>{escaped(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    body = "".join(f"<tr><th>{escaped(str(key))}</th><td>{shown(value)}</td></tr>" for key, value in values.items())
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def is_table(value: Any) -> bool:
    """Whether a value is a list of mappings."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Mapping) for one in value)
