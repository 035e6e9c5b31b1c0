"""g4seg-refine on a folder: what a run gives, whatever its masks lie in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.masks import read_index_png, read_mask, read_masks

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder


def test_a_folder_gives_what_single_runs_give(
    refine: Command, refine_here: Command, toy_engine: Path, folder: Folder, tmp_path: Path
) -> None:
    options = ("--batch-size", 3)
    done = refine(
        *folder.arguments(toy_engine, "--classes", folder.root / "classes.json", "--overlay", "--matches", *options),
        *("--ground-truth", folder.truth, "--json", folder.root / "report.json"),
    )
    assert done.code == 0, done.err
    report = json.loads((folder.root / "report.json").read_text("utf-8"))
    assert (report["count"], report["refined"], report["skipped"]) == (4, 4, 0)
    ious = []
    for stem in folder.stems:
        single = refine_here(
            *("--engine", toy_engine, "--image", folder.images / f"{stem}.png", "--class-name", "disc"),
            *("--mask", folder.masks / f"{stem}.png", "--output", tmp_path / "p.png", *options),
            *("--label", tmp_path / "l.png", "--overlay", tmp_path / "o.png", "--json", "-"),
            *("--matches", tmp_path / "m.png"),
            *("--ground-truth", folder.truth / f"{stem}.png"),
        )
        for part, name in (("probability", "p"), ("label", "l"), ("overlay", "o"), ("matches", "m")):
            together = (folder.output / part / f"{stem}.png").read_bytes()
            assert together == (tmp_path / f"{name}.png").read_bytes(), (part, stem)
        alone = json.loads(single.out)["classes"]
        assert report["images"][stem]["classes"] == alone
        ious.append(alone["disc"]["iou_after"])
    assert report["iou"]["masks"] == 4
    assert report["iou"]["after"] == pytest.approx(np.mean(ious))
    assert f"{100 * np.mean(ious):.2f} after" in done.out
    assert "4 images: 4 refined, 0 skipped (done before), 0 failed" in done.out
    assert done.err.count("note: made for tests") == 1
    assert "4/4" in done.err, "the progress bar"


def test_every_layout_of_masks(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    a, b, d, u = folder.stems
    single = read_mask(folder.masks / f"{b}.png", "disc")
    (folder.masks / f"{b}.png").unlink()
    np.savez(folder.masks / f"{b}.npz", disc=single, star=single[::-1])
    both = read_mask(folder.masks / f"{d}.png", "disc")
    (folder.masks / d).mkdir()
    (folder.masks / f"{d}.png").rename(folder.masks / d / "disc.png")
    np.save(folder.masks / d / "traffic light.npy", both[:, ::-1])
    np.save(folder.masks / f"{u}.npy", read_mask(folder.masks / f"{u}.png", "disc"))
    (folder.masks / f"{u}.png").unlink()
    classes = {a: "disc", b: ["star", "disc"], d: ["disc", "traffic light"], u: "disc"}
    (folder.root / "classes.json").write_text(json.dumps(classes), "utf-8")
    done = refine_here(*folder.arguments(toy_engine, "--classes", folder.root / "classes.json"))
    assert done.code == 0, done.err
    names = sorted(path.name for path in (folder.output / "probability").iterdir())
    assert names == sorted([f"{a}.png", f"{b}.npz", f"{d}.npz", f"{u}.png"])
    assert list(read_masks(folder.output / "probability" / f"{b}.npz")) == ["star", "disc"]
    label = read_index_png(folder.output / "label" / f"{b}.png")
    assert set(np.unique(label)) == {0, 1, 2}

    shutil.rmtree(folder.output)
    (folder.masks / f"{a}.png").unlink()
    (folder.masks / f"{u}.npy").unlink()
    (folder.images / f"{a}.png").unlink()
    (folder.images / f"{u}.png").unlink()
    done = refine_here(*folder.arguments(toy_engine))
    assert done.code == 0, "archives and folders bring their own names"
    assert list(read_masks(folder.output / "probability" / f"{d}.npz")) == ["disc", "traffic light"]

    shutil.rmtree(folder.output)
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc"))
    assert done.code == 0
    assert {path.suffix for path in (folder.output / "probability").iterdir()} == {".png"}


def test_the_background_channel_is_found_beside_the_classes(
    refine_here: Command, toy_engine: Path, folder: Folder
) -> None:
    for stem in folder.stems:
        mask = read_mask(folder.masks / f"{stem}.png", "disc")
        (folder.masks / f"{stem}.png").unlink()
        np.savez(folder.masks / f"{stem}.npz", disc=mask, background=np.full_like(mask, 0.7))
    options = ("--background", "channel", "--class-name", "disc")
    done = refine_here(*folder.arguments(toy_engine, *options))
    assert done.code == 0, done.err
    for stem in folder.stems:
        single = folder.root / "single.png"
        archive = folder.masks / f"{stem}.npz"
        alone = refine_here(
            *("--engine", toy_engine, "--image", folder.images / f"{stem}.png", "--background", "channel"),
            *("--mask", f"disc={archive}", "--mask", f"background={archive}", "--output", single),
        )
        assert alone.code == 0, alone.err
        assert single.read_bytes() == (folder.output / "probability" / f"{stem}.png").read_bytes()
        refined = read_mask(single, "disc")
        label = read_index_png(folder.output / "label" / f"{stem}.png")
        assert ((label > 0) == (refined >= 0.7)).mean() > 0.999  # 16 bits may fall on the other side


@pytest.mark.parametrize("layout", ["index", "folder", "npz"])
def test_ground_truth_of_several_classes(refine_here: Command, toy_engine: Path, folder: Folder, layout: str) -> None:
    for stem in folder.stems:
        mask = read_mask(folder.masks / f"{stem}.png", "disc")
        truth = read_mask(folder.truth / f"{stem}.png", "disc") > 0
        (folder.masks / f"{stem}.png").unlink()
        (folder.truth / f"{stem}.png").unlink()
        np.savez(folder.masks / f"{stem}.npz", disc=mask, star=mask * 0)
        corner = np.zeros_like(truth)
        corner[:3, :3] = True
        if layout == "index":
            Image.fromarray(truth + 2 * corner.astype(np.uint8)).save(folder.truth / f"{stem}.png")
        elif layout == "npz":
            np.savez(folder.truth / f"{stem}.npz", disc=truth, star=corner)
        else:
            (folder.truth / stem).mkdir()
            Image.fromarray(truth).save(folder.truth / stem / "disc.png")
            np.save(folder.truth / stem / "star.npy", corner)
    done = refine_here(*folder.arguments(toy_engine, "--ground-truth", folder.truth, "--json", "-"))
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["iou"]["masks"] == 8
    assert all(image["classes"]["star"]["iou_after"] == 0 for image in report["images"].values())
    assert all(image["classes"]["disc"]["iou_before"] > 0.3 for image in report["images"].values())


def test_what_each_file_is_taken_for_is_said_once(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    a, b, *_ = folder.stems
    np.savez(folder.masks / f"{b}.npz", disc=read_mask(folder.masks / f"{b}.png", "disc"))
    (folder.masks / f"{b}.png").unlink()
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--json", folder.root / "r.json"))
    told = [line for line in done.err.splitlines() if "masks: " in line]
    assert len([line for line in told if f"masks: {a}.png: png (" in line]) == 1
    assert len([line for line in told if f"masks: {b}.npz: npz (" in line]) == 1
    assert "masks: 1 npz, 3 png" in told[-1]
    assert json.loads((folder.root / "r.json").read_text("utf-8"))["masks"] == {"png": 3, "npz": 1}
