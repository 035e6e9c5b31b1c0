"""What refinement changes in predictions, and what it leaves as it came."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.masks import labels, mmseg
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.mmseg import PredictionCollection
from g4seg_trt.update import BackgroundRule, label_map
from tests.masks.predictions import NAMING, dump, entry, write


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.sampled_from([None, "constant:0.3", "power:2"]), st.booleans(), st.booleans())
def test_labels_values_and_masks_agree_also_where_a_refined_class_gives_up_pixels(
    seed: int, asked: str | None, background: bool, logits: bool
) -> None:
    """A class hidden below another in every pixel is not read, and takes none that this one gives up."""
    rng = np.random.default_rng(seed)
    values = rng.random((5, 3, 4), np.float32) * rng.choice([0.1, 0.5, 1], (5, 1, 1)).astype(np.float32)
    values[4] = values[3] * np.float32(0.9)  # hidden
    values /= values.sum(axis=0)
    four = ClassTable("four", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in range(1, 5)), background=background)
    stored = np.log(values) - np.float32(3) if logits else values
    channels = stored if background else stored[1:]
    rule = None if asked is None or not background else BackgroundRule.parse(asked)
    decides = rule or (mmseg.RULE if background else labels.NO_BACKGROUND)
    if logits and rule is not None:
        return  # the logarithms of values that sum to another number than 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pkl"
        dump(path, [entry("x", channels)])
        naming = Naming(table=four, rules=(rule,))
        masks = PredictionCollection.open(path, naming).read("x")
        assert 4 not in masks.ids
        refined = (masks.probabilities * rng.random(masks.probabilities.shape)).astype(np.float32)
        refined = np.where(rng.random(refined.shape) < 0.5, refined, masks.probabilities)
        ruled = replace(masks.with_probabilities(refined), rule=rule or masks.rule)
        (back,) = write(path, PredictionCollection.open(path, naming), [("x", ruled)])
        again = PredictionCollection.open(path, naming).read("x")
    places = np.zeros((3, 4), np.int64)
    if masks.ids:
        places = np.array((0, *masks.ids))[label_map(refined, decides, masks.background)]
    first = 0 if background else 1
    assert (back["pred_sem_seg"]["data"][0].numpy() + first == places).all()
    found = np.zeros((3, 4), np.int64)
    if again.ids:
        found = np.array((0, *again.ids))[label_map(again.probabilities, decides, again.background)]
    assert (found == places).all()
    written = back["seg_logits"]["data"].numpy()
    for number in set(range(1 - background, 5)) - set(masks.ids) - {0}:
        moved = written[number - first] != channels[number - first]
        assert not (moved & (refined == masks.probabilities).all(axis=0)).any(), "where nothing was given up"


def test_a_class_that_nobody_refined_keeps_its_pixels(tmp_path: Path) -> None:
    """Of classes asked for by name the others stay, and take what those give up."""
    values = np.array([[0.1, 0.1], [0.6, 0.1], [0.3, 0.8]], np.float32)[:, None]
    two = ClassTable("two", (ClassEntry(1, "a", "a"), ClassEntry(2, "b", "b")), background=True)
    dump(tmp_path / "a.pkl", [entry("x", values)])
    found = PredictionCollection.open(tmp_path / "a.pkl", Naming(("a",), two, rules=(None,)))
    masks = found.read("x")
    (back,) = write(tmp_path / "b.pkl", found, [("x", masks.with_probabilities(np.zeros((1, 1, 2), np.float32)))])
    assert back["pred_sem_seg"]["data"][0].tolist() == [[2, 2]]
    assert (back["seg_logits"]["data"].numpy()[[0, 2]] == values[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_change_where_a_probability_does(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also those whose probability is far below what has a logarithm in float32."""
    logits = torch.from_numpy((np.random.default_rng(3).normal(size=(4, 5, 6)) * 40).astype(np.float32)).to(dtype)
    broken = torch.full((4, 2, 2), float("nan"))
    dump(tmp_path / "a.pkl", [entry("x", logits.numpy()), entry("y", broken.numpy(), np.zeros((2, 2)))])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    masks = found.read("x")
    refined = masks.probabilities.copy()
    refined[:, 2, 3] = 0.25
    results = [("x", masks), ("x", masks.with_probabilities(refined)), ("y", None), ("x", None)]
    same, changed, raw, whole = write(tmp_path / "b.pkl", found, results)
    assert torch.equal(same["seg_logits"]["data"], logits)
    assert torch.equal(whole["seg_logits"]["data"], logits)
    assert raw["seg_logits"]["data"].isnan().all()
    moved = (changed["seg_logits"]["data"] != logits).numpy()
    assert moved[list(masks.ids), 2, 3].any()
    moved[:, 2, 3] = False
    assert not moved.any()
