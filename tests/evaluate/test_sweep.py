"""Background rules: what a sweep stands for, and that it gives what each rule gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from g4seg_trt.arrays import Labels
from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ConfigError
from g4seg_trt.evaluate import LabelSpace, SetEvaluation, SweepEvaluation, parse_sweep
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.labels import NO_BACKGROUND, background_of, class_ids, places
from g4seg_trt.update import BackgroundRule, label_map

TABLE = ClassTable("t", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in (3, 7, 300)), True)


def masks(seed: int, ids: tuple[int, ...] = (7, 3), **more: Any) -> CoarseMasks:
    maps = np.random.default_rng(seed).random((len(ids), 9, 11), dtype=np.float32)
    # Equal values and values on a threshold are where two ways to decide would differ.
    maps = np.round(maps * 20) / np.float32(20)
    return CoarseMasks(ids, tuple(f"c{number}" for number in ids), maps.astype(np.float32), **more)


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("constant:0.05:0.60:0.05", [f"constant:{n * 0.05:g}" for n in range(1, 13)]),
        ("power:1:10:1", [f"power:{n}" for n in range(1, 11)]),
        ("constant:0.3:0.74:0.2", ["constant:0.3", "constant:0.5", "constant:0.7"]),
        ("constant:1:1:0.1", ["constant:1"]),
    ],
)
def test_a_sweep_holds_both_ends(text: str, rules: list[str]) -> None:
    parsed = parse_sweep(text)
    assert [str(rule) for rule in parsed] == rules
    assert parsed == tuple(BackgroundRule.parse(rule) for rule in rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constant", "allowed: KIND:FROM:TO:STEP"),
        ("constant:0.1:0.2", "allowed: KIND:FROM:TO:STEP"),
        ("constant:a:b:c", "allowed: KIND:FROM:TO:STEP"),
        ("constant:0.5:0.1:0.1", "FROM must not be above TO"),
        ("constant:0.1:0.5:0", "STEP above 0"),
        ("constant:nan:0.5:0.1", "FROM must not be above TO"),
        ("constant:0.1:inf:0.1", "FROM must not be above TO"),
        ("constant:0:0.5:0.1", "background rule constant:0"),
        ("constant:0.5:1.5:0.5", "background rule constant:1.5"),
        ("channel:1:2:1", "background rule channel"),
        ("constant:0.001:1:0.001", "has more than 100 rules"),
        ("power:1:1e999999:1", "has more than 100 rules"),
        ("power:1:1e999999:1e-999999", "allowed: KIND:FROM:TO:STEP"),
    ],
)
def test_what_is_no_sweep(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_sweep(text)
    assert "\n" not in str(caught.value)


def decide(coarse: CoarseMasks, rules: Sequence[BackgroundRule]) -> list[Labels]:
    found = places(coarse, coarse.probabilities, rules)
    return [class_ids(place, coarse.ids, coarse.ignored) for place in found]


@pytest.mark.parametrize("rule", ["constant:0.35", "constant:1", "power:1", "power:3.5", "channel"])
def test_labels_are_those_of_the_label_map(rule: str) -> None:
    background = np.random.default_rng(5).random((9, 11), dtype=np.float32)
    for ids in ((7, 3), (3,), (3, 7, 300)):
        coarse = masks(len(ids), ids, background=background)
        (labels,) = decide(coarse, [BackgroundRule.parse(rule)])
        expected = np.array([0, *ids])[label_map(coarse.probabilities, rule, background)]
        assert (labels == expected).all()
        assert labels.dtype == (np.uint16 if 300 in ids else np.uint8)


def test_without_classes_all_is_background_and_the_ignored_stay_so() -> None:
    ignored = np.zeros((2, 3), dtype=np.bool_)
    ignored[0, 1] = True
    none = CoarseMasks((), (), np.zeros((0, 2, 3), np.float32), ignored=ignored)
    assert [labels.tolist() for labels in decide(none, [BackgroundRule()])] == [[[0, 255, 0], [0, 0, 0]]]


def test_whose_rule_decides() -> None:
    own = masks(1, rule=BackgroundRule("power", 2.0))
    bare = masks(1)
    asked = BackgroundRule("constant", 0.3)
    without = ClassTable("u", TABLE.classes, False)
    assert background_of(own, TABLE, asked) == asked
    assert background_of(own, TABLE, None) == BackgroundRule("power", 2.0)
    assert background_of(bare, TABLE, None) == BackgroundRule("constant", 0.5)
    assert background_of(bare, without, None) == NO_BACKGROUND
    (labels,) = decide(bare, [NO_BACKGROUND])
    assert (labels == np.array([7, 3])[bare.probabilities.argmax(axis=0)]).all()


def test_each_rule_of_a_sweep_gives_what_it_gives_alone() -> None:
    rules = (*parse_sweep("constant:0.1:0.9:0.2"), *parse_sweep("power:1:3:1"))
    space = LabelSpace.of(TABLE)
    generator = np.random.default_rng(0)
    sweep, other = SweepEvaluation(space, rules), SweepEvaluation(space, rules)
    alone = {rule: SetEvaluation(TABLE, boundary=False) for rule in rules}
    for seed in range(4):
        coarse = masks(seed)
        truth = generator.choice(np.array([0, 3, 7, 255], np.uint8), (9, 11))
        labels = list(decide(coarse, rules))
        (sweep if seed % 2 else other).add(labels, truth)
        for rule, one in zip(rules, labels, strict=True):
            alone[rule].add(one, truth)
    sweep.merge(other)
    for over in ("present", "ground-truth", "all"):
        summary = sweep.summary(over)
        expected = [alone[rule].summary(over)["figures"]["mean_iou"] for rule in rules]
        assert [rule["mean_iou"] for rule in summary["rules"]] == expected
        assert [rule["background"] for rule in summary["rules"]] == [str(rule) for rule in rules]
        assert summary["best"]["mean_iou"] == max(expected)


def test_a_sweep_over_nothing_has_no_best() -> None:
    sweep = SweepEvaluation(LabelSpace.of(TABLE), parse_sweep("power:1:2:1"))
    assert sweep.summary()["best"] is None
    with pytest.raises(ConfigError, match="cannot be added up"):
        sweep.merge(SweepEvaluation(LabelSpace.of(TABLE), parse_sweep("power:1:3:1")))


def test_what_is_decided_counts_under_every_rule() -> None:
    rules = parse_sweep("constant:0.1:0.9:0.4")
    space = LabelSpace.of(TABLE)
    whole, parts = SweepEvaluation(space, rules), [SweepEvaluation(space, rules) for _ in range(2)]
    for seed in range(4):
        labels = decide(masks(seed), rules)
        truth = np.roll(labels[0], 1, axis=0)
        if seed % 2:
            whole.add([labels[0]] * 3, truth)
            parts[seed // 2].add_decided(labels[0], truth)
        else:
            whole.add(labels, truth)
            parts[seed // 2].add(labels, truth)
    parts[0].merge(parts[1])
    found, expected = parts[0].summary(), whole.summary()
    assert (found.pop("images"), found.pop("label_pictures")) == (4, 2)
    assert (expected.pop("images"), expected.pop("label_pictures")) == (4, 0)
    assert found == expected


def test_more_matrices_than_memory_holds_are_refused() -> None:
    many = LabelSpace.of(ClassTable("m", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in range(1, 1204)), True))
    with pytest.raises(ConfigError, match=r"a sweep of 99 rules with 1204 classes, allowed: up to 46 rules"):
        SweepEvaluation(many, parse_sweep("constant:0.01:0.99:0.01"))
