"""Refiner.refine_dataset: what it yields, and what makes it do an image again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import ConfigError, DatasetSource, OutputError, RefineConfig, Refiner, load_image
from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.names import read_list
from g4seg_trt.masks import read_index_png, read_mask, read_masks
from g4seg_trt.masks.formats import FORMATS

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Make = Callable[[int], Dataset]
    Outputs = Callable[[Path], dict[str, bytes]]


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def states(refiner: Refiner, source: DatasetSource, output: Path, **more: Any) -> dict[str, str]:
    return {result.stem: result.state for result in refiner.refine_dataset(source, output, resume=True, **more)}


def test_without_an_output_folder_nothing_is_written(refiner: Refiner, dataset: Dataset) -> None:
    before = sorted(dataset.root.rglob("*"))
    results = list(refiner.refine_dataset(source_of(dataset, truth=dataset.truth)))
    assert [result.stem for result in results] == list(dataset.stems)
    assert sorted(dataset.root.rglob("*")) == before
    for result in results:
        assert result.refinement is not None
        assert result.record is None
        path = next(dataset.masks.glob(f"{result.stem}.*"))
        refiner.set_image(load_image(dataset.images / result.image))
        alone = refiner.refine({"disc": read_mask(path, "disc")})
        assert np.array_equal(alone.probabilities["disc"], result.refinement.probabilities["disc"])
        figures = result.classes["disc"]
        assert figures.iou_before is not None
        assert figures.area_before > 0


def test_the_same_as_the_command(refiner: Refiner, dataset: Dataset, outputs_of: Outputs, tmp_path: Path) -> None:
    done = dataset.refine("--overlay", output=tmp_path / "command")
    assert done.returncode == 0, done.stderr
    assert set(states(refiner, source_of(dataset), dataset.output, overlay=True).values()) == {"refined"}
    assert outputs_of(dataset.output) == outputs_of(tmp_path / "command")
    again = dataset.refine("--resume", "--overlay")
    assert "0 refined, 5 skipped" in again.stdout, "the command goes on where Python stopped"


def change_image(dataset: Dataset) -> None:
    path = dataset.images / f"{dataset.stems[1]}.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def change_mask(dataset: Dataset) -> None:
    path = dataset.masks / f"{dataset.stems[1]}.png"
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)


def change_suffix(dataset: Dataset) -> None:
    shutil.move(dataset.images / f"{dataset.stems[1]}.png", dataset.images / f"{dataset.stems[1]}.PNG")


def delete_output(kind: str) -> Callable[[Dataset], None]:
    return lambda dataset: (dataset.output / kind / f"{dataset.stems[1]}.png").unlink()


def cut_output(dataset: Dataset) -> None:
    path = dataset.output / "probability" / f"{dataset.stems[1]}.png"
    path.write_bytes(path.read_bytes()[:-1])


def withdraw(dataset: Dataset) -> None:
    with (dataset.output / "records" / "all.jsonl").open("a") as file:
        file.write(f'{{"withdrawn": "{dataset.stems[1]}"}}\n')


@pytest.mark.parametrize(
    "change",
    [
        change_image,
        change_mask,
        change_suffix,
        delete_output("probability"),
        delete_output("label"),
        cut_output,
        withdraw,
    ],
)
def test_one_difference_does_one_image_again(
    change: Callable[[Dataset], None], refiner: Refiner, dataset: Dataset, outputs_of: Outputs, tmp_path: Path
) -> None:
    second = dataset.stems[1]
    assert set(states(refiner, source_of(dataset), dataset.output).values()) == {"refined"}
    assert set(states(refiner, source_of(dataset), dataset.output).values()) == {"skipped"}
    change(dataset)
    found = states(refiner, source_of(dataset), dataset.output)
    assert found == {stem: "refined" if stem == second else "skipped" for stem in dataset.stems}
    assert set(states(refiner, source_of(dataset), dataset.output).values()) == {"skipped"}
    list(refiner.refine_dataset(source_of(dataset), tmp_path / "fresh"))
    assert outputs_of(dataset.output) == outputs_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    "more",
    [{"config": RefineConfig(beta=0.3)}, {"background": "constant:0.4"}, {"overlay": True}, {"matches": True}],
    ids=lambda more: next(iter(more)),
)
def test_what_concerns_all_images_does_all_again(more: dict[str, Any], refiner: Refiner, dataset: Dataset) -> None:
    assert set(states(refiner, source_of(dataset), dataset.output).values()) == {"refined"}
    assert set(states(refiner, source_of(dataset), dataset.output, **more).values()) == {"refined"}
    assert set(states(refiner, source_of(dataset), dataset.output, **more).values()) == {"skipped"}


def test_another_engine_does_all_again(refiner: Refiner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    states(refiner, source_of(dataset), dataset.output)
    monkeypatch.setattr(refiner, "_manifest", replace(refiner.manifest, note="another"))
    results = list(refiner.refine_dataset(source_of(dataset), dataset.output, resume=True))
    assert {(result.state, result.redone) for result in results} == {("refined", ("engine",))}


def test_what_is_not_taken_is_not_done_and_the_folder_is_free_again(refiner: Refiner, make: Make) -> None:
    dataset = make(30)
    results = refiner.refine_dataset(source_of(dataset), dataset.output)
    stems = [next(results).stem for _ in range(3)]
    assert stems == list(dataset.stems[:3])
    with pytest.raises(OutputError, match="is being written by another run"):
        next(refiner.refine_dataset(source_of(dataset), dataset.output, resume=True))
    results.close()
    found = states(refiner, source_of(dataset), dataset.output)
    assert list(found) == list(dataset.stems)
    skipped = [stem for stem, state in found.items() if state == "skipped"]
    assert skipped == list(dataset.stems[: len(skipped)])
    assert 3 <= len(skipped) < 20


def test_errors_are_results_and_wrong_settings_are_raised(refiner: Refiner, dataset: Dataset) -> None:
    (dataset.images / f"{dataset.stems[2]}.png").write_bytes(b"no picture")
    results = {result.stem: result for result in refiner.refine_dataset(source_of(dataset), dataset.output)}
    assert [result.state for result in results.values()] == ["refined", "refined", "failed", "refined", "refined"]
    assert "not a picture" in str(results[dataset.stems[2]].error)
    with pytest.raises(OutputError, match="holds results of an earlier run"):
        list(refiner.refine_dataset(source_of(dataset), dataset.output))
    with pytest.raises(ConfigError, match="limit is 0"):
        refiner.refine_dataset(source_of(dataset), limit=0)
    with pytest.raises(ConfigError, match="background rule"):
        refiner.refine_dataset(source_of(dataset), background="blue")


def test_another_ground_truth_is_measured_on_what_is_done(refiner: Refiner, dataset: Dataset) -> None:
    first = list(refiner.refine_dataset(source_of(dataset, truth=dataset.truth), dataset.output))
    for stem in dataset.stems:
        path = dataset.truth / f"{stem}.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = list(refiner.refine_dataset(source_of(dataset, truth=dataset.truth), dataset.output, resume=True))
    for before, after in zip(first, second, strict=True):
        assert after.state == "skipped"
        one, other = before.classes["disc"], after.classes["disc"]
        assert (one.area_before, one.area_after) == (other.area_before, other.area_after)
        assert one.iou_after is not None
        assert other.iou_after is not None
        assert one.iou_after > 0.5 > other.iou_after


@pytest.fixture
def voc(dataset: Dataset) -> DatasetSource:
    """Index masks with ids of PASCAL VOC: dog (12) beside tv monitor (20), an empty one, one with ignored pixels."""
    for stem in dataset.stems:
        for path in dataset.masks.glob(f"{stem}.*"):
            path.unlink()
        truth = np.asarray(Image.open(dataset.truth / f"{stem}.png")) > 0
        labels = np.where(truth, 12, 0).astype(np.uint8)
        labels[:9, :9] = 20
        if stem == dataset.stems[1]:
            labels[:] = 0
        if stem == dataset.stems[2]:
            labels[-5:] = 255
        Image.fromarray(labels).save(dataset.masks / f"{stem}.png")
    return DatasetSource.from_folders(dataset.images, dataset.masks, table=ClassTable.of_dataset("voc12"))


def test_class_tables_give_prompts_and_ids(refiner: Refiner, voc: DatasetSource, dataset: Dataset) -> None:
    results = list(refiner.refine_dataset(voc, dataset.output))
    refiner.set_image(load_image(dataset.images / results[0].image))
    masks = read_index_png(dataset.masks / f"{dataset.stems[0]}.png")
    alone = refiner.refine({"dog": masks == 12, "tv monitor": masks == 20})
    for result in results:
        assert result.state == "refined", result.error
        assert result.refinement is not None
        names = list(result.refinement.probabilities)
        stored = dataset.output / "probability" / f"{result.stem}.npz"
        label = read_index_png(dataset.output / "label" / f"{result.stem}.png")
        if result.stem == dataset.stems[1]:
            assert names == []
            assert not label.any()
            assert result.refinement.warnings
        else:
            assert names == ["dog", "tvmonitor"]
            assert list(read_masks(stored)) == names
            assert {12, 20} <= set(np.unique(label)) <= {0, 12, 20, 255}
        assert (label == 255).any() == (result.stem == dataset.stems[2])
        assert result.taken_for[0] == "index-png"
    first = results[0].refinement
    assert first is not None
    assert np.array_equal(first.probabilities["tvmonitor"], alone.probabilities["tv monitor"])
    assert set(states(refiner, voc, dataset.output).values()) == {"skipped"}
    assert set(states(refiner, replace(voc, table=None, class_name="disc"), dataset.output).values()) != {"skipped"}


def test_other_people_s_formats_come_back_as_they_came(refiner: Refiner, dataset: Dataset) -> None:
    for stem in dataset.stems:
        path = next(dataset.masks.glob(f"{stem}.*"))
        mask = read_mask(path, "disc")
        path.unlink()
        maps = np.stack([mask, mask[::-1]]).astype(np.float16)
        content: Any = {"keys": np.array([11, 19]), "attn_highres": maps}
        np.save(dataset.masks / f"{stem}.npy", content)
    source = DatasetSource.from_folders(dataset.images, dataset.masks, table=ClassTable.of_dataset("voc12"))
    for result in refiner.refine_dataset(source, dataset.output):
        assert result.taken_for[0] == "clip-es"
        assert result.refinement is not None
        assert result.record is not None
        assert result.record.details["background"] == "power:1", "the format's own rule"
        given = np.load(dataset.masks / f"{result.stem}.npy", allow_pickle=True).item()["attn_highres"]
        refiner.set_image(load_image(dataset.images / result.image))
        alone = refiner.refine({"dog": given[0], "tv monitor": given[1]}, background="power:1")
        assert np.array_equal(alone.probabilities["tv monitor"], result.refinement.probabilities["tvmonitor"])
        back = np.load(dataset.output / "masks" / f"{result.stem}.npy", allow_pickle=True).item()
        assert back["keys"].tolist() == [11, 19]
        for values, name in zip(back["attn_highres"], ("dog", "tvmonitor"), strict=True):
            assert values.dtype == np.float16
            assert np.array_equal(values, result.refinement.probabilities[name].astype(np.float16))
    (dataset.output / "masks" / f"{dataset.stems[0]}.npy").unlink()
    assert list(states(refiner, source, dataset.output).values()) == ["refined", *["skipped"] * 4]


def test_a_format_that_is_asked_for_decides(refiner: Refiner, dataset: Dataset) -> None:
    for path in list(dataset.masks.iterdir()):
        np.save(dataset.masks / f"{path.stem}.npy", read_mask(path, "disc"))
    failed = list(refiner.refine_dataset(source_of(dataset)))
    assert all("several files could be its mask" in str(result.error) for result in failed)
    assert [result.state for result in refiner.refine_dataset(source_of(dataset, format="npy"))] == ["refined"] * 5
    for name in ("no such", "coco-results"):
        with pytest.raises(ConfigError):
            source_of(dataset, format=name)
    assert "npy" in FORMATS


def test_lists_limits_and_shards(dataset: Dataset, tmp_path: Path) -> None:
    whole = [item.stem for item in source_of(dataset)]
    assert whole == list(dataset.stems)
    parts = [[item.stem for item in source_of(dataset).part((index, 3))] for index in (1, 2, 3)]
    assert sorted(stem for part in parts for stem in part) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [item.stem for item in source_of(dataset).part((2, 3), 1)] == parts[1][:1]
    (tmp_path / "list.txt").write_text(f"# a comment\n\n{whole[3]}\n/JPEGImages/{whole[1]}.png\n", "utf-8")
    names = read_list(tmp_path / "list.txt")
    assert [item.stem for item in source_of(dataset, names=names)] == [whole[3], whole[1]]
    plain = tmp_path / "plain"
    plain.mkdir()
    for stem in ("2007_000032", "b"):
        shutil.copy(dataset.images / f"{whole[0]}.png", plain / f"{stem}.jpg")
    lines = ["/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png", "b 3 17"]
    of_voc = DatasetSource.from_folders(plain, dataset.masks, names=lines)
    assert [item.stem for item in of_voc] == ["2007_000032", "b"]


def test_a_file_of_all_images_comes_back_as_one(refiner: Refiner, dataset: Dataset, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    results = []
    for number, stem in enumerate(dataset.stems, start=1):
        for path in (next(dataset.masks.glob(f"{stem}.*")), dataset.images / f"{stem}.png"):
            path.rename(path.with_name(f"{number:012d}{path.suffix}"))
        path = next(dataset.masks.glob(f"{number:012d}.*"))
        for category, mask in ((18, read_mask(path, "disc") > 0.5), (1, np.eye(64) > 0)):
            segmentation = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation["counts"] = segmentation["counts"].decode()
            one = {"image_id": number, "category_id": category, "segmentation": segmentation, "score": 0.75}
            results.append(one)
    results.append({**results[-1], "image_id": 77})
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    table = ClassTable.of_dataset("coco-object")
    source = DatasetSource.from_folders(dataset.images, file, table=table)
    (dataset.images / "000000000005.png").write_bytes(b"broken")
    found = {result.stem: result for result in refiner.refine_dataset(source, dataset.output)}
    assert [result.state for result in found.values()] == [*["refined"] * 4, "failed"]
    back = json.loads((dataset.output / "masks" / "results.json").read_text("utf-8"))
    assert {(one["image_id"], one["category_id"]) for one in back if one["category_id"] == 18} == {
        *((number, 18) for number in range(1, 6))
    }, "also the one that failed, as it came"
    for one in back:
        if one["image_id"] == 2 and one["category_id"] == 18:
            refinement = found["000000000002"].refinement
            assert refinement is not None
            assert np.array_equal(coco.decode(one["segmentation"]) > 0, refinement.probabilities["dog"] >= 0.375)
    assert [one for one in back if one["image_id"] == 77], "an image that is not in the folder, as it came"
    assert set(states(refiner, source, dataset.output).values()) == {"skipped", "failed"}
    results[0]["score"] = 0.5
    file.write_text(json.dumps(results))
    changed = DatasetSource.from_folders(dataset.images, file, table=table)
    assert [*states(refiner, changed, dataset.output).values()] == ["refined", *["skipped"] * 3, "failed"]
