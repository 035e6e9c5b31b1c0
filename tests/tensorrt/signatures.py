"""Signatures of TensorRT's bindings: pybind11 writes them into docstrings. Of plain Python functions: inspect."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_OPEN, _CLOSE = "([{<", ")]}>"


@dataclass(frozen=True)
class Signature:
    """One way to call something.

    Attributes:
        names: of the parameters, without self.
        required: how many of them have no default.
        returns: the last part of the result's type, such as "ICudaEngine"; "" if unknown.
        open_names: whether any keyword is accepted.
    """

    names: tuple[str, ...]
    required: int
    returns: str
    open_names: bool = False

    def accepts(self, positional: int, keywords: Sequence[str]) -> bool:
        """Whether a call with so many positional arguments and these keywords fits."""
        if positional > len(self.names) or len(set(keywords)) < len(keywords):
            return False
        rest = self.names[positional:]
        if not self.open_names and not set(keywords) <= set(rest):
            return False
        return set(self.names[positional : self.required]) <= set(keywords)


def signatures(function: Callable[..., Any]) -> tuple[Signature, ...]:
    """Every way to call a function; a method's `self` is left out.

    Raises:
        ValueError: its docstring holds no signature.
    """
    if inspect.isfunction(function) or inspect.ismethod(function):
        return (_of_python(function),)
    text = function.__doc__ or ""
    name = re.escape(function.__name__)
    overloads = re.findall(rf"^\d+\. ({name}\(.*)$", text, re.MULTILINE) or re.findall(
        rf"^({name}\(.*)$", text, re.MULTILINE
    )
    if not overloads:
        raise ValueError(f"{function.__name__} has no signature in its docstring")
    return tuple(_of_line(line) for line in overloads)


def property_type(value: property) -> str:
    """The last part of a property's type, such as "IErrorRecorder"; "" if unknown."""
    found = re.search(r"->\s*(.+)$", (value.fget.__doc__ if value.fget else None) or "", re.MULTILINE)
    return _last_part(found.group(1)) if found else ""


def _of_python(function: Callable[..., Any]) -> Signature:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = sum(p.default is p.empty for p in plain)
    return Signature(tuple(p.name for p in plain), required, "", any(p.kind is p.VAR_KEYWORD for p in parameters))


def _of_line(line: str) -> Signature:
    start = line.index("(")
    depth, end = 0, start
    for end in range(start, len(line)):
        # The ">" of an arrow closes nothing.
        if line[end] in _CLOSE and line[end - 1 : end + 1] != "->":
            depth -= 1
        depth += line[end] in _OPEN
        if depth == 0:
            break
    parameters = [part for part in _split(line[start + 1 : end]) if part and not part.startswith("self:")]
    required = sum("=" not in part for part in parameters)
    returns = line[end + 1 :].partition("->")[2]
    return Signature(tuple(re.split(r"[:=]", part)[0].strip() for part in parameters), required, _last_part(returns))


def _split(text: str) -> list[str]:
    parts, depth, last = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth == 0:
            parts.append(text[last:index].strip())
            last = index + 1
    return [*parts, text[last:].strip()]


def _last_part(text: str) -> str:
    return re.split(r"[.:]", text.strip().removesuffix("| None").strip())[-1]
