"""Class ids and names of a data set: which id is which class, and what a prompt calls it.

Prompts differ from the data set's names where those run words together (tvmonitor), are spelled as nobody writes in
captions (aeroplane, conveyer belt), or, in ADE20K, where another word of the data set's own list is the usual one
(ashcan, trash can). A data set's list of synonyms is never a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from g4seg_trt.errors import ClassNameError, InputError

_FILES = {
    "voc12": "voc12",
    "context60": "context",
    "context59": "context",
    "coco-object": "coco_object",
    "ade20k": "ade20k",
}

DATASETS: tuple[str, ...] = tuple(_FILES)
"""Data sets whose tables come with the package."""

_IGNORED = 255
_LARGEST = 65534
"""65535 stands for pixels that are ignored, and so does 255 where no class has this id."""
_KEYS = ("background", "classes", "source")
_UNIQUE_KEYS = ("id", "name", "prompt", "category")
_ENTRY_KEYS = (*_UNIQUE_KEYS, "aliases")


@dataclass(frozen=True)
class ClassEntry:
    """One class.

    Attributes:
        id: its value in ground truth pictures, 1 or more.
        name: what the data set calls it.
        prompt: what a prompt calls it.
        category: its id in COCO's JSON files, None elsewhere.
        aliases: what other programs call it for the same data set.
    """

    id: int
    name: str
    prompt: str
    category: int | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set.

    Attributes:
        dataset: its name, or the file that it was read from.
        classes: in the order of their ids; ids, names, prompts and categories are each there once.
        background: whether 0 in ground truth pictures is a class, background (else it is ignored, as 255 is).
    """

    dataset: str
    classes: tuple[ClassEntry, ...]
    background: bool

    @classmethod
    def of_dataset(cls, dataset: str) -> ClassTable:
        """The table of one of DATASETS; raises ClassNameError for another name."""
        if dataset not in _FILES:
            raise ClassNameError(
                f"no class table for the data set {dataset!r}: there are {', '.join(DATASETS)}; "
                "another one is given with --class-table FILE"
            )
        table = _shipped(_FILES[dataset])
        # The 59 classes have the ids of the 60; what differs is whether 0 counts.
        return replace(table, dataset=dataset, background=table.background and dataset != "context59")

    @classmethod
    def read(cls, path: Path) -> ClassTable:
        """Read a table from a file.

        JSON: a list of {"id", "name", "prompt", "category", "aliases"}, the last three optional, or
        {"background": bool, "classes": such a list}; without "background" 0 is background.
        Anything else is plain text, one class a line, ids 1, 2, .. in their order: `name`, `name: prompt` or name and
        prompt with a tab between. Empty lines and lines that start with # do not count. 0 is background: a first
        line `background` only says so and takes no id.
        Without a prompt the name is the prompt, underscores as spaces. Ids go from 1 to 65534; 255 is one of them only
        beside larger ones, whose pictures have 16 bits (g4seg_trt.masks.labels).

        Args:
            path: the file, UTF-8.

        Raises:
            InputError: if the file cannot be read or is neither.
            ClassNameError: for a class that is not usable; names the file and the line or entry.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            what = "it is not UTF-8 text" if isinstance(error, UnicodeError) else error
            raise InputError(f"{path}: the class table cannot be read: {what}") from error
        background, classes = _of_json(text, path) if text.lstrip()[:1] in ("[", "{") else _of_text(text, path)
        if not classes:
            raise ClassNameError(f"{path}: the class table has no class")
        return cls(str(path), _checked(classes), background)

    def entry(self, number: int, what: str) -> ClassEntry:
        """The class of an id; raises ClassNameError that names `what` (a file) and the ids allowed."""
        found = self._of_id.get(number)
        if found is None:
            raise ClassNameError(
                f"{what}: class id {number} is not in the class table {self.dataset}, whose ids are "
                f"{_ranges(list(self._of_id))}"
            )
        return found

    def named(self, name: str, what: str) -> ClassEntry:
        """The class of a name, the data set's or else the prompt's or an alias.

        A name that is none of them is looked for without regard to case, spaces, hyphens and underscores.

        Raises:
            ClassNameError: if no class, or more than one, has the name; names `what` (a file).
        """
        for names in (self._of_name, self._of_prompt, self._of_alias):
            if name in names:
                return names[name]
        found = [
            entry for entry in self.classes if _loose(name) in map(_loose, (entry.name, entry.prompt, *entry.aliases))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(repr(entry.name) for entry in found)
            raise ClassNameError(f"{what}: class {name!r} could be {several} of the class table {self.dataset}")
        raise ClassNameError(f"{what}: class {name!r} is not in the class table {self.dataset}{self._nearest(name)}")

    def category(self, number: int, what: str) -> ClassEntry:
        """The class of a COCO category id; raises ClassNameError that names `what`."""
        found = self._of_category.get(number)
        if found is None:
            allowed = (
                f"whose categories are {_ranges(list(self._of_category))}"
                if self._of_category
                else "which has no COCO categories"
            )
            raise ClassNameError(f"{what}: category id {number} is not in the class table {self.dataset}, {allowed}")
        return found

    @cached_property
    def _of_id(self) -> dict[int, ClassEntry]:
        return {entry.id: entry for entry in self.classes}

    @cached_property
    def _of_name(self) -> dict[str, ClassEntry]:
        return {entry.name: entry for entry in self.classes}

    @cached_property
    def _of_prompt(self) -> dict[str, ClassEntry]:
        return {entry.prompt: entry for entry in self.classes}

    @cached_property
    def _of_alias(self) -> dict[str, ClassEntry]:
        return {alias: entry for entry in self.classes for alias in entry.aliases}

    @cached_property
    def _of_category(self) -> dict[int, ClassEntry]:
        return {entry.category: entry for entry in self.classes if entry.category is not None}

    def _nearest(self, name: str) -> str:
        near = get_close_matches(name, [*self._of_name, *self._of_prompt], n=1)
        return f"; did you mean {near[0]!r}?" if near else ""


@cache
def _shipped(file: str) -> ClassTable:
    return ClassTable.read(Path(__file__).parent / "assets" / "classes" / f"{file}.json")


def _of_json(text: str, path: Path) -> tuple[bool, list[tuple[str, ClassEntry]]]:
    """Whether 0 is background, and the classes, each with where it stands."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: the class table is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{path}: the class table is not JSON: {error}") from error
    table: Mapping[str, Any] = {"classes": value} if isinstance(value, list) else value
    _check_keys(table, _KEYS, str(path))
    background, classes = table.get("background", True), table.get("classes")
    if not isinstance(background, bool):
        raise InputError(f'{path}: "background" is {background!r}, expected true or false')
    if not isinstance(classes, list):
        raise InputError(f'{path}: the class table has no list "classes"')
    entries = []
    for number, entry in enumerate(classes, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise ClassNameError(f'{where}: {entry!r} is no class, expected {{"id": 1, "name": "cat"}}')
        _check_keys(entry, _ENTRY_KEYS, where)
        for key in ("id", "name"):
            if key not in entry:
                raise ClassNameError(f'{where}: the class has no "{key}"')
        made = _entry(where, entry["id"], entry["name"], entry.get("prompt"), entry.get("category"))
        entries.append((where, replace(made, aliases=_aliases(where, entry.get("aliases", [])))))
    return background, entries


def _of_text(text: str, path: Path) -> tuple[bool, list[tuple[str, ClassEntry]]]:
    entries: list[tuple[str, ClassEntry]] = []
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for place, (number, line) in enumerate(lines):
        where = f"{path}, line {number}"
        if line.casefold() == "background":
            if place > 0:
                raise ClassNameError(f"{where}: background has the id 0, so its line comes first or is left out")
            continue
        name, *prompt = re.split(r"\t|:(?:\s|$)", line, maxsplit=1)
        entries.append((where, _entry(where, len(entries) + 1, name, prompt[0] if prompt else None, None)))
    return True, entries


def _entry(where: str, number: Any, name: Any, prompt: Any, category: Any) -> ClassEntry:
    # Imported here: the command line asks for DATASETS before anything heavy is loaded.
    from g4seg_trt.prompt import check_class_name

    _check_number(where, "id", number, 1, _LARGEST)
    if category is not None:
        _check_number(where, "category", category, 0, 2**31 - 1)
    try:
        name = check_class_name(name)
        prompt = check_class_name(name.replace("_", " ") if prompt is None else prompt)
    except ClassNameError as error:
        raise ClassNameError(f"{where}: {error}") from error
    return ClassEntry(number, name, prompt, category)


def _aliases(where: str, aliases: Any) -> tuple[str, ...]:
    if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
        raise ClassNameError(f"{where}: aliases {aliases!r}, expected a list of names")
    return tuple(aliases)


def _check_number(where: str, key: str, number: Any, low: int, high: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise ClassNameError(f"{where}: {key} {number!r} is not a whole number from {low} to {high}")


def _check_keys(value: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}, a class table has {', '.join(allowed)}")


def _checked(classes: list[tuple[str, ClassEntry]]) -> tuple[ClassEntry, ...]:
    """The classes by id; raises ClassNameError if two share an id, a name, a prompt, a category or an alias."""
    for key in _UNIQUE_KEYS:
        first: dict[Any, str] = {}
        for where, entry in classes:
            value = getattr(entry, key)
            if value is not None and first.setdefault(value, where) != where:
                raise ClassNameError(f"{where}: the {key} {value!r} is also that of {_place(first[value])}")
    names = {name: where for where, entry in classes for name in {entry.name, entry.prompt}}
    for where, entry in classes:
        for alias in entry.aliases:
            if names.setdefault(alias, where) != where:
                raise ClassNameError(f"{where}: the alias {alias!r} is also a name of {_place(names[alias])}")
    largest, where = max((entry.id, where) for where, entry in classes)
    if largest == _IGNORED:
        raise ClassNameError(
            f"{where}: id {_IGNORED} stands for pixels that are ignored, unless other ids are above it (as then "
            "label pictures have 16 bits); give the class another id"
        )
    return tuple(sorted((entry for _, entry in classes), key=lambda entry: entry.id))


def _place(where: str) -> str:
    return where.rpartition(", ")[2]


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _ranges(numbers: list[int]) -> str:
    """Sorted whole numbers in words: 1 to 11, 13 to 25, 90."""
    return ", ".join(f"{low} to {high}" if low != high else f"{low}" for low, high in _runs(sorted(numbers)))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], numbers[index - 1]
            start = index
