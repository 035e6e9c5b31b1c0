"""Class tables and label pictures that the tests of the evaluation share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from g4seg_trt.class_table import ClassEntry, ClassTable


@pytest.fixture(scope="session")
def make_table() -> Callable[..., ClassTable]:
    """make_table(ids, background=True) -> a table with the classes "c1", "c2", .. by their ids."""

    def make(ids: list[int], *, background: bool = True) -> ClassTable:
        return ClassTable("made", tuple(ClassEntry(number, f"c{number}", f"c {number}") for number in ids), background)

    return make
