"""g4seg-refine on a folder: layouts, resuming, bad files, means."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.geometry import load_image
from g4seg_trt.masks import read_index_png, read_mask, read_masks

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder, Scene

    Files = Callable[[Path], dict[str, bytes]]


def count_of(folder: Path) -> int:
    return sum(1 for path in folder.iterdir() if path.suffix == ".png")


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
    assert f"{100 * np.mean(ious):.1f} after" in done.out
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


def outputs_of(folder: Folder, files_of: Files) -> dict[str, bytes]:
    """The outputs of the images, without records and lock."""
    return {
        name: data for name, data in files_of(folder.output).items() if name.split("/")[0] not in (".lock", "records")
    }


def test_a_second_run_does_only_what_is_missing(
    refine_here: Command, toy_engine: Path, folder: Folder, files_of: Files
) -> None:
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth, "--resume")
    first = refine_here(*arguments, "--json", "-")
    whole = outputs_of(folder, files_of)
    (folder.output / "label" / "a.png").unlink()
    kept = folder.output / "probability" / "b c.png"
    stamp = kept.stat().st_mtime_ns
    second = refine_here(*arguments)
    assert "1 refined, 3 skipped (done before)" in second.out
    assert outputs_of(folder, files_of) == whole
    assert kept.stat().st_mtime_ns == stamp
    third = refine_here(*arguments, "--json", "-")
    assert third.code == 0
    assert json.loads(third.out)["skipped"] == 4
    assert json.loads(third.out)["iou"] == json.loads(first.out)["iou"], "what is done counts in the means"
    with_pictures = refine_here(*arguments, "--overlay")
    assert "4 refined" in with_pictures.out, "an output that is asked for is missing"
    (folder.output / "overlay" / "a.png").unlink()
    with_lines = refine_here(*arguments, "--matches")
    assert "4 refined" in with_lines.out
    assert f"matches: {folder.output / 'matches'}" in with_lines.out
    assert {path.stem for path in (folder.output / "matches").iterdir()} == set(folder.stems)
    assert not (folder.output / "overlay" / "a.png").exists(), "not asked for"
    assert (folder.output / "overlay" / "b c.png").exists(), "still true of the same inputs"
    assert "4 skipped" in refine_here(*arguments, "--matches").out
    assert outputs_of(folder, files_of).items() >= whole.items()


def test_results_are_gone_on_with_only_when_that_is_asked_for(
    refine_here: Command, toy_engine: Path, folder: Folder, files_of: Files
) -> None:
    arguments = folder.arguments(toy_engine, "--class-name", "disc")
    assert refine_here(*arguments, "--limit", 2).code == 0
    whole = files_of(folder.output)
    done = refine_here(*arguments)
    assert done.code == 1
    assert len(done.lines) == 1
    assert "holds results of an earlier run: go on with --resume, or choose another --output" in done.err
    assert files_of(folder.output) == whole
    assert "4 images: 2 refined, 2 skipped" in refine_here(*arguments, "--resume").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--beta", 0.25), "beta 0.5, now 0.25"),
        (("--certainty-filter", "off"), "certainty_filter [0.1, 0.9], now null"),
        (("--background", "power:2"), "background the masks' own, now power:2"),
        (("--radius", 0.25), "radius null, now 0.25"),
        (("--seed", 3, "--emi-self", 0), "emi_self 0.3, now 0.0; seed 0, now 3"),
        (("--engine", "other"), "engine manifest sha256 "),
    ],
)
def test_results_of_another_run_are_not_taken_for_this_one_s(
    options: tuple[object, ...],
    words: str,
    refine_here: Command,
    toy_engine: Path,
    folder: Folder,
    files_of: Files,
) -> None:
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--resume")
    assert refine_here(*arguments).code == 0
    if "other" in options:
        options = ("--engine", shutil.copytree(toy_engine, folder.root / "other"))
        manifest = json.loads((folder.root / "other" / "manifest.json").read_text("utf-8"))
        manifest["note"] = "another"
        (folder.root / "other" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    done = refine_here(*arguments, *options)
    assert done.code == 0
    assert f"settings changed ({words}" in done.err
    assert "4 refined, 0 skipped" in done.out
    what = "engine" if "--engine" in options else "settings"
    assert f"done again: 4 for another {what}" in done.err
    redone = outputs_of(folder, files_of)
    assert "4 skipped" in refine_here(*arguments, *options).out
    shutil.rmtree(folder.output)
    assert refine_here(*arguments, *options).code == 0
    assert outputs_of(folder, files_of) == redone


@pytest.mark.parametrize("record", [None, "", "[]", '{"stem": "a"}', "\x00\xff"])
def test_results_of_unknown_origin_are_not_resumed(
    record: str | None, refine_here: Command, toy_engine: Path, folder: Folder, files_of: Files
) -> None:
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--resume")
    assert refine_here(*arguments).code == 0
    (folder.output / "records" / "all.jsonl").unlink()
    if record is not None:
        (folder.output / "records" / "all.jsonl").write_text(record, "latin-1")
    whole = files_of(folder.output)
    done = refine_here(*arguments)
    assert done.code == 1
    assert len(done.lines) == 1
    assert "no records to go on from: choose another --output" in done.err
    assert files_of(folder.output) == whole


def test_another_version_s_results_are_not_resumed(
    refine_here: Command, toy_engine: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--resume")
    with monkeypatch.context() as other:
        other.setattr("g4seg_trt.refiner.VERSION", "0.0.1")
        assert refine_here(*arguments).code == 0
    done = refine_here(*arguments)
    assert "settings changed (version 0.0.1, now " in done.err
    assert "4 refined" in done.out


def test_images_whose_classes_changed_are_done_again(
    refine_here: Command, toy_engine: Path, folder: Folder, files_of: Files
) -> None:
    a, b, d, u = folder.stems
    classes = folder.root / "classes.json"
    both = read_mask(folder.masks / f"{d}.png", "disc")
    (folder.masks / f"{d}.png").unlink()
    np.savez(folder.masks / f"{d}.npz", disc=both, star=both[::-1])
    arguments = folder.arguments(toy_engine, "--classes", classes, "--resume")
    classes.write_text(json.dumps({a: "disc", b: "disc", d: ["disc", "star"], u: "disc"}), "utf-8")
    assert refine_here(*arguments, "--overlay", "--matches").code == 0
    old = files_of(folder.output)
    classes.write_text(json.dumps({a: "disc", b: "box", d: "star", u: "disc"}), "utf-8")
    done = refine_here(*arguments)
    assert "2 refined, 2 skipped (done before)" in done.out, done.err
    assert "done again: 2 for another masks" in done.err
    new = files_of(folder.output)
    assert new[f"probability/{b}.png"] != old[f"probability/{b}.png"], "another word, another result"
    assert f"probability/{d}.npz" not in new
    assert f"probability/{d}.png" in new
    assert f"overlay/{d}.png" not in new, "no picture of the old classes stays"
    assert f"matches/{d}.png" not in new
    assert all(new[name] == old[name] for name in old if f"/{a}." in name or f"/{u}." in name)
    assert "4 skipped" in refine_here(*arguments).out
    # Without names on the command line those in the archive count.
    for stem in (a, b, u):
        (folder.images / f"{stem}.png").unlink()
    from_archive = folder.arguments(toy_engine, "--resume")
    assert "1 refined" in refine_here(*from_archive).out
    assert "1 skipped" in refine_here(*from_archive).out
    np.savez(folder.masks / f"{d}.npz", disc=both)
    assert "1 refined" in refine_here(*from_archive).out


def test_what_changed_is_not_forgotten_when_the_redo_fails(
    refine_here: Command, toy_engine: Path, folder: Folder, files_of: Files
) -> None:
    assert refine_here(*folder.arguments(toy_engine, "--class-name", "disc")).code == 0
    picture = (folder.images / "a.png").read_bytes()
    (folder.images / "a.png").write_bytes(b"broken")
    box = folder.arguments(toy_engine, "--class-name", "box", "--resume")
    assert "3 refined, 0 skipped (done before), 1 failed" in refine_here(*box).out
    assert not [name for name in outputs_of(folder, files_of) if "/a." in name], "they were of other inputs"
    (folder.images / "a.png").write_bytes(picture)
    assert "1 refined, 3 skipped" in refine_here(*box).out


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


def test_a_missing_ground_truth_fails_its_image_only(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.truth / "a.png").unlink()
    Image.new("L", (3, 3)).save(folder.truth / "b c.png")
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth))
    assert done.code == 3
    assert "failed: a: no ground truth" in done.err
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


def test_an_interrupt_ends_cleanly_and_the_next_run_goes_on(
    refine_here: Command, toy_engine: Path, folder: Folder, scene: Scene
) -> None:
    count = 120
    for number in range(count):
        shutil.copy(scene.image, folder.images / f"more{number}.png")
        shutil.copy(scene.mask, folder.masks / f"more{number}.png")
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--overlay")
    # Jobs that a shell puts into the background ignore interrupts, and their children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}; import sys; from g4seg_trt.cli.refine import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    label = folder.output / "label"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if label.is_dir() and count_of(label) > 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "ending after what is in flight" in err
    assert "Traceback" not in err
    assert not list(folder.output.rglob("*.part"))
    done_first = count_of(label)
    assert 3 < done_first < count
    assert f"{count + 4} images: {done_first} refined, 0 skipped (done before), 0 failed" in out
    assert f"interrupted: {done_first} of {count + 4} images are done, go on with --resume" in err.splitlines()[-1]
    done = refine_here(*arguments, "--resume")
    assert done.code == 0
    assert f"{done_first} skipped" in done.out
    assert count_of(folder.output / "overlay") == count + len(folder.stems)


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


def test_what_each_file_is_taken_for_is_said_once(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    a, b, *_ = folder.stems
    np.savez(folder.masks / f"{b}.npz", disc=read_mask(folder.masks / f"{b}.png", "disc"))
    (folder.masks / f"{b}.png").unlink()
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--json", folder.root / "r.json"))
    told = [line for line in done.err.splitlines() if "masks: " in line]
    assert len([line for line in told if f"masks: {a}.png: png (" in line]) == 1
    assert len([line for line in told if f"masks: {b}.npz: npz (" in line]) == 1
    assert "masks: 3 png, 1 npz" in told[-1]
    assert json.loads((folder.root / "r.json").read_text("utf-8"))["masks"] == {"png": 3, "npz": 1}


def test_a_report_among_the_outputs_is_refused(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.output / "label").mkdir(parents=True)
    report = folder.output / "label" / "report.json"
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--json", report))
    assert done.code == 1
    assert "choose another name" in done.err
    assert not report.exists()
