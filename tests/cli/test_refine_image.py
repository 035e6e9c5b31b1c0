"""g4seg-refine on one image: outputs, figures, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import RefineConfig, Refiner, label_map
from g4seg_trt.masks import read_index_png, read_mask, read_masks
from g4seg_trt.matches import NEEDED, class_matches, draw_matches

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Scene


def base(engine: Path, scene: Scene, output: Path) -> list[object]:
    return [
        *("--engine", engine, "--image", scene.image, "--mask", scene.mask, "--class-name", "disc"),
        *("--output", output),
    ]


def test_every_output_of_one_class(refine: Command, toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out put"
    out.mkdir()
    done = refine(
        *base(toy_engine, scene, out / "größe.png"),
        *("--label", out / "label.png", "--overlay", out / "overlay.png", "--json", out / "report.json"),
        *("--ground-truth", scene.truth),
    )
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == {"größe.png", "label.png", "overlay.png", "report.json"}

    with Refiner.from_engine(toy_engine) as refiner:
        refiner.set_image(scene.pixels)
        expected = refiner.refine({"disc": scene.probability}).probabilities["disc"]
    assert np.abs(expected - scene.probability).max() > 0.05
    assert Image.open(out / "größe.png").mode.startswith("I;16")
    np.testing.assert_allclose(read_mask(out / "größe.png", "disc"), expected, atol=1e-5)
    label = np.asarray(Image.open(out / "label.png"))
    assert (label == 255 * label_map([expected])).all()

    report = json.loads((out / "report.json").read_text("utf-8"))
    before, after, truth = scene.probability >= 0.5, label > 0, scene.region
    figures = report["classes"]["disc"]
    assert figures["area_before"] == before.sum()
    assert figures["area_after"] == after.sum()
    assert figures["changed_pixels"] == report["changed_pixels"] == (before != after).sum() > 0
    assert figures["iou_before"] == pytest.approx((before & truth).sum() / (before | truth).sum())
    assert figures["iou_after"] == pytest.approx((after & truth).sum() / (after | truth).sum())
    assert figures["softened"] == 0
    assert report["config"]["beta"] == 0.5, "the engine recommends it"
    assert report["engine"]["model"] == "toy"
    assert len(report["engine"]["manifest_sha256"]) == 64
    assert {"numpy", "onnxruntime", "python"} <= set(report["versions"])
    assert {"read", "open", "unet", "correspondence", "update", "write", "total"} <= set(report["timings"])
    assert report["warnings"] == []

    assert f"IoU {100 * figures['iou_before']:.2f} before, {100 * figures['iou_after']:.2f} after" in done.out
    assert f"overlay: {out / 'overlay.png'}" in done.out
    assert done.lines == ["note: made for tests"]


def test_the_same_run_gives_the_same_bytes(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        arguments = base(toy_engine, scene, tmp_path / f"{name}.npz")
        assert refine_here(*arguments, "--label", tmp_path / f"{name}.png").code == 0
    for suffix in (".npz", ".png"):
        first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
        assert first.read_bytes() == second.read_bytes()


def test_several_classes(refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    np.save(tmp_path / "other=1.npy", scene.probability[::-1, ::-1])
    index = np.where(scene.region, 1, 0).astype(np.uint8)
    index[0] = 255
    index[-5:] = 2
    Image.fromarray(index).save(tmp_path / "truth.png")
    done = refine_here(
        *("--engine", toy_engine, "--image", scene.image, "--output", tmp_path / "out.npz"),
        *("--mask", f"disc={scene.mask}", "--mask", f"traffic light={tmp_path / 'other=1.npy'}"),
        *("--label", tmp_path / "label.png", "--overlay", tmp_path / "overlay.jpg", "--json", "-"),
        *("--ground-truth", tmp_path / "truth.png"),
    )
    assert done.code == 0, done.err
    refined = read_masks(tmp_path / "out.npz")
    assert list(refined) == ["disc", "traffic light"]
    label = read_index_png(tmp_path / "label.png")
    assert (label == label_map(list(refined.values()))).all()
    assert set(np.unique(label)) == {0, 1, 2}
    report = json.loads(done.out)
    assert list(report["classes"]) == ["disc", "traffic light"]
    valid, region = index != 255, index == 1
    after = label == 1
    iou = (after & region & valid).sum() / ((after | region) & valid).sum()
    assert report["classes"]["disc"]["iou_after"] == pytest.approx(iou)
    assert report["iou"]["masks"] == 2
    assert Image.open(tmp_path / "overlay.jpg").format == "JPEG"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_masks_from_arrays_are_the_same_masks(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"mask{suffix}"
    if suffix == ".npy":
        np.save(path, scene.probability)
    else:
        np.savez(path, disc=scene.probability, other=scene.probability * 0)
    assert refine_here(*base(toy_engine, scene, tmp_path / "from-png.npz")).code == 0
    arguments = base(toy_engine, scene, tmp_path / "from-array.npz")
    assert refine_here(*[path if value == scene.mask else value for value in arguments]).code == 0
    assert (tmp_path / "from-png.npz").read_bytes() == (tmp_path / "from-array.npz").read_bytes()


OPTIONS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {"beta": 0.5, "certainty_filter": [0.1, 0.9]}),
    (["--preset", "wsss"], {"beta": 0.9, "certainty_filter": [0.1, 0.9]}),
    (["--preset", "wsss", "--beta", "0.25"], {"beta": 0.25}),
    (["--certainty-filter", "off"], {"certainty_filter": None}),
    (["--certainty-filter", "0.3,0.7"], {"certainty_filter": [0.3, 0.7]}),
    (["--timestep", "200", "--seed", "7"], {"timestep": 200, "seed": 7}),
    (["--emi-self", "0", "--emi-cross", "-2.5"], {"emi_self": 0, "emi_cross": -2.5}),
    (["--soften", "0.1"], {"soften": 0.1}),
    (["--soften", "auto"], {"soften": None}),
    (["--resolution", "pixel"], {"resolution": "pixel"}),
    (["--radius", "0.1"], {"radius": 0.1}),
    (["--radius", "1"], {"radius": 1.0}),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_settings_come_from_options_then_preset_then_engine(
    refine_here: Command,
    toy_engine: Path,
    scene: Scene,
    tmp_path: Path,
    options: list[str],
    expected: dict[str, Any],
) -> None:
    done = refine_here(*base(toy_engine, scene, tmp_path / "out.npz"), *options, "--json", "-")
    config = json.loads(done.out)["config"]
    assert {name: config[name] for name in expected} == expected
    with Refiner.from_engine(toy_engine, config=RefineConfig.from_mapping(config)) as refiner:
        refiner.set_image(scene.pixels)
        refined = refiner.refine({"disc": scene.probability}).probabilities["disc"]
    assert (read_mask(tmp_path / "out.npz", "disc") == refined).all()


def test_background_rules(refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    ground = np.clip(1 - scene.probability, 0, 0.6)
    np.save(tmp_path / "ground.npy", ground)
    labels, injected = {}, {}
    with Refiner.from_engine(toy_engine) as refiner:
        refiner.set_image(scene.pixels)
        for rule in ("constant:0.9", "constant:0.3", "power:2", "channel"):
            masks = {"disc": scene.probability, **({"background": ground} if rule == "channel" else {})}
            injected[rule] = refiner.refine(masks, background=rule).probabilities["disc"]
    assert (injected["constant:0.9"] != injected["constant:0.3"]).any(), "the rule decides where a class is injected"
    for rule in ("constant:0.3", "power:2", "channel"):
        done = refine_here(
            *("--engine", toy_engine, "--image", scene.image, "--mask", f"disc={scene.mask}"),
            *(("--mask", f"background={tmp_path / 'ground.npy'}") if rule == "channel" else ()),
            *("--output", tmp_path / "out.png", "--label", tmp_path / "label.png", "--background", rule),
        )
        assert done.code == 0, done.err
        labels[rule] = read_index_png(tmp_path / "label.png") > 0
        refined = [read_mask(tmp_path / "out.png", "disc")]
        assert np.abs(refined[0] - injected[rule]).max() < 1e-4
        assert (labels[rule] == (label_map(refined, rule, ground) > 0)).all()
    assert (labels["constant:0.3"] != labels["power:2"]).any()
    assert (labels["channel"] != labels["power:2"]).any()


def test_a_hard_mask_is_softened_and_that_is_said(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    arguments = [scene.truth if value == scene.mask else value for value in base(toy_engine, scene, tmp_path / "o.png")]
    done = refine_here(*arguments, "--json", "-")
    assert done.code == 0
    assert json.loads(done.out)["classes"]["disc"]["softened"] == 0.02
    assert [line for line in done.lines if "softened" in line and "disc" in line and "0.02" in line]


@pytest.mark.parametrize("resolution", ["grid", "pixel"])
def test_the_picture_of_the_matches(
    refine: Command, toy_engine: Path, scene: Scene, tmp_path: Path, resolution: str
) -> None:
    out, options = tmp_path / "out", ("--resolution", resolution)
    out.mkdir()
    done = refine(
        *base(toy_engine, scene, out / "p.png"),
        *options,
        *("--matches", out / "lines.png", "--json", out / "report.json"),
    )
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == {"p.png", "lines.png", "report.json"}
    assert f"matches: {out / 'lines.png'}" in done.out
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["outputs"]["matches"] == str(out / "lines.png")
    config = RefineConfig.from_mapping(report["config"])
    with Refiner.from_engine(toy_engine, config=config) as refiner:
        refiner.set_image(scene.pixels)
        masks = {"disc": scene.probability}
        expected = draw_matches(scene.pixels, class_matches(masks, refiner.refine(masks, keep=NEEDED), config))
    with Image.open(out / "lines.png") as picture:
        assert picture.format == "PNG"
        assert (np.asarray(picture) == expected).all()
    assert (expected != expected[..., :1]).any(axis=-1)[:, 486].any(), "lines cross the gap"
    assert refine(*base(toy_engine, scene, tmp_path / "alone.png"), *options).code == 0
    assert (tmp_path / "alone.png").read_bytes() == (out / "p.png").read_bytes()


@pytest.mark.parametrize("resolution", ["grid", "pixel"])
def test_the_picture_of_matches_of_several_classes_and_of_none(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path, resolution: str
) -> None:
    np.save(tmp_path / "ground.npy", 1 - scene.probability)
    np.save(tmp_path / "empty.npy", scene.probability * 0)
    done = refine_here(
        *("--engine", toy_engine, "--image", scene.image, "--output", tmp_path / "out.npz"),
        *("--mask", f"disc={scene.mask}", "--mask", f"nothing={tmp_path / 'empty.npy'}"),
        *("--background", "channel", "--mask", f"background={tmp_path / 'ground.npy'}"),
        *("--matches", tmp_path / "lines.JPG", "--resolution", resolution),
    )
    assert done.code == 0, done.err
    with Image.open(tmp_path / "lines.JPG") as picture:
        assert picture.format == "JPEG"
        assert picture.size == (972, 24 + 2 * (384 + 32))
        gap = np.asarray(picture).astype(int)[24:, 484:488].min(axis=(1, 2))
    assert gap[:384].min() < 128, "lines of the disc"
    assert gap[384 + 32 : -32].min() > 200, "the empty mask has none"


@pytest.mark.parametrize(("level", "word"), [(0, "empty"), (255, "whole")])
def test_empty_and_full_masks_stay_with_a_warning(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path, level: int, word: str
) -> None:
    Image.fromarray(np.full(scene.region.shape, level, np.uint8)).save(tmp_path / "flat.png")
    arguments = base(toy_engine, scene, tmp_path / "out.png")
    arguments = [tmp_path / "flat.png" if value == scene.mask else value for value in arguments]
    done = refine_here(*arguments)
    assert done.code == 0
    assert (read_mask(tmp_path / "out.png", "disc") == level / 255).all()
    assert [line for line in done.lines if line.startswith("warning: ") and word in line]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (30, 900)])
def test_odd_sizes(refine_here: Command, toy_engine: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    values = np.linspace(0, 255, size[0] * size[1]).reshape(size).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    np.save(tmp_path / "mask.npy", values / 255)
    done = refine_here(
        *("--engine", toy_engine, "--image", tmp_path / "image.png", "--mask", tmp_path / "mask.npy"),
        *("--class-name", "thing", "--output", tmp_path / "out.png", "--overlay", tmp_path / "overlay.png"),
        *("--matches", tmp_path / "matches.png"),
    )
    assert done.code == 0, done.err
    assert read_mask(tmp_path / "out.png", "thing").shape == size


def test_a_report_holds_names_that_are_no_unicode(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    odd = tmp_path / "odd\udcff"
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    done = refine_here(*base(toy_engine, scene, odd / "out.png"), "--json", tmp_path / "report.json")
    assert done.code == 0
    assert json.loads((tmp_path / "report.json").read_bytes())["outputs"]["probability"] == str(odd / "out.png")
