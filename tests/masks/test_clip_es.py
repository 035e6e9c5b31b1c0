"""Format "clip-es": dicts of keys and float16 maps."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks import clip_es, irn, psa
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from tests.masks.dict_files import TABLE, load, makes_folder, maps, save, save_old

NAMING = Naming(table=TABLE)


def clip_es_dict(count: int, height: int, width: int) -> dict[str, Any]:
    """What generate_cams_voc12.py saves."""
    return {
        "keys": np.array(range(3, 3 + count), np.int64),
        "attn_highres": maps(count, height, width).astype(np.float16),
    }


def test_a_dict_is_read_with_its_ids_names_and_rule(tmp_path: Path) -> None:
    saved = {"keys": np.array([14, 0]), "attn_highres": maps(2, 5, 7).astype(np.float16)}
    save(tmp_path / "a.npy", saved)
    masks = clip_es.read(tmp_path / "a.npy", NAMING)
    assert masks.ids == (15, 1)
    assert masks.names == ("class15", "class1")
    assert str(masks.rule) == "power:1"
    assert masks.probabilities.dtype == np.float32
    assert (masks.probabilities == saved["attn_highres"].astype(np.float32)).all()
    assert clip_es.recognise(tmp_path / "a.npy") == "a dict with keys and attn_highres"
    named = clip_es.read(tmp_path / "a.npy", Naming(("person", "plane")))
    assert named.names == ("person", "plane")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_what_is_read_is_written_back(count: int, height: int, width: int, tensors: bool) -> None:
    saved = clip_es_dict(count, height, width)
    if tensors:
        saved = {key: torch.from_numpy(value) for key, value in saved.items()}
    saved = {"name": "2007_000032", **saved, "extra": [1, np.float32(2)]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        save(path, saved)
        masks = clip_es.read(path, NAMING)
        assert masks.size == (height, width)
        clip_es.write(path, masks)
        written = load(path)
        again = clip_es.read(path, NAMING)
    assert list(written) == list(saved)
    for key in ("keys", "attn_highres"):
        assert type(written[key]) is type(saved[key])
        assert written[key].dtype == saved[key].dtype
        assert written[key].shape == saved[key].shape
        assert (written[key] == saved[key]).all()
    assert written["extra"] == saved["extra"]
    assert written["name"] == saved["name"]
    assert again.ids == masks.ids
    assert (again.probabilities == masks.probabilities).all()


def test_the_evaluation_of_clip_es_reads_what_is_written(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", clip_es_dict(2, 6, 5))
    masks = clip_es.read(tmp_path / "a.npy", NAMING)
    refined = masks.with_probabilities(maps(2, 6, 5, seed=1))
    clip_es.write(tmp_path / "b.npy", refined)
    clip_es.write(tmp_path / "c.npy", refined)
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()
    # As eval_cam.py: a background from the largest map in front, labels by index into the padded keys.
    found = np.load(tmp_path / "b.npy", allow_pickle=True).item()
    cams = found["attn_highres"]
    assert cams.dtype == np.float16
    background = np.power(1 - cams.max(axis=0, keepdims=True), 1)
    labels = np.pad(found["keys"] + 1, (1, 0))[np.concatenate([background, cams]).argmax(axis=0)].astype(np.uint8)
    half = refined.probabilities.astype(np.float16)
    expected = np.where(half.max(axis=0) > 1 - half.max(axis=0), 4 + half.argmax(axis=0), 0)
    assert (labels == expected).all()
    assert set(np.unique(labels)) == {0, 4, 5}


@pytest.mark.parametrize("protocol", [0, 2, 3])
def test_a_dict_of_an_old_numpy_is_read(tmp_path: Path, protocol: int) -> None:
    saved = clip_es_dict(2, 3, 4)
    save_old(tmp_path / "a.npy", saved, protocol)
    masks = clip_es.read(tmp_path / "a.npy", NAMING)
    assert (masks.probabilities == saved["attn_highres"].astype(np.float32)).all()


def test_older_entries_are_read_and_only_the_one_read_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    small, high = maps(1, 2, 2).astype(np.float16), maps(1, 6, 6).astype(np.float16)
    save(path, {"keys": np.array([1]), "strided_cam": small, "highres": high})
    assert clip_es.recognise(path) == "a dict with keys and highres"
    masks = clip_es.read(path, NAMING)
    assert masks.size == (6, 6)
    clip_es.write(path, masks.with_probabilities(np.zeros((1, 6, 6), np.float32)))
    written = load(path)
    assert not written["highres"].any()
    assert (written["strided_cam"] == small).all()


def test_masks_of_another_format_are_written_as_clip_es_does(tmp_path: Path) -> None:
    clip_es.write(tmp_path / "a.npy", CoarseMasks((3, 9), ("x", "y"), maps(2, 3, 4)))
    written = load(tmp_path / "a.npy")
    assert list(written) == ["keys", "attn_highres"]
    assert written["keys"].tolist() == [2, 8]
    assert written["keys"].dtype == np.int64
    assert written["attn_highres"].dtype == np.float16


def test_what_float16_rounds_above_1_is_clipped(tmp_path: Path) -> None:
    saved = clip_es_dict(1, 1, 2)
    saved["attn_highres"][0, 0] = (np.nextafter(np.float16(1), np.float16(2)), 0.25)
    save(tmp_path / "a.npy", saved)
    assert clip_es.read(tmp_path / "a.npy", NAMING).probabilities.tolist() == [[[1, 0.25]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.array([3])}, "1 classes in 'keys' and 2 maps in 'attn_highres'"),
        ({"keys": np.array([3, 3])}, "'keys': the class index 3 is negative or there twice"),
        ({"keys": np.array([3, -1])}, "'keys': the class index -1 is negative or there twice"),
        ({"keys": np.array([3.0, 4.0])}, r"'keys': float64 \[2\], expected an integer for each class"),
        ({"keys": np.array([[3, 4]])}, r"'keys': int64 \[1, 2\], expected an integer for each class"),
        ({"keys": [3, 4]}, "'keys': a list, expected a numpy array or a torch tensor"),
        ({"attn_highres": maps(2, 3, 4)[0]}, r"'attn_highres': an array of shape \[3, 4\], expected \[2, height"),
        ({"attn_highres": np.zeros((2, 0, 4))}, r"shape \[2, 0, 4\], expected"),
        ({"attn_highres": np.zeros((2, 3, 4), complex)}, "not a .npy file|damaged"),
        ({"attn_highres": np.full((2, 3, 4), "a")}, "class 'class4'.*dtype"),
        ({"attn_highres": np.full((2, 3, 4), np.nan)}, "class 'class4'.*12 values that are NaN"),
        ({"attn_highres": np.stack([np.zeros((3, 4)), np.full((3, 4), 2)])}, "class 'class5'.*from 2 to 2"),
        ({"attn_highres": np.full((2, 3, 4), -0.1, np.float16)}, "from -0.0999756 to"),
        ({"attn_highres": None}, "a NoneType, expected a numpy array"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(tmp_path / "my cams.npy", {**clip_es_dict(2, 3, 4), **change})
    with pytest.raises(MaskError, match=message) as caught:
        clip_es.read(tmp_path / "my cams.npy", NAMING)
    assert "my cams.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_have_to_be_known(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", {**clip_es_dict(1, 3, 4), "keys": np.array([20])})
    with pytest.raises(ClassNameError, match=r"a\.npy: class id 21 is not in the class table twenty"):
        clip_es.read(tmp_path / "a.npy", NAMING)
    with pytest.raises(ClassNameError, match="--dataset or --class-table"):
        clip_es.read(tmp_path / "a.npy", Naming())
    table = ClassTable("one", (ClassEntry(21, "cat", "cat"),), background=True)
    assert clip_es.read(tmp_path / "a.npy", Naming(table=table)).names == ("cat",)


def test_other_files_are_not_taken_for_clip_es(tmp_path: Path) -> None:
    others: dict[str, Any] = {
        "irn": {"keys": np.array([1]), "high_res": maps(1, 2, 2)},
        "psa": {3: maps(1, 2, 2)[0]},
        "no keys": {"attn_highres": maps(1, 2, 2)},
        "hostile": {"keys": makes_folder(tmp_path / "made"), "attn_highres": maps(1, 2, 2)},
        "list": [1],
    }
    for name, value in others.items():
        save(tmp_path / f"{name}.npy", value)
        assert clip_es.recognise(tmp_path / f"{name}.npy") is None
        with pytest.raises(MaskError, match=name):
            clip_es.read(tmp_path / f"{name}.npy", NAMING)
    np.save(tmp_path / "array.npy", maps(1, 2, 2))
    (tmp_path / "text.npy").write_text("none")
    for name in ("array.npy", "text.npy", "missing.npy", "clip.png"):
        assert clip_es.recognise(tmp_path / name) is None
    assert not (tmp_path / "made").exists()
    save(tmp_path / "clip.npy", clip_es_dict(1, 2, 2))
    for other in (irn.recognise, psa.recognise, psa.recognise_crf):
        assert other(tmp_path / "clip.npy") is None


def test_fewer_classes_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", clip_es_dict(3, 2, 2))
    masks = clip_es.read(tmp_path / "a.npy", NAMING)
    clip_es.write(tmp_path / "a.npy", replace(masks, ids=(5,), names=("x",), probabilities=masks.probabilities[1:2]))
    assert load(tmp_path / "a.npy")["keys"].tolist() == [4]
