"""What a run knows of an image before it reads its masks: the image's size, and the rule that will decide."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import DatasetSource, Refiner
from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.done import draw_done
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.errors import InputError, MaskError
from g4seg_trt.masks import read_index_png, read_mask, read_masks

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

VOC = ClassTable.of_dataset("voc12")


def soft_masks(dataset: Dataset) -> dict[str, Any]:
    """The masks, taken out of the folder."""
    found = {}
    for stem in dataset.stems:
        path = next(dataset.masks.glob(f"{stem}.*"))
        found[stem] = read_mask(path, "disc")
        path.unlink()
    return found


def test_masks_of_the_image_s_size_may_be_large(
    refiner: Refiner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem, soft in soft_masks(dataset).items():
        np.savez(dataset.masks / f"{stem}.npz", disc=soft, background=1 - soft)
    # As if masks of so many pixels were more than a file may have whose image's size is not known.
    monkeypatch.setattr("g4seg_trt.masks.array.MOST_UNSIZED", 64)
    source = DatasetSource.from_folders(dataset.images, dataset.masks, truth=dataset.truth)
    item = source.item(0)
    assert not isinstance(item.masks, InputError)
    with pytest.raises(MaskError, match="values together"):
        item.masks.read()
    results = list(refiner.refine_dataset(source, dataset.output))
    assert [result.state for result in results] == ["refined"] * 5
    for stem in dataset.stems:  # another ground truth: what is done is read again, to be measured
        path = dataset.truth / f"{stem}.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    again = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [result.state for result in again] == ["skipped"] * 5
    assert draw_done(item, Layout(dataset.output), None, None) is not None


def test_masks_of_another_size_and_broken_images_are_told_apart(refiner: Refiner, dataset: Dataset) -> None:
    for stem, soft in soft_masks(dataset).items():
        np.save(dataset.masks / f"{stem}.npy", soft[:60])
    (dataset.images / f"{dataset.stems[1]}.png").write_bytes(b"no picture")
    source = DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc")
    errors = [str(result.error) for result in refiner.refine_dataset(source)]
    assert f"{dataset.stems[0]}.npy: the masks are 64x60 pixels, the image is 64x64" in errors[0]
    assert f"{dataset.stems[1]}.png: not a picture of a known format" in errors[1]


def predictions(dataset: Dataset, path: Path) -> dict[str, Any]:
    """What mmsegmentation leaves: a dog, and a cat that is likelier than all but the background everywhere else."""
    torch = pytest.importorskip("torch")
    logits = {}
    for stem, soft in soft_masks(dataset).items():
        values = np.full((21, 64, 64), 0.001, np.float32)
        values[12], values[8] = soft, 0.1 * (1 - soft)
        values[0] = 0.7 * (1 - soft)
        logits[stem] = values
    entries = [
        {
            "img_path": f"data/{stem}.png",
            "seg_logits": {"data": torch.from_numpy(values)},
            "pred_sem_seg": {"data": torch.from_numpy(values.argmax(axis=0))[None]},
        }
        for stem, values in logits.items()
    ]
    path.write_bytes(pickle.dumps(entries))
    return logits


@pytest.mark.parametrize(("rule", "names"), [(None, ["dog"]), ("constant:0.05", ["cat", "dog"])])
def test_only_classes_that_the_rule_gives_a_pixel_are_refined_and_the_others_stay(
    rule: str | None,
    names: list[str],
    refiner: Refiner,
    dataset: Dataset,
    tmp_path: Path,
    outputs_of: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = predictions(dataset, tmp_path / "all.pkl")
    monkeypatch.setattr("g4seg_trt.masks.array.MOST_UNSIZED", 64)
    source = DatasetSource.from_folders(dataset.images, tmp_path / "all.pkl", table=VOC)
    results = list(refiner.refine_dataset(source, dataset.output, background=rule))
    monkeypatch.undo()
    for result in results:
        assert result.error is None
        assert list(read_masks(dataset.output / "probability" / f"{result.stem}.npz")) == names
        ids = set(np.unique(read_index_png(dataset.output / "label" / f"{result.stem}.png")))
        assert ids <= {0, 8, 12}
        assert (8 in ids) == ("cat" in names)
    changed = False
    classes = dict.fromkeys(dataset.stems, ("dog", "cat", "sheep"))
    written = dataset.output / "masks" / "all.pkl"
    back = DatasetSource.from_folders(dataset.images, written, table=VOC, classes=classes)
    for item in back:
        assert not isinstance(item.masks, InputError)
        refined = read_masks(dataset.output / "probability" / f"{item.stem}.npz")
        everything = item.masks.read()
        for name, one, number in zip(everything.names, everything.probabilities, (12, 8, 17), strict=True):
            expected = refined.get(name, given[item.stem][number])
            assert np.array_equal(one, expected), name
            changed |= not np.array_equal(one, given[item.stem][number])
    assert changed
    whole = outputs_of(dataset.output)
    again = refiner.refine_dataset(source, dataset.output, background=rule, resume=True)
    assert {result.state for result in again} == {"skipped"}
    assert outputs_of(dataset.output) == whole
