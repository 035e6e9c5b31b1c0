"""g4seg-refine on one image with masks of other people's formats, class tables and post-processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import Refiner
from g4seg_trt.masks import read_index_png, read_mask, read_masks
from g4seg_trt.postprocess import Pamr
from g4seg_trt.update import BackgroundRule, label_map

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Scene


def clip_es(scene: Scene, path: Path) -> Path:
    """A dict of sheep (index 16) and tv monitor (19)."""
    maps = np.stack([scene.probability, scene.probability[::-1, ::-1]]).astype(np.float16)
    content: Any = {"keys": np.array([16, 19]), "attn_highres": maps}
    np.save(path, content)
    return path


def test_a_file_that_says_its_classes_needs_only_the_table(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    mask = clip_es(scene, tmp_path / "mask.npy")
    truth = np.where(scene.region, 17, 0).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "truth.png")
    arguments = ("--engine", toy_engine, "--image", scene.image, "--mask", mask, "--dataset", "voc12")
    done = refine_here(
        *(*arguments, "--output", tmp_path / "out.npz", "--label", tmp_path / "label.png", "--json", "-"),
        *("--ground-truth", tmp_path / "truth.png", "--overlay", tmp_path / "overlay.png"),
    )
    assert done.code == 0, done.err
    assert [line for line in done.lines if line.startswith("masks: mask.npy: clip-es (")]
    given = np.load(mask, allow_pickle=True).item()["attn_highres"].astype(np.float32)
    with Refiner.from_engine(toy_engine) as refiner:
        refiner.set_image(scene.pixels)
        expected = refiner.refine(dict(zip(("sheep", "tv monitor"), given, strict=True)), background="power:1")
    refined = read_masks(tmp_path / "out.npz")
    assert list(refined) == ["sheep", "tvmonitor"]
    assert np.array_equal(refined["tvmonitor"], expected.probabilities["tv monitor"])
    places = label_map(list(refined.values()), "power:1")
    assert (read_index_png(tmp_path / "label.png") == np.array([0, 17, 20])[places]).all()
    sheep, region = places == 1, scene.region
    iou = (sheep & region).sum() / (sheep | region).sum()
    assert json.loads(done.out)["classes"]["sheep"]["iou_after"] == pytest.approx(iou)

    back = refine_here(*arguments, "--output", tmp_path / "back.npy")
    assert back.code == 0, back.err
    content = np.load(tmp_path / "back.npy", allow_pickle=True).item()
    assert content["keys"].tolist() == [16, 19]
    assert np.array_equal(content["attn_highres"][1], refined["tvmonitor"].astype(np.float16))

    other = refine_here(*arguments, "--output", tmp_path / "back.mat")
    assert other.code == 1
    assert "written as .png (one class) or .npz, or as .npy as the mask came" in other.lines[-1]
    nameless = refine_here(*(one for one in arguments if one not in ("--dataset", "voc12")), "--output", "o.npz")
    assert nameless.code == 1
    assert "--dataset" in nameless.lines[-1]


def test_a_label_picture_of_several_classes(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    labels = np.where(scene.region, 17, 0).astype(np.uint8)
    labels[:5] = 20
    labels[-1] = 255
    Image.fromarray(labels).save(tmp_path / "labels.png")
    done = refine_here(
        *("--engine", toy_engine, "--image", scene.image, "--mask", tmp_path / "labels.png", "--dataset", "voc12"),
        *("--output", tmp_path / "out.npz", "--label", tmp_path / "label.png"),
    )
    assert done.code == 0, done.err
    assert list(read_masks(tmp_path / "out.npz")) == ["sheep", "tvmonitor"]
    label = read_index_png(tmp_path / "label.png")
    assert (label[-1] == 255).all()
    assert {17, 20} <= set(np.unique(label))


def test_the_format_that_is_asked_for(refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    few = (scene.region * np.uint8(100)).astype(np.uint8)
    few[0] = 50
    Image.fromarray(few).save(tmp_path / "few.png")
    mask = ("--mask", tmp_path / "few.png", "--class-name", "disc")
    arguments = ("--engine", toy_engine, "--image", scene.image, *mask, "--output", tmp_path / "out.png")
    unclear = refine_here(*arguments)
    assert unclear.code == 1
    assert "--format png or --format index-png" in unclear.lines[-1]
    assert refine_here(*arguments, "--format", "png").code == 0


def test_a_file_of_all_images(refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    segmentation = coco.encode(np.asfortranarray(scene.region.astype(np.uint8)))
    segmentation["counts"] = segmentation["counts"].decode()
    one = {"image_id": 7, "category_id": 20, "segmentation": segmentation, "score": 1.0}
    (tmp_path / "results.json").write_text(json.dumps([one, {**one, "image_id": 8}]))
    image = tmp_path / "000000000007.png"
    image.write_bytes(scene.image.read_bytes())
    arguments = ("--engine", toy_engine, "--mask", tmp_path / "results.json", "--dataset", "coco-object")
    done = refine_here(*arguments, "--image", image, "--output", tmp_path / "out.png")
    assert done.code == 0, done.err
    assert read_mask(tmp_path / "out.png", "sheep").shape == scene.region.shape
    other = refine_here(*arguments, "--image", scene.image, "--output", tmp_path / "out.png")
    assert other.code == 1
    assert "no mask: " in other.lines[-1]


@pytest.mark.parametrize("engine", [True, False], ids=["refined", "alone"])
def test_post_processing(refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path, engine: bool) -> None:
    arguments = ("--image", scene.image, "--mask", scene.mask, "--class-name", "disc")
    steps = ("--engine", toy_engine) if engine else ("--no-refine",)
    done = refine_here(*arguments, *steps, "--output", tmp_path / "out.npz", "--post", "pamr", "--json", "-")
    assert done.code == 0, done.err
    given = scene.probability
    if engine:
        assert refine_here(*arguments, *steps, "--output", tmp_path / "plain.npz").code == 0
        given = read_mask(tmp_path / "plain.npz", "disc")
    expected = Pamr().apply(scene.pixels, given[None], BackgroundRule())[0]
    assert np.array_equal(read_mask(tmp_path / "out.npz", "disc"), expected)
    report = json.loads(done.out)
    assert report["post"] == "pamr"
    assert "post" in report["timings"]
    assert (report["engine"] is None) == (not engine)


def test_an_array_comes_back_as_an_array(refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", scene.probability.astype(np.float64))
    arguments = ("--engine", toy_engine, "--image", scene.image, "--class-name", "disc")
    array = ("--mask", tmp_path / "mask.npy")
    assert refine_here(*arguments, *array, "--output", tmp_path / "out.npy").code == 0
    assert refine_here(*arguments, *array, "--output", tmp_path / "out.npz").code == 0
    back = np.load(tmp_path / "out.npy")
    assert back.dtype == np.float64
    assert np.array_equal(back, read_mask(tmp_path / "out.npz", "disc"))
    assert not np.array_equal(back, scene.probability)
    picture = refine_here(*arguments, "--mask", scene.mask, "--output", tmp_path / "other.npy")
    assert picture.code == 1
    assert picture.lines[-1].endswith("probabilities are written as .png (one class) or .npz")
    assert refine_here(*arguments, "--mask", scene.mask, "--output", tmp_path / "out.png").code == 0
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode.startswith("I"), "16 bits, whatever came in"


def test_a_folder_of_classes_comes_back_as_a_folder(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    mask = tmp_path / "im.age"
    mask.mkdir()
    (mask / "disc.png").write_bytes(scene.mask.read_bytes())
    np.save(mask / "star.npy", scene.probability[::-1].astype(np.float16))
    arguments = ("--engine", toy_engine, "--image", scene.image, "--mask", mask, "--output")
    assert refine_here(*arguments, tmp_path / "out.npz").code == 0
    refined = read_masks(tmp_path / "out.npz")
    done = refine_here(*arguments, tmp_path / "out")
    assert done.code == 0, done.err
    assert f"probability: {tmp_path / 'out'}" in done.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["disc.png", "star.npy"]
    assert np.array_equal(np.load(tmp_path / "out" / "star.npy"), refined["star"].astype(np.float16))
    assert np.abs(read_mask(tmp_path / "out" / "disc.png", "disc") - refined["disc"]).max() < 0.51 / 255
    for path, words in (
        (tmp_path / "out", "it exists and is not a regular file"),
        (mask, "it exists and is not a regular file"),
        (mask / "disc.png", "it is the input"),
        (tmp_path / "out.age", "or as a folder (no suffix) as the mask came"),
    ):
        refused = refine_here(*arguments, path)
        assert refused.code == 1
        assert words in refused.lines[-1]
    assert sorted(path.name for path in mask.iterdir()) == ["disc.png", "star.npy"]
