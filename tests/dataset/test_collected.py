"""The file of all images that masks came in: what goes back into it, and when an earlier one goes."""

from __future__ import annotations

import json
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from g4seg_trt import DatasetSource, RefineConfig, Refiner
from g4seg_trt.class_table import ClassTable
from g4seg_trt.cli.refine import main
from g4seg_trt.errors import InputError
from g4seg_trt.masks import read_mask

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Outputs = Callable[[Path], dict[str, bytes]]

COCO = ClassTable.of_dataset("coco-object")
CAT, DOG = 17, 18
STEMS = tuple(f"{number:012d}" for number in range(1, 6))


@pytest.fixture
def numbered(dataset: Dataset) -> dict[str, Any]:
    """The images called by numbers; stem -> its coarse mask as bool [H,W]."""
    masks = {}
    for stem, new in zip(dataset.stems, STEMS, strict=True):
        masks[new] = read_mask(next(dataset.masks.glob(f"{stem}.*")), "disc") > 0.5
        (dataset.images / f"{stem}.png").rename(dataset.images / f"{new}.png")
    return masks


def code(mask: Any) -> dict[str, Any]:
    rle = pytest.importorskip("pycocotools.mask")
    found = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def save_results(path: Path, masks: dict[str, Any]) -> dict[int, Any]:
    """Dogs with a score; image 3 shows a cat alone. Image 77 is nobody's, and malformed."""
    entries = [
        {
            "image_id": int(stem),
            "category_id": CAT if stem == STEMS[2] else DOG,
            "segmentation": code(mask),
            "score": 0.75,
            "note": stem,
        }
        for stem, mask in masks.items()
    ]
    entries.append({**entries[0], "image_id": 77, "segmentation": {"size": [0, 3], "counts": "x"}})
    path.write_text(json.dumps(entries))
    return of_results(path)


def of_results(path: Path) -> dict[int, Any]:
    return {one["image_id"]: one for one in json.loads(path.read_text())}


def save_instances(path: Path, masks: dict[str, Any]) -> dict[int, Any]:
    """Image 3 is malformed, as is 77."""
    images = [{"id": int(stem), "file_name": f"{stem}.png", "height": 64, "width": 64} for stem in (*masks, "77")]
    annotations = [
        {"id": 90 - number, "image_id": number, "category_id": DOG, "segmentation": code(mask), "note": "kept"}
        for number, mask in enumerate(masks.values(), start=1)
    ]
    annotations[2]["segmentation"] = {"size": [64, 64], "counts": "nonsense"}
    annotations.append({**annotations[2], "image_id": 77, "id": 5})
    categories = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return of_instances(path)


def of_instances(path: Path) -> dict[int, Any]:
    content = json.loads(path.read_text())
    numbers = [one.pop("id") for one in content["annotations"]]
    assert len(set(numbers)) == len(numbers)
    assert len(content["images"]) == 6
    return {one["image_id"]: one for one in content["annotations"]}


def save_predictions(path: Path, masks: dict[str, Any]) -> dict[int, Any]:
    """Logits of 81 channels; those of image 3 have a NaN, image 77 has channels of another number."""
    entries: list[Any] = []
    for stem, mask in masks.items():
        logits = np.random.default_rng(int(stem)).normal(-60, 1, (81, 64, 64)).astype(np.float32)
        logits[0], logits[17] = np.where(mask, -0.1, 0.1), np.where(mask, 0.1, -0.1)
        entries.append({"img_path": f"a/{stem}.jpg", "seg_logits": {"data": torch.from_numpy(logits)}})
        entries[-1]["pred_sem_seg"] = {"data": torch.from_numpy(logits.argmax(axis=0)[None])}
    entries[2]["seg_logits"]["data"][0, 0, 0] = float("nan")
    entries.append({"img_path": "77.jpg", "seg_logits": {"data": torch.ones(3, 2, 2)}})
    path.write_bytes(pickle.dumps(entries, 2))
    return of_predictions(path)


def of_predictions(path: Path) -> dict[int, Any]:
    """The bits of each image's numbers."""
    found = {}
    for one in pickle.loads(path.read_bytes()):
        parts = [one[part]["data"].numpy() for part in ("seg_logits", "pred_sem_seg") if part in one]
        found[int(Path(one["img_path"]).stem)] = [(part.dtype.str, part.shape, part.tobytes()) for part in parts]
    return found


KINDS: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "results": ("all.json", save_results, of_results, {"class_name": "dog"}),
    "instances": ("all.json", save_instances, of_instances, {}),
    "predictions": ("all.pkl", save_predictions, of_predictions, {}),
}


def run(refiner: Refiner, source: DatasetSource, output: Path, **more: Any) -> dict[int, str]:
    return {int(result.stem): result.state for result in refiner.refine_dataset(source, output, resume=True, **more)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_fails_for_its_masks_stays_as_it_came(
    kind: str, refiner: Refiner, dataset: Dataset, numbered: dict[str, Any]
) -> None:
    name, save, read, more = KINDS[kind]
    given = save(dataset.root / name, numbered)
    source = DatasetSource.from_folders(dataset.images, dataset.root / name, table=COCO, **more)
    states = run(refiner, source, dataset.output)
    assert states == {**dict.fromkeys(range(1, 6), "refined"), 3: "failed"}
    back = read(dataset.output / "masks" / name)
    assert list(back) == list(given)
    assert {number for number in given if back[number] == given[number]} == {3, 77}


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_after_another_keeps_what_the_first_refined(
    kind: str, refiner: Refiner, dataset: Dataset, numbered: dict[str, Any]
) -> None:
    name, save, read, more = KINDS[kind]
    given = save(dataset.root / name, numbered)

    def source(names: tuple[str, ...] | None) -> DatasetSource:
        return DatasetSource.from_folders(dataset.images, dataset.root / name, table=COCO, names=names, **more)

    back, whole = dataset.output / "masks" / name, dataset.root / "whole"
    run(refiner, source(None), whole)
    assert run(refiner, source(STEMS[:2]), dataset.output) == {1: "refined", 2: "refined"}
    first = read(back)
    assert {number for number in given if first[number] == given[number]} == {3, 4, 5, 77}
    assert run(refiner, source((STEMS[4], STEMS[3])), dataset.output) == {5: "refined", 4: "refined"}
    assert back.read_bytes() == (whole / "masks" / name).read_bytes()
    # What is of other settings, of another picture, or not there any more, is none of this run's.
    assert run(refiner, source(STEMS[:2]), dataset.output, config=RefineConfig(beta=0.3)) == {
        1: "refined",
        2: "refined",
    }
    third = read(back)
    assert {number for number in given if third[number] == given[number]} == {3, 4, 5, 77}
    run(refiner, source(STEMS[:2]), dataset.output)
    Image.new("RGB", (64, 64)).save(dataset.images / f"{STEMS[3]}.png")
    (dataset.output / "probability" / f"{STEMS[4]}.npz").unlink()
    (dataset.images / f"{STEMS[1]}.png").unlink()
    assert run(refiner, source(STEMS[:1]), dataset.output) == {1: "skipped"}
    fourth = read(back)
    assert {number for number in given if fourth[number] == given[number]} == {2, 3, 4, 5, 77}
    assert fourth[1] == first[1]


def test_images_that_the_classes_leave_out_are_none_beside_a_list(
    refiner: Refiner, dataset: Dataset, numbered: dict[str, Any]
) -> None:
    save_results(dataset.root / "all.json", numbered)
    classes = {STEMS[0]: "dog"}
    source = DatasetSource.from_folders(
        dataset.images, dataset.root / "all.json", table=COCO, names=STEMS[:1], classes=classes
    )
    assert source.beside == []
    assert run(refiner, source, dataset.output) == {1: "refined"}
    assert (dataset.output / "masks" / "all.json").is_file()


def test_the_file_of_all_goes_also_when_it_was_called_otherwise(
    dataset: Dataset, numbered: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    save_results(dataset.root / "old.json", numbered)
    save_results(dataset.root / "new.json", numbered)
    masks = dataset.output / "masks"
    gone = f"warning: {masks / 'old.json'} was of results that have changed and is removed"

    def refine(name: str, *more: str) -> str:
        arguments = ["--engine", "tiny", "--threads", "1", "--images", str(dataset.images), "--resume", "--masks"]
        arguments += [str(dataset.root / name), "--dataset", "coco-object", "--output", str(dataset.output), *more]
        assert main(arguments) == 0
        return capsys.readouterr().err

    refine("old.json")
    assert gone not in refine("new.json")
    assert sorted(path.name for path in masks.iterdir()) == ["new.json", "old.json"], "both are right"
    said = refine("new.json", "--beta", "0.3").splitlines()
    assert gone in said, "and not that --resume writes it again"
    assert [path.name for path in masks.iterdir()] == ["new.json"]
    for path in dataset.masks.iterdir():
        path.unlink()
    for stem, mask in numbered.items():
        np.savez(dataset.masks / f"{stem}.npz", dog=mask)
    refine("masks", "--limit", "1")
    assert [path.name for path in masks.iterdir()] == [f"{STEMS[0]}.npz"]


def test_an_entry_of_several_images_is_that_of_none(
    dataset: Dataset, numbered: dict[str, Any], refiner: Refiner
) -> None:
    save_results(dataset.masks / "res.json", numbered)
    first = dataset.images / f"{STEMS[0]}.png"
    first.with_name("COCO_val2014_000000000001.png").write_bytes(first.read_bytes())
    source = DatasetSource.from_folders(dataset.images, dataset.masks / "res.json", table=COCO)
    results = {result.stem: result for result in refiner.refine_dataset(source, dataset.output)}
    failed = {stem: str(result.error) for stem, result in results.items() if result.error is not None}
    both = "its masks could be those of several images, keep one: 000000000001.png, COCO_val2014_000000000001.png"
    assert failed == {STEMS[0]: both, "COCO_val2014_000000000001": both}
    # Also for a list that has only one of them.
    one = DatasetSource.from_folders(dataset.images, dataset.masks / "res.json", table=COCO, names=[STEMS[0]])
    assert str(one.entries[0].masks) == both


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_found_in_any_form_of_unicode(forms: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("pycocotools.mask")
    image, told = (unicodedata.normalize(form, "café.png") for form in forms)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / image)
    outline = {"id": 1, "image_id": 1, "category_id": DOG, "segmentation": [[0, 0, 4, 0, 4, 3]]}
    content = {
        "images": [{"id": 1, "file_name": told, "height": 4, "width": 6}],
        "annotations": [outline],
        "categories": [{"id": DOG, "name": "dog"}],
    }
    (tmp_path / "m.json").write_text(json.dumps(content))
    masks = DatasetSource.from_folders(tmp_path / "images", tmp_path / "m.json", table=COCO).item(0).masks
    assert not isinstance(masks, InputError)
    assert masks.read((4, 6)).names == ("dog",)
