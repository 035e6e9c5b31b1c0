"""Format "irn": dicts of torch tensors and numpy arrays."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks import clip_es, irn
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.pickle_writer import write_npy_dict
from g4seg_trt.masks.tensors import MAGIC, VERSION, Storage, Tensor
from tests.masks.dict_files import TABLE, load, makes_folder, maps, save, save_old

NAMING = Naming(table=TABLE)


def irn_dict(count: int, height: int, width: int) -> dict[str, Any]:
    """What step/make_cam.py saves."""
    label = torch.zeros(20)
    label[2 : 2 + count] = 1
    return {
        "keys": torch.nonzero(label)[:, 0],
        "cam": torch.from_numpy(maps(count, -(-height // 4), -(-width // 4), seed=5)),
        "high_res": maps(count, height, width),
    }


@pytest.mark.parametrize("old", [False, True])
def test_a_dict_is_read_with_its_ids_names_and_rule(tmp_path: Path, old: bool) -> None:
    saved = irn_dict(2, 9, 7)
    (save_old if old else save)(tmp_path / "a.npy", saved)
    masks = irn.read(tmp_path / "a.npy", NAMING)
    assert masks.ids == (3, 4)
    assert masks.names == ("class3", "class4")
    assert str(masks.rule) == "constant:0.15"
    assert (masks.probabilities == saved["high_res"]).all()
    assert irn.recognise(tmp_path / "a.npy") == "a dict with keys, cam, high_res"
    assert clip_es.recognise(tmp_path / "a.npy") is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 4), st.integers(1, 21), st.integers(1, 21), st.booleans())
def test_what_is_read_is_written_back(count: int, height: int, width: int, tensor: bool) -> None:
    saved = irn_dict(count, height, width)
    if not tensor:
        saved["keys"] = saved["keys"].numpy().astype(np.int32)
        saved["cam"] = saved["cam"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        save(path, saved)
        masks = irn.read(path, NAMING)
        irn.write(path, masks)
        written = load(path)
    assert list(written) == ["keys", "cam", "high_res"]
    for key in saved:
        assert type(written[key]) is type(saved[key])
        assert written[key].dtype == saved[key].dtype
        assert written[key].shape == saved[key].shape
    assert (written["keys"] == saved["keys"]).all()
    assert (written["high_res"] == saved["high_res"]).all()


def test_the_scripts_of_irn_read_what_is_written(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", irn_dict(2, 16, 24))
    masks = irn.read(tmp_path / "a.npy", NAMING)
    rows, columns = np.mgrid[:16, :24]
    refined = np.stack([(rows < 8) * 0.9, (columns < 12) * 0.4]).astype(np.float32)
    for name in ("b.npy", "c.npy"):
        irn.write(tmp_path / name, masks.with_probabilities(refined))
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()
    found = np.load(tmp_path / "b.npy", allow_pickle=True).item()
    # As eval_cam.py: a constant in front, labels by index into the padded keys.
    cams = np.pad(found["high_res"], ((1, 0), (0, 0), (0, 0)), constant_values=0.15)
    labels = np.pad(found["keys"] + 1, (1, 0))[cams.argmax(axis=0)]
    assert (labels == np.where(rows < 8, 3, np.where(columns < 12, 4, 0))).all()
    # As make_sem_seg_labels.py: `cam` is a tensor, and the refined maps at a quarter of the size.
    cam = found["cam"].float().contiguous()
    assert cam.shape == (2, 4, 6)
    blocks = refined.reshape(2, 4, 4, 6, 4).mean(axis=(2, 4))
    assert np.abs(cam.numpy() - blocks).max() < 0.13  # the edge between two cells is blurred
    inner = np.r_[0, 3], np.r_[0, 5]
    assert np.allclose(cam.numpy()[:, inner[0]][:, :, inner[1]], blocks[:, inner[0]][:, :, inner[1]], atol=1e-6)


def test_dicts_without_cam_and_with_more_are_kept_as_they_are(tmp_path: Path) -> None:
    saved = {"high_res": maps(1, 5, 5), "keys": torch.tensor([4]), "score": np.float32(0.5), "feature": torch.ones(3)}
    save(tmp_path / "a.npy", saved)
    irn.write(tmp_path / "a.npy", irn.read(tmp_path / "a.npy", NAMING))
    written = load(tmp_path / "a.npy")
    assert list(written) == list(saved)
    assert written["score"] == np.float32(0.5)
    assert written["feature"].tolist() == [1, 1, 1]


def test_only_the_classes_asked_for_are_refined_and_the_others_stay(tmp_path: Path) -> None:
    saved = irn_dict(3, 9, 7)
    save(tmp_path / "a.npy", saved)
    masks = irn.read(tmp_path / "a.npy", Naming(("class5", "class 3"), TABLE))
    assert (masks.ids, masks.names) == ((5, 3), ("class5", "class3"))
    assert (masks.probabilities == saved["high_res"][[2, 0]]).all()
    refined = np.stack([np.zeros((9, 7)), np.ones((9, 7))]).astype(np.float32)
    irn.write(tmp_path / "a.npy", masks.with_probabilities(refined))
    written = load(tmp_path / "a.npy")
    assert written["keys"].tolist() == [2, 3, 4]
    for part in ("cam", "high_res"):
        assert (np.asarray(written[part])[0] == 1).all()
        assert (np.asarray(written[part])[1] == np.asarray(saved[part])[1]).all()
        assert not np.asarray(written[part])[2].any()
    with pytest.raises(MaskError, match=r"a\.npy: no class 'class9', it holds class3, class4, class5"):
        irn.read(tmp_path / "a.npy", Naming(("class9",), TABLE))
    with pytest.raises(MaskError, match="the masks are 7x9 pixels, the image is 5x5"):
        irn.read(tmp_path / "a.npy", Naming(None, TABLE, size=(5, 5)))


def test_masks_of_another_format_are_written_as_irn_does(tmp_path: Path) -> None:
    irn.write(tmp_path / "a.npy", CoarseMasks((3, 9), ("x", "y"), maps(2, 9, 6)))
    written = load(tmp_path / "a.npy")
    assert list(written) == ["keys", "cam", "high_res"]
    assert written["keys"].dtype == torch.int64
    assert written["keys"].tolist() == [2, 8]
    assert (written["cam"].dtype, tuple(written["cam"].shape)) == (torch.float32, (2, 3, 2))
    assert written["high_res"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.tensor([1])}, "1 classes in 'keys' and 2 maps in 'high_res'"),
        ({"cam": torch.zeros(1, 2, 2)}, r"'cam': shape \[1, 2, 2\], expected \[2, height, width\]"),
        ({"cam": torch.zeros(2, 0, 2)}, r"'cam': shape \[2, 0, 2\]"),
        ({"cam": "none"}, "'cam': a str, expected a numpy array or a torch tensor"),
        ({"high_res": torch.full((2, 3, 4), torch.nan)}, "class 'class3'.*NaN"),
        ({"high_res": np.full((2, 3, 4), 3.0)}, "class 'class3'.*from 3 to 3"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(tmp_path / "a.npy", {**irn_dict(2, 3, 4), **change})
    with pytest.raises(MaskError, match=message) as caught:
        irn.read(tmp_path / "a.npy", NAMING)
    assert "a.npy" in str(caught.value)


def test_foreign_dicts_and_classes_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", {"keys": np.array([1]), "cam": maps(1, 2, 2)})
    assert irn.recognise(tmp_path / "a.npy") is None
    with pytest.raises(MaskError, match="entries 'keys', 'cam', expected 'keys' and 'high_res'"):
        irn.read(tmp_path / "a.npy", NAMING)
    save(tmp_path / "a.npy", {"keys": torch.tensor([20]), "high_res": maps(1, 2, 2)})
    with pytest.raises(ClassNameError, match="class id 21"):
        irn.read(tmp_path / "a.npy", NAMING)
    assert irn.recognise(tmp_path / "missing.npy") is None
    assert irn.recognise(tmp_path / "a.png") is None


@pytest.mark.parametrize("place", ["keys", "cam", "high_res", "extra"])
def test_a_hostile_storage_is_opened_by_nobody(tmp_path: Path, place: str) -> None:
    """Wherever it stands: a tensor that is not read would be handed on to those who load the written file."""
    folder = tmp_path / "made"
    evil = MAGIC + VERSION + pickle.dumps({}, 2) + pickle.dumps(makes_folder(folder), 2) + pickle.dumps([], 2)
    entries = {"keys": np.array([1]), "cam": maps(1, 1, 1), "high_res": maps(1, 2, 2)}
    with (tmp_path / "a.npy").open("wb") as file:
        write_npy_dict(file, {**entries, place: Tensor(Storage(evil), 0, (1,), (1,))})
    assert irn.recognise(tmp_path / "a.npy") is not None
    with pytest.raises(MaskError, match="a torch storage with the pickle opcode TUPLE1"):
        irn.read(tmp_path / "a.npy", NAMING)
    assert not folder.exists()
    # numpy.load would have made the folder.
    with pytest.raises(Exception):  # noqa: B017 - after the folder torch finds no storage
        load(tmp_path / "a.npy")
    assert folder.is_dir()
