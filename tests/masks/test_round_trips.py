"""Every format gives back what it was given: keys, types, order, modes, values, and all that was not asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.formats import FORMATS
from g4seg_trt.update import BackgroundRule
from tests.masks.case import HEIGHT, WIDTH, Case, soft
from tests.masks.dict_files import Array
from tests.masks.every_format import CASES

# Of pycocotools itself, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RULES = [None, (None,), (BackgroundRule("constant", 0.9), None)]


def same(found: Any, expected: Any, step: float = 0.0) -> None:
    """Types, order and values, these to a rounding."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert [type(key) for key in found] == [type(key) for key in expected]
        for key in expected:
            same(found[key], expected[key], step)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, step)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        same(found.numpy(), expected.numpy(), step)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.allclose(found, expected, rtol=0, atol=step) if step else (found == expected).all()
    else:
        assert found == expected


def test_every_format_is_here() -> None:
    assert {case.format for case in CASES.values()} == set(FORMATS)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    one = CASES[request.param]
    if one.format.startswith("coco"):
        pytest.importorskip("pycocotools")
    return one


@pytest.mark.parametrize("rules", RULES, ids=["any rule", "the masks' own", "two rules"])
def test_what_is_read_is_written_back(tmp_path: Path, case: Case, rules: Any) -> None:
    """Also the classes that no rule gives a pixel, which are then not read."""
    (tmp_path / "out").mkdir()
    source, target = tmp_path / case.file, tmp_path / "out" / case.file
    case.save(source)
    before = case.load(source)
    case.through(source, target, case.called(rules=rules, size=(HEIGHT, WIDTH)))
    after = case.load(target)
    case.derived(before)
    case.derived(after)
    same(after, before, case.rounding)


def test_refined_values_arrive_and_no_others_change(tmp_path: Path, case: Case) -> None:
    (tmp_path / "out").mkdir()
    source, target = tmp_path / case.file, tmp_path / "out" / case.file
    case.save(source)
    before = case.load(source)
    refined = soft(17)

    def change(masks: CoarseMasks) -> CoarseMasks:
        assert masks.names == ("dog",)
        return masks.with_probabilities(refined[None])

    case.through(source, target, case.called(names=("dog",)), change)
    after = case.load(target)
    dog, expected = case.dog(after), refined
    if case.format == "psa-crf":
        expected = refined / (refined + before[0])
        assert np.allclose(sum(after.values()), 1.0, atol=1.1e-3)
    elif case.hard is not None:
        expected = refined >= case.hard
    free: Array = np.ones(dog.shape, np.bool_) if case.free is None else case.free(before)
    assert free.any()
    assert np.abs(dog.astype(np.float64) - expected)[free].max() <= case.step * 0.51 + 1e-6
    case.erase(before)
    case.erase(after)
    same(after, before)


def test_the_same_masks_give_the_same_bytes(tmp_path: Path, case: Case) -> None:
    case.save(tmp_path / case.file)
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        target = tmp_path / name / case.file
        case.through(tmp_path / case.file, target, case.naming)
        files = sorted(target.iterdir()) if target.is_dir() else [target]
        written.append([(file.name, file.read_bytes()) for file in files])
    assert written[0] == written[1]
