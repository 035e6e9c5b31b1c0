"""A set's figures: gathered in any order and in parts, gains by stratum, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ConfigError, MaskError
from g4seg_trt.evaluate import SetEvaluation, boundary_accuracy, boundary_f
from g4seg_trt.evaluate.strata import gain_figures, stratified

Labels = npt.NDArray[np.uint8]
MakeTable = Callable[..., ClassTable]
Triple = tuple[Labels, Labels, Labels]

TABLE = ClassTable("four", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in (1, 2, 5)), True)
VALUES = np.array([0, 1, 2, 5, 255], dtype=np.uint8)


def blocks(seed: int) -> Triple:
    """Coarse, refined and true labels of one image, in squares so that there are boundaries."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(3, 20, 2)
    truth = np.kron(generator.choice(VALUES, (5, 5)), np.ones((4, 4), np.uint8))[:height, :width]
    refined = np.where(generator.random(truth.shape) < 0.8, truth, generator.choice(VALUES, truth.shape))
    coarse = np.where(generator.random(truth.shape) < 0.5, refined, generator.choice(VALUES, truth.shape))
    return coarse, refined, truth


SETS = st.lists(st.integers(0, 2**32).map(blocks), min_size=1, max_size=6)


def evaluated(triples: list[Triple]) -> SetEvaluation:
    evaluation = SetEvaluation(TABLE)
    for coarse, refined, truth in triples:
        evaluation.add_gain(coarse, refined, truth)
    return evaluation


@settings(deadline=None, max_examples=30)
@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_change_a_bit(triples: list[Triple], chance: Any) -> None:
    shuffled = list(triples)
    chance.shuffle(shuffled)
    assert evaluated(shuffled).summary() == evaluated(triples).summary()


@settings(deadline=None, max_examples=30)
@given(SETS, st.integers(0, 6))
def test_parts_add_up_to_the_whole(triples: list[Triple], cut: int) -> None:
    first, second = evaluated(triples[:cut]), evaluated(triples[cut:])
    before = json.dumps(second.summary())
    first.merge(second)
    assert first.summary() == evaluated(triples).summary()
    first.merge(second)
    assert json.dumps(second.summary()) == before
    assert first.images == len(triples) + second.images


@settings(deadline=None, max_examples=30)
@given(SETS)
def test_refined_and_coarse_masks_are_evaluated_alike(triples: list[Triple]) -> None:
    gained = evaluated(triples).summary()
    for part, index in (("coarse", 0), ("figures", 1)):
        alone = SetEvaluation(TABLE)
        for triple in triples:
            alone.add(triple[index], triple[2])
        summary = alone.summary()
        assert summary["figures"] == gained[part]
        assert summary["coarse"] is None
        assert summary["gain"] is None


@settings(deadline=None, max_examples=30)
@given(SETS)
def test_a_summary_is_json_and_holds_shares(triples: list[Triple]) -> None:
    summary = evaluated(triples).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    for one in (summary["figures"], *summary["figures"]["classes"]):
        for key in ("mean_iou", "iou", "accuracy", "pixel_accuracy", "boundary_accuracy", "boundary_f"):
            assert one.get(key) is None or 0 <= one[key] <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32).map(blocks))
def test_gains_and_boundaries_of_one_image_class_by_class(triple: Triple) -> None:
    coarse, refined, truth = triple
    valid = truth != 255
    gains, missed, false, accuracies, fs = [], 0, 0, [], []
    for number in (1, 2, 5):
        true = truth == number
        regions = [(labels == number) & valid for labels in (coarse, refined)]
        if true.any():
            if any(region.any() for region in regions):
                ious = [(region & true).sum() / ((region | true) & valid).sum() for region in regions]
                gains.append((float(ious[0]), float(ious[1])))
            else:
                missed += 1
            accuracy = boundary_accuracy(refined == number, true, valid)
            f = boundary_f(refined == number, true, valid)
            if accuracy is not None and f is not None:
                accuracies.append(accuracy)
                fs.append(f)
        elif regions[0].any():
            false += 1
    summary = evaluated([triple]).summary()
    assert summary["gain"] == {"strata": stratified(gains), "missed": missed, "false": false}
    boundary = summary["figures"]["boundary"]
    assert boundary["boundary_masks"] == len(fs)
    assert boundary["boundary_f"] == (pytest.approx(np.mean(fs)) if fs else None)
    assert boundary["boundary_accuracy"] == (pytest.approx(np.mean(accuracies)) if fs else None)


def test_strata_by_hand() -> None:
    gains = [(0.0, 0.1), (0.39, 0.3), (0.4, 0.5), (0.7, 0.7), (0.79, 0.99), (0.8, 0.7), (1.0, 1.0)]
    low, middle, high, everything = stratified(gains)
    assert [part["masks"] for part in (low, middle, high, everything)] == [2, 3, 2, 7]
    assert (low["from"], low["to"], high["from"], high["to"]) == (0.0, 0.4, 0.8, 1.0)
    assert low["gain"] == pytest.approx((0.1 - 0.09) / 2)
    assert low["worse"] == low["better"] == 0.5
    assert middle["gain"] == pytest.approx(0.1)
    # Differences 0.1, 0 and 0.2: a standard deviation of 0.1.
    assert middle["two_errors"] == pytest.approx(2 * 0.1 / math.sqrt(3))
    assert (middle["worse"], middle["better"]) == (0.0, pytest.approx(2 / 3))
    assert high["before"] == pytest.approx(0.9)
    assert high["after"] == pytest.approx(0.85)
    assert everything["worse"] == pytest.approx(2 / 7)


def test_strata_without_enough_masks() -> None:
    one = gain_figures([(0.5, 0.6)])
    assert one["gain"] == pytest.approx(0.1)
    assert one["two_errors"] is None
    none = gain_figures([])
    assert none["masks"] == 0
    assert all(value is None for key, value in none.items() if key != "masks")


def test_standard_error_of_numpy() -> None:
    generator = np.random.default_rng(0)
    gains = [(float(before), float(after)) for before, after in generator.random((200, 2))]
    differences = np.array([after - before for before, after in gains])
    figures = gain_figures(gains)
    assert figures["gain"] == pytest.approx(differences.mean())
    assert figures["two_errors"] == pytest.approx(2 * differences.std(ddof=1) / math.sqrt(200))


def test_nothing_yet_and_all_ignored(make_table: MakeTable) -> None:
    evaluation = SetEvaluation(make_table([1, 2]))
    empty = evaluation.summary()
    assert empty["images"] == 0
    assert empty["figures"]["mean_iou"] is None
    assert empty["figures"]["pixel_accuracy"] is None
    evaluation.add(np.ones((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    ignored = evaluation.summary()["figures"]
    assert (ignored["mean_iou"], ignored["mean_accuracy"], ignored["pixels"]) == (None, None, 0)
    assert ignored["boundary"] == {"boundary_masks": 0, "boundary_accuracy": None, "boundary_f": None}
    assert all(one["iou"] is None and not one["counted"] for one in ignored["classes"])


def test_the_background_is_no_object(make_table: MakeTable) -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[2:6, 2:6] = 1
    with_background = SetEvaluation(make_table([1]))
    with_background.add_gain(truth, truth, truth)
    summary = with_background.summary()
    assert summary["figures"]["boundary"]["boundary_masks"] == 1
    assert summary["gain"]["strata"][-1]["masks"] == 1
    without = SetEvaluation(make_table([1], background=False))
    without.add_gain(truth, truth, truth)
    summary = without.summary()
    assert summary["figures"]["pixels"] == 16
    assert [one["id"] for one in summary["figures"]["classes"]] == [1]
    # Where nothing around it counts, its rim is still a boundary.
    assert summary["figures"]["boundary"] == {"boundary_masks": 1, "boundary_accuracy": 1.0, "boundary_f": 1.0}


def test_boundaries_can_be_left_out() -> None:
    evaluation = SetEvaluation(TABLE, boundary=False)
    coarse, refined, truth = blocks(1)
    evaluation.add_gain(coarse, refined, truth)
    summary = evaluation.summary()
    assert summary["figures"]["boundary"] is None
    assert summary["figures"]["mean_iou"] == evaluated([blocks(1)]).summary()["figures"]["mean_iou"]


def test_a_refused_image_is_not_counted() -> None:
    evaluation = evaluated([blocks(3)])
    before = evaluation.summary()
    good, wrong = np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8)
    for triple in ((wrong, good, good), (good, wrong, good), (good, good, wrong), (good, good, good[:1])):
        with pytest.raises(MaskError):
            evaluation.add_gain(*triple)
    assert evaluation.summary() == before


def test_with_and_without_coarse_masks_do_not_mix(make_table: MakeTable) -> None:
    plain = np.zeros((2, 2), np.uint8)
    with_coarse, without = SetEvaluation(TABLE), SetEvaluation(TABLE)
    with_coarse.add_gain(plain, plain, plain)
    without.add(plain, plain)
    with pytest.raises(ConfigError, match="without coarse masks among others with them"):
        with_coarse.add(plain, plain)
    with pytest.raises(ConfigError, match="with coarse masks among others without"):
        without.add_gain(plain, plain, plain)
    with pytest.raises(ConfigError, match="cannot be added up"):
        with_coarse.merge(without)
    with pytest.raises(ConfigError, match="four and made cannot be added up"):
        without.merge(SetEvaluation(make_table([1, 2])))
    with pytest.raises(ConfigError, match="allowed: present"):
        without.summary("everything")
