"""Label pictures of 8 and 16 bits: what is written is what is counted, also where 255 is a class."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.dataset.measures import read_ground_truth
from g4seg_trt.dataset.writing import write_label
from g4seg_trt.errors import MaskError
from g4seg_trt.evaluate import LabelSpace, SetEvaluation
from g4seg_trt.evaluate.predictions import Predictions, read_labels
from g4seg_trt.masks import index_png
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.labels import class_ids, places_of, unlabelled

Array = npt.NDArray[Any]


def table_of(ids: list[int], *, background: bool = True) -> ClassTable:
    return ClassTable("made", tuple(ClassEntry(n, f"c{n}", f"c {n}") for n in sorted(ids)), background)


def masks_of(ids: list[int], ignored: Array) -> CoarseMasks:
    maps = np.zeros((len(ids), *ignored.shape), np.float32)
    return CoarseMasks(tuple(ids), tuple(f"c{n}" for n in ids), maps, ignored=ignored)


@settings(deadline=None, max_examples=60)
@given(st.sets(st.sampled_from([1, 2, 253, 254, 255, 256, 300, 65534]), min_size=1).map(list), st.integers(0, 999))
@example([1, 254], 0)
@example([255], 0)
@example([255, 256], 0)
def test_what_is_written_is_what_is_counted(ids: list[int], seed: int) -> None:
    chance = np.random.default_rng(seed)
    place = chance.integers(0, len(ids) + 1, (13, 17)).astype(np.uint16)
    ignored = chance.random(place.shape) < 0.2
    true_ids = np.array([0, *ids])[place]
    # More classes than the image has: a picture of 8 bits may be of a set of 16.
    table = table_of([*ids, 700])
    labels = class_ids(place, ids, ignored)
    assert (labels[~ignored] == true_ids[~ignored]).all()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        write_label(path, masks_of(ids, ignored), labels, table)
        assert Image.open(path).mode == ("P" if max(ids) < 255 else "I;16")
        read = Predictions.find(Path(folder), table, ["a"]).read("a")
        assert isinstance(read, np.ndarray)
        assert (places_of(read, ids) == np.where(ignored, 0, place)).all()
        assert (unlabelled(read, [entry.id for entry in table.classes]) == ignored).all()

        space = LabelSpace.of(table)
        whole = true_ids.astype(np.uint16)
        expected = np.zeros((len(space.ids), len(space.ids) + 1), np.int64)
        for true, nothing in zip(true_ids.ravel().tolist(), ignored.ravel().tolist(), strict=True):
            row = space.ids.index(true)
            expected[row, -1 if nothing else row] += 1
        assert (space.count(read, whole) == expected).all()
        truth = read_labels(path)
        expected[:, -1] = 0
        assert (space.count(whole, truth) == expected).all()
        assert (space.counted(truth) == ~ignored).all()

        masks = index_png.read(path, Naming(table=table))
        assert masks.ignored is not None
        assert (masks.ignored == ignored).all()
        assert set(masks.ids) == set(true_ids[~ignored].tolist()) - {0}
        index_png.write(Path(folder) / "again.png", CoarseMasks(masks.ids, masks.names, masks.probabilities))
        assert (read_labels(Path(folder) / "again.png") == np.where(ignored, 0, true_ids)).all()

        of_run = read_ground_truth(path, [f"c{n}" for n in ids], place.shape, table)
        assert (of_run.valid == ~ignored).all()
        for number in ids:
            assert (of_run.regions[f"c{number}"] == (~ignored & (true_ids == number))).all()
        assert (space.count(whole, of_run.labels) == expected).all()


def test_boundaries_of_a_class_255_are_measured_in_16_bits() -> None:
    truth = np.zeros((20, 20), np.uint16)
    truth[4:12, 4:12], truth[14:18, 4:12] = 255, 300
    evaluation = SetEvaluation(table_of([255, 300]))
    evaluation.add(truth, truth)
    # The same picture in 8 bits has no label where this class is.
    evaluation.add(np.where(truth == 300, 0, truth).astype(np.uint8), truth)
    of_class = {one["id"]: one for one in evaluation.summary()["figures"]["classes"]}
    assert (of_class[255]["boundary_masks"], of_class[255]["boundary_f"]) == (2, 0.5)
    assert (of_class[255]["iou"], of_class[300]["iou"]) == (0.5, 0.5)


def test_ground_truth_of_a_folder_for_each_class_has_255_too(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(1, 257)]
    for place, name in enumerate(names):
        row = np.zeros((1, 256), np.uint8)
        row[0, place] = 255
        Image.fromarray(row).save(tmp_path / f"{name}.png")
    for table in (None, table_of(list(range(1, 257)))):
        truth = read_ground_truth(tmp_path, names, (1, 256), table)
        assert truth.labels.tolist() == [list(range(1, 257))]
        assert truth.valid.all()
    # Two classes in one pixel leave it without a label.
    Image.fromarray(np.full((1, 256), 255, np.uint8)).save(tmp_path / "c1.png")
    truth = read_ground_truth(tmp_path, names, (1, 256))
    assert truth.labels.tolist() == [[1, *[65535] * 255]]


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.uint8, r"has the value 9, a ground truth of these classes has 0 to 300, and 255 for pixels"),
        (np.uint16, r"has the value 9, a ground truth of these classes has 0 to 300, and 65535 for pixels"),
    ],
)
def test_a_value_that_is_no_class_is_named(tmp_path: Path, dtype: Any, message: str) -> None:
    Image.fromarray(np.array([[0, 9, 255]], dtype)).save(tmp_path / "a.png")
    with pytest.raises(MaskError, match=message):
        read_ground_truth(tmp_path / "a.png", ["c255"], (1, 3), table_of([255, 300]))
