"""What is printed about a set: no figure without its meaning, n/a where there is none, no line broken by a name."""

from __future__ import annotations

import numpy as np

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.evaluate import LabelSpace, SetEvaluation, SweepEvaluation, parse_sweep, report_lines

TABLE = ClassTable(
    "folder\nname", tuple(ClassEntry(n, name, name) for n, name in enumerate(("cat", "9 lives"), 1)), True
)


def square(size: int, number: int = 1) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    labels = np.zeros((20, 20), np.uint8)
    labels[5 : 5 + size, 5:15] = number
    return labels


def test_lines_of_a_refined_set() -> None:
    evaluation = SetEvaluation(TABLE)
    evaluation.add_gain(square(5), square(8), square(10))
    evaluation.add_gain(square(9), square(8), square(10))
    lines = report_lines(evaluation.summary())
    assert lines[0] == "folder name: 2 images, 800 pixels that count; all shares in percent"
    # Cat: 140 of 200 pixels before, 160 after. Background: 600 of 660, 600 of 640.
    before, after = (140 / 200 + 600 / 660) / 2, (160 / 200 + 600 / 640) / 2
    assert lines[1] == (
        f"mean IoU: {100 * before:.2f} before, {100 * after:.2f} after ({100 * (after - before):+.2f}) "
        "over 2 of 3 classes (those with a true or predicted pixel)"
    )
    table = [line.split() for line in lines]
    assert ["40-80", "1", "50.00", "80.00", "+30.00", "n/a", "0.00", "100.00"] in table
    assert ["80-100", "1", "90.00", "80.00", "-10.00", "n/a", "100.00", "0.00"] in table
    assert ["0-40", "0", "n/a", "n/a", "n/a", "n/a", "n/a", "n/a"] in table
    assert ["all", "2", "70.00", "80.00", "+10.00", "40.00", "50.00", "50.00"] in table
    assert ["2", "9", "lives", "n/a", "n/a", "n/a", "n/a", "n/a"] in table
    assert ["id", "class", "coarse", "IoU", "IoU", "accuracy", "mBA", "F"] in table
    assert all(line.isprintable() for line in lines)


def test_lines_of_a_set_without_coarse_masks() -> None:
    evaluation = SetEvaluation(TABLE)
    evaluation.add(np.where(square(5) == 1, 255, square(8)).astype(np.uint8), square(10))
    lines = report_lines(evaluation.summary("all"))
    assert lines[1].endswith("over 3 of 3 classes (all, absent ones as 0)")
    assert "pixels without a label, counted as wrong: 50" in lines
    assert not [line for line in lines if "before" in line]


def test_an_empty_set() -> None:
    lines = report_lines(SetEvaluation(TABLE, boundary=False).summary())
    assert lines[1].startswith("mean IoU: n/a over 0 of 3 classes")
    assert not [line for line in lines if "boundary" in line or "mBA" in line]


def test_the_best_of_a_sweep_is_told_apart() -> None:
    space = LabelSpace.of(TABLE)
    evaluation, sweep = SetEvaluation(space), SweepEvaluation(space, parse_sweep("constant:0.5:0.6:0.1"))
    evaluation.add(square(5), square(10))
    sweep.add([square(5), square(9)], square(10))
    lines = report_lines({**evaluation.summary(), "sweep": sweep.summary()})
    (best,) = [line for line in lines if line.startswith("best of the sweep")]
    # Cat 90 of 100 and background 300 of 310 pixels; 50 of 100 and 300 of 350 under the fixed rule.
    assert best == (
        "best of the sweep, chosen on the ground truth: constant:0.6 with mean IoU 93.39 (the fixed rule: 67.86)"
    )
    assert lines[1].startswith("mean IoU: 67.86 over 2 of 3")
    assert "background rules tried on this ground truth:" in lines
    sweep.add_decided(square(5), square(10))
    lines = report_lines({**evaluation.summary(), "sweep": sweep.summary()})
    assert (
        "background rules tried on this ground truth (1 of 2 images are label pictures, the same under every rule):"
        in lines
    )
