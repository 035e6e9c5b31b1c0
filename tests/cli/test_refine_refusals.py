"""g4seg-refine on a folder with something wrong: files that fail by name, options and places that are refused."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.geometry import load_image

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder, Scene

    Files = Callable[[Path], dict[str, bytes]]


def test_the_records_overwrite_no_input(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.output / "records").mkdir(parents=True)
    classes = folder.output / "records" / "all.jsonl"
    classes.write_text(json.dumps(dict.fromkeys(folder.stems, "disc")), "utf-8")
    text = classes.read_bytes()
    done = refine_here(*folder.arguments(toy_engine, "--classes", classes, "--resume"))
    assert done.code == 1
    assert "it is the input" in done.err
    assert classes.read_bytes() == text


def test_bad_files_are_listed_at_the_end_and_the_rest_is_done(
    refine: Command, toy_engine: Path, folder: Folder
) -> None:
    good = {f"{stem}.png" for stem in folder.stems}
    images, masks = folder.images, folder.masks
    (images / "broken.jpg").write_bytes((images / "a.png").read_bytes()[:200])
    shutil.copy(masks / "a.png", masks / "broken.png")
    shutil.copy(images / "a.png", images / "no-mask.png")
    for name in ("twice.png", "twice.jpg", "small-mask.png", "nan.png", "two-masks.png", "text.png"):
        shutil.copy(images / "a.png", images / name)
    shutil.copy(masks / "a.png", masks / "twice.png")
    Image.new("L", (9, 9)).save(masks / "small-mask.png")
    np.save(masks / "nan.npy", np.full((40, 50), np.nan))
    shutil.copy(masks / "a.png", masks / "two-masks.png")
    np.save(masks / "two-masks.npy", np.zeros((40, 50)))
    (masks / "text.png").write_text("no picture")
    (images / "notes.txt").write_text("ignored")
    (images / ".hidden.png").write_text("ignored")
    done = refine(*folder.arguments(toy_engine, "--class-name", "disc", "--json", folder.root / "r.json"))
    assert done.code == 3
    assert {path.name for path in (folder.output / "probability").iterdir()} == good
    assert {path.name for path in (folder.output / "label").iterdir()} == good
    failures = json.loads((folder.root / "r.json").read_text("utf-8"))["failures"]
    expected = {
        "broken": "broken.jpg",
        "no-mask": "no mask",
        "twice": "several images",
        "small-mask": "9x9",
        "nan": "NaN",
        "two-masks": "several files",
        "text": "text.png",
    }
    assert set(failures) == set(expected)
    for stem, words in expected.items():
        assert words in failures[stem]
        assert len([line for line in done.lines if line.startswith(f"failed: {stem}: ")]) == 1
    assert "11 images: 4 refined, 0 skipped (done before), 7 failed" in done.out
    assert "Traceback" not in done.err


def test_names_that_do_not_fit(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    a, b, d, u = folder.stems
    classes = {a: ["disc", "star"], b: "disc", d: "x" * 60}
    (folder.root / "classes.json").write_text(json.dumps(classes), "utf-8")
    done = refine_here(*folder.arguments(toy_engine, "--classes", folder.root / "classes.json"))
    assert done.code == 3
    failed = {line.split(": ")[1]: line for line in done.lines if line.startswith("failed: ")}
    assert set(failed) == {a, d, u}
    assert "holds one class, not 2" in failed[a]
    assert "tokens" in failed[d]
    assert "--classes" in failed[u]
    done = refine_here(*folder.arguments(toy_engine, "--resume"))
    assert done.code == 3
    assert "give --class-name or --classes" in done.err


def test_a_wrong_ground_truth_fails_its_image_only(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.truth / "a.png").unlink()
    Image.new("L", (3, 3)).save(folder.truth / "b c.png")
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth))
    assert done.code == 3
    assert "warning: 1 images have no ground truth" in done.err
    assert "failed: a: " not in done.err
    assert "the ground truth is 3x3 pixels, its image is 50x41" in done.err
    assert "mean IoU of 2 masks" in done.out


def test_inputs_are_never_overwritten(refine_here: Command, toy_engine: Path, folder: Folder, files_of: Files) -> None:
    (folder.root / "probability").mkdir()
    for stem in folder.stems:
        shutil.copy(folder.masks / f"{stem}.png", folder.root / "probability")
    before = files_of(folder.root)
    done = refine_here(
        *("--engine", toy_engine, "--images", folder.images, "--masks", folder.root / "probability"),
        *("--class-name", "disc", "--output", folder.root),
    )
    assert done.code == 1
    assert "it is the input" in done.err
    assert files_of(folder.root) == before


def test_an_output_without_a_place_fails_its_image_only(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.output / "label" / "b c.png").mkdir(parents=True)
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc"))
    assert done.code == 3
    assert "failed: b c: " in done.err
    assert "not a regular file" in done.err
    assert "3 refined, 0 skipped (done before), 1 failed" in done.out


def test_the_pictures_of_failed_images_are_let_go(
    refine_here: Command, toy_engine: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    held: list[int] = []

    def load(path: Path) -> Any:
        held.append(sum(image() is not None for image in loaded))
        image = load_image(path)
        loaded.append(weakref.ref(image))
        return image

    monkeypatch.setattr("g4seg_trt.dataset.job.load_image", load)
    for number in range(20):
        shutil.copy(folder.images / "a.png", folder.images / f"long{number}.png")
        shutil.copy(folder.masks / "a.png", folder.masks / f"long{number}.png")
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "x" * 60))
    assert done.code == 3
    assert len(loaded) == 24
    assert max(held) < 8


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--limit", 0), 1, "limit is 0, allowed: 1 or more"),
        (("--shard", "3/2"), 2, "the first number goes from 1 to the second"),
        (("--shard", "one"), 2, "expected two numbers such as 1/4"),
        (("--dataset", "voc"), 2, "voc12"),
        (("--dataset", "voc12", "--class-table", "c.txt"), 2, "either --dataset or --class-table"),
        (("--class-table", "no such.txt"), 1, "no such.txt"),
        (("--format", "abacus"), 1, "no mask format is called 'abacus'"),
        (("--format", "coco-results"), 1, "a file of all images: give it to --masks"),
        (("--list", "no such.txt"), 1, "no such.txt: no such file"),
    ],
)
def test_wrong_options_of_a_folder_are_one_line(
    options: tuple[object, ...], code: int, words: str, refine_here: Command, toy_engine: Path, folder: Folder
) -> None:
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", *options))
    assert done.code == code
    assert words in done.lines[-1]
    assert not folder.output.exists()


@pytest.mark.parametrize("option", ["--resume", "--limit=3", "--shard=1/2", "--report", "--compare=pamr"])
def test_options_of_folders_do_not_go_with_one_image(option: str, refine_here: Command, scene: Scene) -> None:
    done = refine_here("--engine", "tiny", "--image", scene.image, "--mask", scene.mask, "--output", "o.png", option)
    assert done.code == 2
    assert f"{option.split('=')[0]} goes with --images" in done.lines[-1]


def test_a_report_among_the_outputs_is_refused(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.output / "label").mkdir(parents=True)
    report = folder.output / "label" / "report.json"
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--json", report))
    assert done.code == 1
    assert "choose another name" in done.err
    assert not report.exists()
