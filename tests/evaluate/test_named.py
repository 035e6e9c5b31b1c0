"""Images counted by class names add up to what one evaluation of them all says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.evaluate import LabelSpace, NamedEvaluation, SetEvaluation, comparison_lines, report_lines
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.evaluate.named import COARSE, RESULT, table_of_names

Labels = npt.NDArray[np.uint8]
Triple = tuple[Labels, Labels, Labels]

TABLES = [
    ClassTable("four", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in (1, 2, 5)), ground) for ground in (False, True)
]


def blocks(seed: int) -> Triple:
    """Coarse, refined and true labels, in squares so that there are boundaries."""
    generator = np.random.default_rng(seed)
    values = generator.choice(np.array([0, 1, 2, 5, 255], np.uint8), 3, replace=False)  # few classes in an image
    truth = np.kron(generator.choice(values, (4, 4)), np.ones((4, 4), np.uint8))
    refined = np.where(generator.random(truth.shape) < 0.8, truth, generator.choice(values, truth.shape))
    return np.where(generator.random(truth.shape) < 0.5, refined, generator.choice(values, truth.shape)), refined, truth


SETS = st.lists(st.integers(0, 2**32).map(blocks), min_size=1, max_size=6)


def counted(table: ClassTable, triple: Triple) -> dict[str, NamedCounts]:
    space = LabelSpace.of(table)
    rows = {COARSE: triple[0], RESULT: triple[1]}
    return {row: NamedCounts.of(space, labels, triple[2], boundary=True) for row, labels in rows.items()}


def through_json(rows: dict[str, NamedCounts]) -> dict[str, NamedCounts]:
    text = json.dumps({row: one.to_mapping() for row, one in rows.items()})
    return {row: NamedCounts.from_mapping(one) for row, one in json.loads(text).items()}


@settings(deadline=None, max_examples=30)
@given(SETS, st.sampled_from(TABLES), st.randoms(use_true_random=False))
def test_the_same_figures_as_one_evaluation_of_all_pixels(
    triples: list[Triple], table: ClassTable, chance: Any
) -> None:
    whole, named = SetEvaluation(table), NamedEvaluation(table)
    for triple in triples:
        whole.add_gain(*triple)
    chance.shuffle(triples)
    for triple in triples:
        named.add(through_json(counted(table, triple)))
    assert named.summary() == whole.summary()


@settings(deadline=None, max_examples=20)
@given(SETS)
def test_without_a_table_the_classes_are_those_that_come_up(triples: list[Triple]) -> None:
    named, whole = NamedEvaluation(), SetEvaluation(TABLES[1])
    for triple in triples:
        named.add(counted(TABLES[1], triple))
        whole.add_gain(*triple)
    found, expected = named.summary(), whole.summary()
    if found is None:
        assert not any(one["true_pixels"] + one["predicted_pixels"] for one in expected["figures"]["classes"][1:])
        return
    assert found["gain"] == expected["gain"]
    assert found["figures"]["mean_iou_over"]["present"] == expected["figures"]["mean_iou_over"]["present"]
    of_all = {one["name"]: one["iou"] for one in expected["figures"]["classes"]}
    assert {one["name"]: one["iou"] for one in found["figures"]["classes"]}.items() <= of_all.items()
    assert report_lines(found)


def test_nothing_and_too_much_have_no_figures() -> None:
    assert NamedEvaluation().summary() is None
    many = NamedEvaluation()
    for start in (0, 2500):
        rows = NamedCounts({(f"c{n}", "c0"): 1 for n in range(start, start + 2500)})
        many.add({COARSE: rows, RESULT: rows})
    assert many.summary() is None
    numbers = [entry.id for entry in table_of_names([f"c{n}" for n in range(300)], "x").classes]
    assert numbers == list(range(1, 301))


def test_rows_are_compared_with_the_same_coarse_masks() -> None:
    space, truth = LabelSpace.of(TABLES[1]), np.repeat(np.array([[0, 1]], np.uint8), 4, axis=0)
    half = truth.copy()
    half[2:] = 0
    named = NamedEvaluation(TABLES[1])
    rows = {COARSE: half, RESULT: truth, "coarse + x": np.zeros_like(truth)}
    named.add({row: NamedCounts.of(space, labels, truth, boundary=False) for row, labels in rows.items()})
    summaries = {row: named.summary(row) for row in named.rows}
    lines = comparison_lines({row: one for row, one in summaries.items() if one is not None})
    assert [line.split() for line in lines[1:]] == [
        ["masks", "mean", "IoU", "0-40", "40-80", "80-100", "all", "made", "worse"],
        ["coarse", "58.33", "n/a", "+0.00", "n/a", "+0.00", "0.00"],
        ["refined", "100.00", "n/a", "+50.00", "n/a", "+50.00", "0.00"],
        ["coarse", "+", "x", "25.00", "n/a", "-50.00", "n/a", "-50.00", "100.00"],
    ]
