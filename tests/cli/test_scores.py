"""g4seg-refine on what detectors write: hard masks that have a score in place of 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.masks import read_mask

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder, Scene


def test_a_detector_s_mask_with_its_score_is_softened_and_keeps_the_score(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    given = np.where(scene.region, 0.95, 0).astype(np.float32)
    np.save(tmp_path / "mask.npy", given)
    arguments = ("--engine", toy_engine, "--image", scene.image, "--mask", tmp_path / "mask.npy")
    more = ("--class-name", "disc", "--output", tmp_path / "out.npz", "--json", "-")
    done = refine_here(*arguments, *more)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["classes"]["disc"]["softened"] == 0.02
    assert report["warnings"] == []
    refined = read_mask(tmp_path / "out.npz", "disc")
    changed = refined != given
    assert 0 < changed.mean() < 0.5
    assert refined.max() == np.float32(0.95)
    assert (refined[22:26, 28:32] == np.float32(0.95)).all(), "the middle of the disc"
    off = refine_here(*arguments, *more, "--soften", "0")
    report = json.loads(off.out)
    assert report["classes"]["disc"]["softened"] == 0
    assert any("no pixel in the certainty filter" in warning for warning in report["warnings"])


def test_a_detector_s_results_are_refined_by_default(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    results, hard = [], {}
    for number, stem in enumerate(folder.stems):
        region = read_mask(folder.masks / f"{stem}.png", "disc") >= 0.5
        for part in (folder.images, folder.masks):
            (part / f"{stem}.png").rename(part / f"{number:012d}.png")
        code = coco.encode(np.asfortranarray(region.astype(np.uint8)))
        code["counts"] = code["counts"].decode()
        results.append({"image_id": number, "category_id": 20, "segmentation": code, "score": 0.6 + number / 10})
        hard[number] = region
    (folder.root / "res.json").write_text(json.dumps(results))
    arguments = ("--engine", toy_engine, "--images", folder.images, "--masks", folder.root / "res.json")
    more = ("--dataset", "coco-object", "--output", folder.output, "--json", folder.root / "r.json")
    done = refine_here(*arguments, *more)
    assert done.code == 0, done.err
    assert "softened before the update: 4 masks" in done.err
    assert "warning" not in done.err
    report = json.loads((folder.root / "r.json").read_text("utf-8"))
    assert {one["classes"]["sheep"]["softened"] for one in report["images"].values()} == {0.02}
    lines = [json.loads(line) for line in (folder.output / "records" / "all.jsonl").read_text("utf-8").splitlines()]
    recorded = [line["classes"]["sheep"]["softened"] for line in lines if "classes" in line]
    assert recorded == [0.02] * 4
    written: dict[int, Any] = {
        one["image_id"]: one for one in json.loads((folder.output / "masks" / "res.json").read_text())
    }
    for number, region in hard.items():
        assert written[number]["score"] == results[number]["score"]
        after = coco.decode(written[number]["segmentation"]) > 0
        assert 0 < (after != region).sum() < region.sum() / 2, "the outline moved"


def test_g4seg_evaluate_counts_what_a_run_on_results_counts(
    refine_here: Command, run_here: Command, toy_engine: Path, folder: Folder
) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    results = []
    for number, stem in enumerate(folder.stems):
        region = read_mask(folder.masks / f"{stem}.png", "disc") >= 0.5
        truth = np.asarray(Image.open(folder.truth / f"{stem}.png")) > 0
        (folder.images / f"{stem}.png").rename(folder.images / f"{number:012d}.png")
        (folder.truth / f"{stem}.png").unlink()
        Image.fromarray(np.where(truth, 19, 0).astype(np.uint8)).save(folder.truth / f"{number:012d}.png")
        code = coco.encode(np.asfortranarray(region.astype(np.uint8)))
        code["counts"] = code["counts"].decode()
        results.append({"image_id": number, "category_id": 20, "segmentation": code, "score": 0.9})
    (folder.root / "res.json").write_text(json.dumps(results[1:]))
    masks, truths = folder.root / "res.json", ("--dataset", "coco-object", "--ground-truth", folder.truth)
    run = ("--engine", toy_engine, "--images", folder.images, "--masks", masks, "--output", folder.output)
    done = refine_here(*run, *truths, "--json", folder.root / "r.json")
    assert done.code == 0, done.err
    predictions = ("--predictions", folder.output / "label", "--coarse", masks)
    done = run_here("g4seg_trt.cli.evaluate", *predictions, *truths, "--json", folder.root / "e.json")
    assert done.code == 0, done.err
    assert "1 images without results show no class" in done.err
    told, found = (json.loads((folder.root / name).read_text("utf-8")) for name in ("r.json", "e.json"))
    assert found["images"] == 4
    assert {key: found[key] for key in ("figures", "coarse", "gain")} == {
        key: told["evaluation"][key] for key in ("figures", "coarse", "gain")
    }
    assert found["coarse"]["mean_iou"] < 0.8, "the first sheep is missed"
    done = run_here("g4seg_trt.cli.evaluate", "--predictions", masks, *truths, "--json", folder.root / "e.json")
    assert done.code == 0, done.err
    alone = json.loads((folder.root / "e.json").read_text("utf-8"))["figures"]
    assert alone["mean_iou"] == told["evaluation"]["coarse"]["mean_iou"]
