"""Frozen dataclasses to and from JSON, with one-line errors that name the place of the fault."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from g4seg_engine.errors import EngineError, EngineMismatchError

T = TypeVar("T")

OPTIONAL: Mapping[str, bool] = {"optional": True}
"""Metadata of a field that is in the JSON only where it is not its default: older files do without."""


def to_json(value: Any) -> Any:
    """A record as dicts, lists and scalars. Tuples become lists, fields keep their names.

    Optional fields that hold their default are left out.
    """
    if dataclasses.is_dataclass(value):
        values = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: to_json(item) for field, item in values if not _left_out(field, item)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: object, where: str) -> T:
    """The record of type `kind` that `value` holds.

    Args:
        kind: a dataclass whose fields are str, int, float, bool, other dataclasses, unions of these,
            ``tuple[X, ...]``, ``Mapping[str, X]``, or Any for plain JSON.
        value: what ``json.loads`` returned.
        where: the place of `value` in the file, for messages.

    Raises:
        EngineMismatchError: a key is missing or unknown, or a value has the wrong type or range.
    """
    try:
        decoded: T = _decode(kind, value, where)
    except RecursionError as error:
        raise EngineMismatchError(f"{where}: too deeply nested") from error
    return decoded


def dump(value: Any) -> str:
    """JSON text with sorted keys that is the same on every platform (ASCII, newline at the end).

    Raises:
        EngineError: `value` holds something that JSON has no place for, such as NaN or an array.
    """
    try:
        return json.dumps(to_json(value), indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise EngineError(f"the manifest cannot be written as JSON: {error}") from error


def parse(text: str | bytes) -> Any:
    """Strict JSON: NaN and Infinity are refused.

    Raises:
        ValueError: the text is not JSON.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def _decode(kind: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_record(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise _unexpected(where, value, "a list")
        return tuple(_decode(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _unexpected(where, value, "an object")
        item_kind = typing.get_args(kind)[1]
        return {_text(key, where): _decode(item_kind, item, f"{where}.{key}") for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        return _decode_union(typing.get_args(kind), value, where)
    if kind is Any:
        return _plain(value, where)
    return _scalar(kind, value, where)


def _decode_record(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(where, value, "an object")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    may_lack = {field.name for field in dataclasses.fields(kind) if "optional" in field.metadata}
    missing = [name for name in names if name not in value and name not in may_lack]
    unknown = [name for name in value if name not in hints]
    if missing or unknown:
        faults = [f"{name} is missing" for name in missing] + [f"{name!r} is unknown" for name in unknown]
        raise EngineMismatchError(f"{where}: {', '.join(faults)}")
    arguments = {name: _decode(hints[name], value[name], f"{where}.{name}") for name in names if name in value}
    try:
        return kind(**arguments)
    except EngineError as error:
        raise EngineMismatchError(f"{where}: {error}") from error


def _left_out(field: dataclasses.Field[Any], value: object) -> bool:
    return "optional" in field.metadata and value == field.default


def _decode_union(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    for kind in kinds:
        if type(value) is kind:
            return _scalar(kind, value, where)
    raise _unexpected(where, value, " or ".join(kind.__name__ for kind in kinds))


def _scalar(kind: Any, value: object, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _unexpected(where, value, f"a value of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _unexpected(where, value, "a finite number")
    return _text(value, where) if isinstance(value, str) else value


def _plain(value: object, where: str) -> Any:
    if isinstance(value, dict):
        return {_text(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value if value is None else _scalar(type(value), value, where)


def _text(value: str, where: str) -> str:
    # Texts end up in one-line messages on a terminal: a manifest may come from anywhere.
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise _unexpected(where, value, "text without control characters")
    return value


def _unexpected(where: str, value: object, expected: str) -> EngineMismatchError:
    shown = repr(value)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    return EngineMismatchError(f"{where} is {shown}, expected {expected}")
