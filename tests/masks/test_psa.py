"""Formats "psa" and "psa-crf": dicts of class index -> map, counted from 0 or with background under 0."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.errors import ClassNameError, MaskError, OutputError
from g4seg_trt.masks import clip_es, irn, psa
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.update import label_map
from tests.masks.dict_files import TABLE, load, makes_folder, maps, save, save_old

NAMING = Naming(table=TABLE)


def crf_dict(count: int, height: int, width: int, dtype: Any = np.float32) -> dict[int, Any]:
    """What infer_cls.py saves after the CRF: background under 0 and classes from 1, together 1."""
    values = maps(count + 1, height, width) + np.float32(0.01)
    values /= values.sum(axis=0)
    return {0: values[0].astype(dtype), **{3 * n + 1: values[n + 1].astype(dtype) for n in range(count)}}


@pytest.mark.parametrize("writer", [save, save_old])
def test_class_activation_maps_are_counted_from_0(tmp_path: Path, writer: Callable[[Path, object], None]) -> None:
    first, second = maps(2, 5, 7)
    writer(tmp_path / "a.npy", {14: first, 0: second})
    masks = psa.read(tmp_path / "a.npy", NAMING)
    assert masks.ids == (15, 1)
    assert masks.names == ("class15", "class1")
    assert str(masks.rule) == "constant:0.2"
    assert masks.background is None
    assert (masks.probabilities == np.stack([first, second])).all()


def test_probabilities_of_a_crf_have_background_under_0(tmp_path: Path) -> None:
    saved = crf_dict(2, 5, 7)
    save(tmp_path / "a.npy", saved)
    masks = psa.read_crf(tmp_path / "a.npy", NAMING)
    assert masks.ids == (1, 4)
    assert str(masks.rule) == "channel"
    assert masks.background is not None
    assert (masks.background == saved[0]).all()
    assert (masks.probabilities == np.stack([saved[1], saved[4]])).all()


def recognised(path: Path) -> tuple[str | None, str | None]:
    assert clip_es.recognise(path) is None
    assert irn.recognise(path) is None
    return psa.recognise(path), psa.recognise_crf(path)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from([np.float16, np.float32, np.float64]))
def test_a_sum_of_1_in_every_pixel_tells_a_crf(count: int, height: int, width: int, dtype: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        saved = crf_dict(count, height, width, dtype)
        save(path, saved)
        plain, crf = recognised(path)
        assert plain is None
        assert crf is not None
        assert "sum to 1 in every pixel, so 0 is background" in crf
        saved[0][height // 2, width // 2] += 0.02  # one pixel is enough
        save(path, saved)
        plain, crf = recognised(path)
        assert crf is None
        assert plain == f"a dict of maps under the class indices {', '.join(map(str, saved))}, counted from 0"


def test_what_has_no_key_0_or_only_that_is_no_crf(tmp_path: Path) -> None:
    half = np.full((2, 3), 0.5, np.float32)
    for saved in ({1: half, 2: half}, {0: np.ones((2, 3), np.float32)}, {0: half, 1: half[:1]}):
        save(tmp_path / "a.npy", saved)
        plain, crf = recognised(tmp_path / "a.npy")
        assert plain is not None
        assert crf is None


def test_either_layout_can_be_forced(tmp_path: Path) -> None:
    saved = crf_dict(2, 3, 4)
    save(tmp_path / "a.npy", saved)
    assert psa.read(tmp_path / "a.npy", NAMING).ids == (1, 2, 5)
    save(tmp_path / "a.npy", {0: saved[0]})
    alone = psa.read_crf(tmp_path / "a.npy", NAMING)
    assert alone.ids == ()
    assert alone.size == (3, 4)
    save(tmp_path / "a.npy", {2: saved[0]})
    with pytest.raises(MaskError, match=r"no key 0 for the background \(psa-crf\), the keys are 2"):
        psa.read_crf(tmp_path / "a.npy", NAMING)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.sampled_from(["f2", "f4", "f8"]))
def test_what_is_read_is_written_back(count: int, height: int, width: int, crf: bool, dtype: str) -> None:
    saved: dict[Any, Any] = crf_dict(count, height, width, np.dtype(dtype))
    if not crf:
        saved = {np.int64(5): torch.from_numpy(saved[0]), **{key: value for key, value in saved.items() if key}}
    read, write = (psa.read_crf, psa.write_crf) if crf else (psa.read, psa.write)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        save(path, saved)
        write(path, read(path, NAMING))
        written = load(path)
    assert list(written) == list(saved)
    assert [type(key) for key in written] == [type(key) for key in saved]
    for key, value in saved.items():
        assert type(written[key]) is type(value)
        assert written[key].dtype == value.dtype
        # What came as float64 has been a float32.
        assert np.allclose(np.asarray(written[key]), np.asarray(value), atol=6e-8 if dtype == "f8" else 0)


def test_the_scripts_of_psa_and_mctformer_read_what_is_written(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", {2: maps(1, 4, 5)[0], 19: maps(1, 4, 5, seed=1)[0]})
    masks = psa.read(tmp_path / "a.npy", NAMING)
    refined = maps(2, 4, 5, seed=2)
    psa.write(tmp_path / "a.npy", masks.with_probabilities(refined))
    # As evaluation.py: one map after the other into place key + 1, a threshold in front.
    stacked = np.zeros((21, 4, 5), np.float32)
    for key, value in load(tmp_path / "a.npy").items():
        stacked[key + 1] = value
    stacked[0] = 0.2
    assert (stacked.argmax(axis=0) == np.where(refined.max(axis=0) > 0.2, refined.argmax(axis=0) * 17 + 3, 0)).all()


def test_refined_probabilities_of_a_crf_sum_to_1_again(tmp_path: Path) -> None:
    whole = maps(3, 6, 7) + np.float32(0.01)
    whole /= whole.sum(axis=0)
    save(tmp_path / "a.npy", dict(zip((0, 3, 20), whole, strict=True)))
    masks = psa.read_crf(tmp_path / "a.npy", NAMING)
    assert masks.background is not None
    refined = maps(2, 6, 7, seed=3)
    refined[:, 0, 0] = masks.background[0, 0] = 0.0
    psa.write_crf(tmp_path / "a.npy", masks.with_probabilities(refined))
    assert recognised(tmp_path / "a.npy")[1] is not None
    back = psa.read_crf(tmp_path / "a.npy", NAMING)
    assert back.background is not None
    assert np.allclose(back.probabilities.sum(axis=0) + back.background, 1.0, atol=1e-5)
    expected = label_map(refined, "channel", masks.background)
    assert (label_map(back.probabilities, "channel", back.background) == expected).all()


def test_only_the_classes_asked_for_are_refined_and_the_others_stay(tmp_path: Path) -> None:
    first, second, third = maps(3, 4, 5)
    saved = {14: first, 2: second.astype(np.float64) / 3, 0: torch.from_numpy(third)}
    save(tmp_path / "a.npy", saved)
    masks = psa.read(tmp_path / "a.npy", Naming(("class1", "class 15"), TABLE, size=(4, 5)))
    assert (masks.ids, masks.names) == ((1, 15), ("class1", "class15"))
    refined = maps(2, 4, 5, seed=3)
    psa.write(tmp_path / "b.npy", masks.with_probabilities(refined))
    written = load(tmp_path / "b.npy")
    assert list(written) == [14, 2, 0]
    assert (written[14] == refined[1]).all()
    assert written[2].dtype == np.float64
    assert (written[2] == saved[2]).all()
    assert torch.equal(written[0], torch.from_numpy(refined[0]))
    with pytest.raises(MaskError, match=r"a\.npy: no class 'class9', it holds class15, class3, class1"):
        psa.read(tmp_path / "a.npy", Naming(("class9",), TABLE))
    with pytest.raises(MaskError, match="the masks are 5x4 pixels, the image is 5x5"):
        psa.read(tmp_path / "a.npy", Naming(None, TABLE, size=(5, 5)))
    # What was not asked for need not even be a probability.
    save(tmp_path / "a.npy", {**saved, 2: np.full((4, 5), np.nan)})
    assert psa.read(tmp_path / "a.npy", Naming(("class1",), TABLE)).names == ("class1",)


def test_classes_of_a_crf_that_were_not_asked_for_keep_their_share(tmp_path: Path) -> None:
    saved = crf_dict(3, 6, 7)
    saved[4][0, 0], saved[0][0, 0], saved[1][0, 0], saved[7][0, 0] = 1.0, 0.0, 0.0, 0.0
    save(tmp_path / "a.npy", saved)
    masks = psa.read_crf(tmp_path / "a.npy", Naming(("class7", "class1"), TABLE))
    assert masks.names == ("class7", "class1")
    refined = maps(2, 6, 7, seed=3)
    refined[:, 0, 1] = 0.0
    psa.write_crf(tmp_path / "b.npy", masks.with_probabilities(refined))
    assert recognised(tmp_path / "b.npy")[1] is not None
    written = load(tmp_path / "b.npy")
    assert list(written) == list(saved)
    assert (written[4] == saved[4]).all()
    assert written[0][0, 0] == written[1][0, 0] == written[7][0, 0] == 0.0
    assert written[0][0, 1] == pytest.approx(1 - saved[4][0, 1], abs=1e-6)
    assert np.allclose(written[7] * (refined[1] + saved[0]), refined[0] * (written[1] + written[0]), atol=1e-6)
    save(tmp_path / "a.npy", {**saved, 4: saved[4] - 2})
    with pytest.raises(MaskError, match=r"a\.npy, key 4.*values from"):
        psa.read_crf(tmp_path / "a.npy", Naming(("class1",), TABLE))


def test_masks_of_another_format_are_written_too(tmp_path: Path) -> None:
    masks = CoarseMasks((3,), ("x",), maps(1, 2, 3))
    psa.write(tmp_path / "a.npy", masks)
    (key,) = load(tmp_path / "a.npy")
    assert (type(key), key) == (int, 2)
    with pytest.raises(OutputError, match="psa-crf needs the background's probability"):
        psa.write_crf(tmp_path / "b.npy", masks)
    assert not (tmp_path / "b.npy").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, r"expected class indices \(psa\)"),
        ({"keys": maps(1, 2, 2)[0]}, "a dict with the entries 'keys', expected class indices"),
        ({-1: maps(1, 2, 2)[0]}, "entries -1, expected class indices"),
        ({True: maps(1, 2, 2)[0]}, "entries True, expected class indices"),
        ({1.0: maps(1, 2, 2)[0]}, "expected class indices"),
        ({1: maps(1, 2, 2)}, r"key 1: shape \[1, 2, 2\], expected \[height, width\]"),
        (
            {1: maps(1, 2, 2)[0], 2: maps(1, 2, 3)[0]},
            r"key 2: shape \[2, 3\], expected \[height, width\], all the same",
        ),
        ({1: "map"}, "key 1: a str, expected a numpy array"),
        ({1: np.zeros((0, 2))}, "height, width"),
        ({1: np.array([[np.inf]])}, "class 'class2'.*infinite"),
        ({1: np.array([[0.5]]), 2: np.array([[1.5]])}, "class 'class3'.*from 1.5 to 1.5"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, saved: dict[Any, Any], message: str) -> None:
    save(tmp_path / "a.npy", saved)
    with pytest.raises(MaskError, match=message) as caught:
        psa.read(tmp_path / "a.npy", NAMING)
    assert "a.npy" in str(caught.value)


def test_foreign_classes_and_files_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", {20: maps(1, 2, 2)[0]})
    with pytest.raises(ClassNameError, match="class id 21"):
        psa.read(tmp_path / "a.npy", NAMING)
    for value in ({"keys": np.array([1])}, {1: makes_folder(tmp_path / "made")}, [1], {1: maps(1, 2, 2)}):
        save(tmp_path / "a.npy", value)
        assert recognised(tmp_path / "a.npy") == (None, None)
    assert not (tmp_path / "made").exists()
    assert recognised(tmp_path / "missing.npy") == (None, None)
