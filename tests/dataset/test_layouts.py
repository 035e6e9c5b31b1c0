"""Masks of every layout that lies in a file or folder for each image: OUT/masks gives the same layout back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from g4seg_trt import DatasetSource, OutputError, RefineConfig, Refiner
from g4seg_trt.atomic import atomic_folder
from g4seg_trt.class_table import ClassTable
from g4seg_trt.masks import read_mask
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.detect import detect
from g4seg_trt.masks.formats import Format

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Make = Callable[[int], Dataset]
    Outputs = Callable[[Path], dict[str, bytes]]

Floats = npt.NDArray[np.float32]
VOC = ClassTable.of_dataset("voc12")


def voc_labels(soft: Floats) -> npt.NDArray[np.uint8]:
    """A dog (12), a tv monitor (20) and pixels without a label."""
    labels = np.where(soft > 0.5, 12, 0).astype(np.uint8)
    labels[:9, :9] = 20
    labels[-3:] = 255
    return labels


def soft_png(folder: Path, stem: str, soft: Floats) -> None:
    Image.fromarray(np.rint(soft * 255).astype(np.uint8)).save(folder / f"{stem}.png")


def hard_png(folder: Path, stem: str, soft: Floats) -> None:
    Image.fromarray((soft > 0.5).astype(np.uint8) * np.uint8(255)).save(folder / f"{stem}.png")


def deep_png(folder: Path, stem: str, soft: Floats) -> None:
    Image.fromarray(np.rint(soft * 65535).astype(np.uint16)).save(folder / f"{stem}.png")


def grey_ids(folder: Path, stem: str, soft: Floats) -> None:
    Image.fromarray(voc_labels(soft)).save(folder / f"{stem}.png")


def palette_ids(folder: Path, stem: str, soft: Floats) -> None:
    picture = Image.fromarray(voc_labels(soft))
    picture.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    picture.save(folder / f"{stem}.png")


def half_npy(folder: Path, stem: str, soft: Floats) -> None:
    np.save(folder / f"{stem}.npy", soft.astype(np.float16))


def bool_npy(folder: Path, stem: str, soft: Floats) -> None:
    np.save(folder / f"{stem}.npy", soft > 0.5)


def npz(folder: Path, stem: str, soft: Floats) -> None:
    maps = {"disc": soft.astype(np.float64), "ring": soft[::-1] * np.float32(0.7), "background": 1 - soft}
    np.savez(folder / f"{stem}.npz", **maps)  # type: ignore[arg-type]


def class_folder(folder: Path, stem: str, soft: Floats) -> None:
    (folder / stem).mkdir()
    Image.fromarray(np.rint(soft * 255).astype(np.uint8)).save(folder / stem / "disc.png")
    np.save(folder / stem / "traffic light.npy", soft[::-1].astype(np.float16))


def stack(folder: Path, stem: str, soft: Floats) -> None:
    maps = np.zeros((64, 64, 21), np.float32)
    maps[..., 0], maps[..., 12], maps[..., 20] = 0.4, soft, soft.T * 0.8
    np.save(folder / f"{stem}.npy", maps)


@dataclass(frozen=True)
class Case:
    """How masks are written, what is known about them, and how far a value may be from the one before rounding."""

    write: Callable[[Path, str, Floats], None]
    format: str
    more: dict[str, Any]
    rounding: float = 0.0


DISC = {"class_name": "disc"}
CASES = [
    Case(soft_png, "png", DISC, 0.5 / 255),
    Case(hard_png, "png", DISC, 0.5),
    Case(deep_png, "png", DISC, 0.5 / 65535),
    Case(grey_ids, "index-png", {"table": VOC}, 0.5),
    Case(palette_ids, "index-png", {"table": VOC}, 0.5),
    Case(half_npy, "npy", DISC, 2**-11),
    Case(bool_npy, "npy", DISC, 0.5),
    Case(npz, "npz", {}),
    Case(class_folder, "class-folder", {}, 0.5 / 255),
    Case(stack, "array", {"table": VOC}),
]


def form(path: Path) -> Any:
    """All that is to come back but the values."""
    if path.is_dir():
        return {file.name: form(file) for file in path.iterdir()}
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return picture.mode, picture.size, picture.getpalette()
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return [(name, archive[name].dtype, archive[name].shape) for name in archive.files]
    array = np.load(path)
    return array.dtype, array.shape


def rewritten(dataset: Dataset, case: Case) -> DatasetSource:
    """The data set with its masks in this layout."""
    for stem in dataset.stems:
        path = next(dataset.masks.glob(f"{stem}.*"))
        soft = read_mask(path, "disc")
        path.unlink()
        case.write(dataset.masks, stem, soft)
    return DatasetSource.from_folders(dataset.images, dataset.masks, **case.more)


def first_file(path: Path) -> Path:
    return sorted(path.iterdir())[0] if path.is_dir() else path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.write.__name__)
def test_masks_come_back_in_the_layout_they_came_in(
    case: Case, refiner: Refiner, dataset: Dataset, outputs_of: Outputs
) -> None:
    source = rewritten(dataset, case)
    names = None if "class_name" not in case.more else ("disc",)
    naming = Naming(names, case.more.get("table"))
    changed = False
    for result in refiner.refine_dataset(source, dataset.output):
        assert result.error is None
        assert result.refinement is not None
        given = next(path for path in dataset.masks.iterdir() if result.stem in (path.stem, path.name))
        back = dataset.output / "masks" / given.name
        assert form(back) == form(given)
        found = detect(back, None, naming)
        assert (found.format.name, result.taken_for[0]) == (case.format, case.format)
        assert isinstance(found.format, Format)
        before, after = found.format.read(given, naming), found.format.read(back, naming)
        assert after.names == before.names
        refined = result.refinement.probabilities
        assert list(refined) == list(after.names)
        for name, one in zip(after.names, after.probabilities, strict=True):
            known = np.ones(one.shape, np.bool_) if before.ignored is None else ~before.ignored
            assert np.abs(one - refined[name])[known].max() <= case.rounding + 1e-6
        pairs: list[tuple[Any, Any]] = [(before.background, after.background), (before.ignored, after.ignored)]
        for kept, other in pairs:
            assert (kept is None) == (other is None)
            assert kept is None or np.array_equal(kept, other)
        changed |= not np.array_equal(before.probabilities, after.probabilities)
    assert changed, "something was refined"
    assert len(list((dataset.output / "masks").iterdir())) == 5

    whole = outputs_of(dataset.output)
    again = {result.stem: result.state for result in refiner.refine_dataset(source, dataset.output, resume=True)}
    assert set(again.values()) == {"skipped"}
    folder, (second, third) = dataset.output / "masks", dataset.stems[1:3]
    lost, cut = (
        first_file(next(path for path in folder.iterdir() if stem in (path.stem, path.name)))
        for stem in (second, third)
    )
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    redone = {result.stem: result.state for result in refiner.refine_dataset(source, dataset.output, resume=True)}
    assert redone == {stem: "refined" if stem in (second, third) else "skipped" for stem in dataset.stems}
    assert outputs_of(dataset.output) == whole


def test_a_label_picture_comes_back_under_the_rule_of_the_run(refiner: Refiner, dataset: Dataset) -> None:
    source = rewritten(dataset, CASES[3])
    for rule in ("constant:0.2", "constant:0.9"):
        output = dataset.root / rule
        for result in refiner.refine_dataset(source, output, background=rule):
            label, back = (np.asarray(Image.open(output / part / f"{result.stem}.png")) for part in ("label", "masks"))
            assert np.array_equal(back, label), "also where nothing has a label"


@pytest.mark.parametrize(("before", "after"), [(npz, class_folder), (class_folder, npz), (soft_png, npz)])
def test_a_killed_run_s_masks_of_another_layout_do_not_stay(
    before: Any, after: Any, refiner: Refiner, dataset: Dataset
) -> None:
    cases = {case.write: case for case in CASES}
    first, stem = rewritten(dataset, cases[before]), dataset.stems[0]
    assert all(result.error is None for result in refiner.refine_dataset(first, dataset.output))
    with (dataset.output / "records" / "all.jsonl").open("a") as file:
        file.write(json.dumps({"withdrawn": stem}) + "\n")  # and then it was killed
    given = next(path for path in dataset.masks.iterdir() if stem in (path.stem, path.name))
    soft = read_mask(given / "disc.png" if given.is_dir() else given, "disc")
    shutil.rmtree(given) if given.is_dir() else given.unlink()
    after(dataset.masks, stem, soft)
    second = DatasetSource.from_folders(dataset.images, dataset.masks, **cases[before].more)
    states = [result.state for result in refiner.refine_dataset(second, dataset.output, resume=True)]
    assert states == ["refined", *["skipped"] * 4]
    names = sorted(path.name for path in (dataset.output / "masks").iterdir())
    assert names == sorted(path.name for path in dataset.masks.iterdir())


@pytest.mark.parametrize("seen", [True, False], ids=["damaged", "of no known format"])
def test_of_a_killed_run_nothing_stays_beside_a_failure(
    seen: bool, refiner: Refiner, dataset: Dataset, outputs_of: Outputs
) -> None:
    source = rewritten(dataset, next(case for case in CASES if case.write is npz))
    assert all(result.error is None for result in refiner.refine_dataset(source, dataset.output, overlay=True))
    before, stem = outputs_of(dataset.output), dataset.stems[0]
    with (dataset.output / "records" / "all.jsonl").open("a") as file:
        file.write(json.dumps({"withdrawn": stem}) + "\n")  # and then it was killed
    given = dataset.masks / f"{stem}.npz"
    np.savez(given, disc=np.full((64, 64), np.nan)) if seen else given.write_bytes(b"no archive")
    results = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [result.state for result in results] == ["failed", *["skipped"] * 4]
    assert outputs_of(dataset.output) == {name: data for name, data in before.items() if stem not in name}


def test_another_name_of_the_masks_just_written_is_left_alone(refiner: Refiner, dataset: Dataset) -> None:
    """Where case is folded, STEM.png and STEM.PNG are one file: here through a link."""
    source = rewritten(dataset, CASES[0])
    folder, names = dataset.output / "masks", [f"{stem}.PNG" for stem in dataset.stems]
    folder.mkdir(parents=True)
    for stem, name in zip(dataset.stems, names, strict=True):
        (dataset.masks / f"{stem}.png").rename(dataset.masks / name)
        (folder / f"{stem}.png").symlink_to(name)
    source = DatasetSource.from_folders(dataset.images, dataset.masks, **CASES[0].more)
    assert all(result.error is None for result in refiner.refine_dataset(source, dataset.output))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, *(f"{one}.png" for one in dataset.stems)])
    assert {result.state for result in refiner.refine_dataset(source, dataset.output, resume=True)} == {"skipped"}


def test_what_a_file_manager_leaves_keeps_no_image_from_being_done_again(refiner: Refiner, dataset: Dataset) -> None:
    source = rewritten(dataset, next(case for case in CASES if case.write is class_folder))
    assert all(result.error is None for result in refiner.refine_dataset(source, dataset.output))
    (dataset.output / "masks" / dataset.stems[0] / ".DS_Store").write_bytes(b"icons")
    assert {result.state for result in refiner.refine_dataset(source, dataset.output, resume=True)} == {"skipped"}
    again = list(refiner.refine_dataset(source, dataset.output, resume=True, config=RefineConfig(beta=0.5)))
    assert [(result.state, result.error) for result in again] == [("refined", None)] * 5


def test_what_else_lies_in_the_place_of_a_folder_is_kept(refiner: Refiner, dataset: Dataset) -> None:
    source = rewritten(dataset, next(case for case in CASES if case.write is class_folder))
    one, other = (dataset.output / "masks" / stem for stem in dataset.stems[:2])
    one.mkdir(parents=True)
    (one / "notes.txt").write_text("mine")
    other.write_text("mine")
    records = dataset.output / "records"
    records.mkdir()
    (records / "all.jsonl").write_text('{"run": 1, "settings": {}}\n')
    results = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [result.state for result in results] == ["failed", "failed", *["refined"] * 3]
    assert "holds notes.txt, which is no mask" in str(results[0].error)
    assert "it exists and is not a folder" in str(results[1].error)
    assert (one / "notes.txt").read_text() == other.read_text() == "mine"
    assert not list((dataset.output / "label").glob(f"{dataset.stems[0]}.*")), "an image is done whole or not at all"


def test_masks_in_folders_are_never_overwritten(dataset: Dataset) -> None:
    rewritten(dataset, next(case for case in CASES if case.write is class_folder))
    before = {path: path.read_bytes() for path in dataset.root.rglob("*") if path.is_file()}
    done = dataset.refine("--resume", output=dataset.root)
    assert done.returncode == 1
    assert "it is the input" in done.stderr
    assert {path: path.read_bytes() for path in dataset.root.rglob("*") if path.is_file()} == before


def test_folders_of_unknown_origin_are_not_gone_on_with(dataset: Dataset) -> None:
    rewritten(dataset, next(case for case in CASES if case.write is class_folder))
    assert dataset.refine().returncode == 0
    shutil.rmtree(dataset.output / "records")
    for kind in ("probability", "label"):
        shutil.rmtree(dataset.output / kind)
    done = dataset.refine()
    assert done.returncode == 1
    assert "holds results and no records" in done.stderr


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with atomic_folder(folder) as first:
        (first / "cat.png").write_bytes(b"1")
        assert not folder.exists()
    with atomic_folder(folder) as second:
        (second / "dog.png").write_bytes(b"2")
        assert [path.name for path in folder.iterdir()] == ["cat.png"], "until the other is whole"
    assert [path.name for path in folder.iterdir()] == ["dog.png"]
    with pytest.raises(KeyError), atomic_folder(folder) as third:
        (third / "cat.png").write_bytes(b"3")
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["dog.png"]
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", folder / "dog.png", tmp_path / "none" / "b"):
        with pytest.raises(OutputError), atomic_folder(path):
            raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"], "nothing half-written stays"
