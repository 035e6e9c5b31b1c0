"""g4seg-refine on a folder that holds results: what is done again, and what is not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from g4seg_trt.masks import read_mask

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder, Scene

    Files = Callable[[Path], dict[str, bytes]]


def count_of(folder: Path) -> int:
    return sum(1 for path in folder.iterdir() if path.suffix == ".png")


def test_a_second_run_does_only_what_is_missing(
    refine_here: Command, toy_engine: Path, folder: Folder, outputs_of: Files
) -> None:
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth, "--resume")
    first = refine_here(*arguments, "--json", "-")
    whole = outputs_of(folder.output)
    (folder.output / "label" / "a.png").unlink()
    kept = folder.output / "probability" / "b c.png"
    stamp = kept.stat().st_mtime_ns
    second = refine_here(*arguments)
    assert "1 refined, 3 skipped (done before)" in second.out
    assert outputs_of(folder.output) == whole
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
    assert outputs_of(folder.output).items() >= whole.items()


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
    outputs_of: Files,
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
    redone = outputs_of(folder.output)
    assert "4 skipped" in refine_here(*arguments, *options).out
    shutil.rmtree(folder.output)
    assert refine_here(*arguments, *options).code == 0
    assert outputs_of(folder.output) == redone


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
        other.setattr("g4seg_trt.backends.VERSION", "0.0.1")
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
    refine_here: Command, toy_engine: Path, folder: Folder, outputs_of: Files
) -> None:
    assert refine_here(*folder.arguments(toy_engine, "--class-name", "disc")).code == 0
    picture = (folder.images / "a.png").read_bytes()
    (folder.images / "a.png").write_bytes(b"broken")
    box = folder.arguments(toy_engine, "--class-name", "box", "--resume")
    assert "3 refined, 0 skipped (done before), 1 failed" in refine_here(*box).out
    assert not [name for name in outputs_of(folder.output) if "/a." in name], "they were of other inputs"
    (folder.images / "a.png").write_bytes(picture)
    assert "1 refined, 3 skipped" in refine_here(*box).out


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
