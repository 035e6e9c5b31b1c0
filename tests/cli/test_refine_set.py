"""g4seg-refine on a folder with a ground truth: figures of the set, comparisons, the page that shows them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.masks import read_index_png

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder


@pytest.fixture
def voc(folder: Folder) -> Folder:
    """Label pictures with ids of PASCAL VOC: sheep and a tv monitor, whose truth is cut; one image lacks the sheep."""
    for number, stem in enumerate(folder.stems):
        coarse = np.asarray(Image.open(folder.masks / f"{stem}.png")) > 127
        true = np.asarray(Image.open(folder.truth / f"{stem}.png")) > 0
        labels, truth = (np.where(region, 17, 0).astype(np.uint8) for region in (coarse, true))
        labels[:6, :20] = truth[:6, 5 + number : 20] = 20
        truth[-2:] = 255
        if number == 2:
            labels[labels == 17] = 0
        if number == 3:
            labels[10:12, :5] = 255
        Image.fromarray(labels).save(folder.masks / f"{stem}.png")
        Image.fromarray(truth).save(folder.truth / f"{stem}.png")
    return folder


def figures_in(out: str) -> list[str]:
    """The lines from the data set's own on to the last class."""
    lines = out.splitlines()
    start = next(place for place, line in enumerate(lines) if "pixels that count" in line)
    return lines[start : next(place for place, line in enumerate(lines) if line.startswith("probability: "))]


def test_the_end_of_a_run_says_what_g4seg_evaluate_says(
    refine_here: Command, run_here: Command, toy_engine: Path, voc: Folder
) -> None:
    options = ("--dataset", "voc12", "--ground-truth", voc.truth, "--resume", "--json", voc.root / "r.json")
    done = refine_here(*voc.arguments(toy_engine, *options))
    assert done.code == 0, done.err
    evaluated = run_here(
        "g4seg_trt.cli.evaluate",
        *("--predictions", voc.output / "label", "--coarse", voc.masks, "--ground-truth", voc.truth),
        *("--dataset", "voc12", "--json", voc.root / "e.json"),
    )
    assert evaluated.code == 0, evaluated.err
    assert figures_in(done.out) == evaluated.out.splitlines()
    reports = [json.loads((voc.root / name).read_text("utf-8")) for name in ("r.json", "e.json")]
    expected = {key: reports[1][key] for key in ("dataset", "images", "mean_over", "figures", "coarse", "gain")}
    assert reports[0]["evaluation"] == expected
    assert expected["gain"]["missed"] == 1

    stem = voc.stems[1]
    (voc.output / "label" / f"{stem}.png").unlink()
    for other in set(voc.stems) - {stem}:  # nothing of these is opened again, only hashed
        path = voc.output / "label" / f"{other}.png"
        path.write_bytes(b"\0" * path.stat().st_size)
    again = refine_here(*voc.arguments(toy_engine, *options))
    assert "1 refined, 3 skipped" in again.out
    assert figures_in(again.out) == figures_in(done.out)


def test_a_ground_truth_of_0_and_255_says_nothing_about_classes(
    refine_here: Command, toy_engine: Path, folder: Folder
) -> None:
    for stem in folder.stems:
        true = np.asarray(Image.open(folder.truth / f"{stem}.png")) > 0
        Image.fromarray(true.astype(np.uint8) * np.uint8(255)).save(folder.truth / f"{stem}.png")
    options = ("--class-name", "sheep", "--dataset", "voc12", "--ground-truth", folder.truth)
    done = refine_here(*folder.arguments(toy_engine, *options))
    assert done.code == 0, done.err
    assert "warning: no pixel of the ground truth has a class" in done.err


def test_the_terminal_has_the_first_warnings_about_images_and_the_report_more(
    refine_here: Command, toy_engine: Path, folder: Folder
) -> None:
    for number in range(21):
        stem = f"more {number:02d}"
        Image.new("RGB", (40, 30)).save(folder.images / f"{stem}.png")
        Image.new("L", (40, 30)).save(folder.masks / f"{stem}.png")
    report = folder.root / "r.json"
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--format", "png", "--json", report))
    assert done.code == 0, done.err
    assert [line.split(":")[1].strip() for line in done.err.splitlines() if "is empty" in line] == [
        f"more {number:02d}" for number in range(20)
    ]
    assert f"warning: 1 more, see {folder.output / 'records'}" in done.err
    assert len(json.loads(report.read_text("utf-8"))["warnings"]) == 21


def test_without_a_table_classes_are_told_by_their_names(
    refine_here: Command, toy_engine: Path, folder: Folder
) -> None:
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth))
    lines = figures_in(done.out)
    assert lines[0].startswith("the classes given: 4 images, ")
    assert [line.split()[:2] for line in lines[-2:]] == [["0", "background"], ["1", "disc"]]
    union = both = 0
    for stem in folder.stems:
        label = read_index_png(folder.output / "label" / f"{stem}.png") > 0
        true = np.asarray(Image.open(folder.truth / f"{stem}.png")) > 0
        union, both = union + int((label | true).sum()), both + int((label & true).sum())
    assert f"{100 * both / union:.2f}" in lines[-1].split()


def test_a_comparison_is_printed_and_nothing_of_it_is_written(
    refine_here: Command, toy_engine: Path, voc: Folder, files_of: Any
) -> None:
    options = ("--dataset", "voc12", "--ground-truth", voc.truth)
    compare = (*options, "--compare", "pamr", "--resume", "--json", voc.root / "r.json")
    assert refine_here(*voc.arguments(toy_engine, *options)).code == 0
    before = {name: data for name, data in files_of(voc.output).items() if "records" not in name}
    done = refine_here(*voc.arguments(toy_engine, *compare))
    assert "4 refined, 0 skipped" in done.out, "the records did not know it"
    after = {name: data for name, data in files_of(voc.output).items() if "records" not in name}
    assert before == after
    again = refine_here(*voc.arguments(toy_engine, *compare))
    assert "0 refined, 4 skipped" in again.out
    assert figures_in(again.out) == figures_in(done.out)
    table = [re.split(r"  +", line.strip()) for line in figures_in(done.out)[-4:]]
    assert [row[0] for row in table] == ["coarse", "refined", "coarse + pamr", "refined + pamr"]
    compared = json.loads((voc.root / "r.json").read_text("utf-8"))["compared"]
    # Each row is what a run of its own says.
    alone = {}
    for row, more in (
        ("refined", ("--engine", toy_engine)),
        ("coarse + pamr", ("--no-refine", "--post", "pamr")),
        ("refined + pamr", ("--engine", toy_engine, "--post", "pamr")),
    ):
        output = voc.root / row
        run = refine_here(
            *("--images", voc.images, "--masks", voc.masks, "--output", output, *options, *more, "--json", "-")
        )
        assert run.code == 0, run.err
        alone[row] = json.loads(run.out)["evaluation"]
        for key in ("mean_iou", "pixel_accuracy"):
            assert compared[row]["figures"][key] == alone[row]["figures"][key], row
        assert compared[row]["gain"] == alone[row]["gain"], row
    assert compared["coarse"]["figures"]["mean_iou"] == alone["refined"]["coarse"]["mean_iou"]
    assert alone["coarse + pamr"] != alone["refined + pamr"]


def test_a_page_shows_also_what_was_done_before(refine_here: Command, toy_engine: Path, voc: Folder) -> None:
    (voc.images / "broken.png").write_bytes(b"no picture")
    Image.new("L", (50, 40)).save(voc.masks / "broken.png")
    Image.new("L", (50, 40)).save(voc.truth / "broken.png")
    options = ("--dataset", "voc12", "--ground-truth", voc.truth, "--resume", "--report")
    assert refine_here(*voc.arguments(toy_engine, *options, "--limit", "2")).code == 0
    done = refine_here(*voc.arguments(toy_engine, *options, "--post", "pamr"))
    done = refine_here(*voc.arguments(toy_engine, *options, "--post", "pamr"))
    assert done.code == 3, done.err
    assert "0 refined, 4 skipped" in done.out
    page = (voc.output / "report.html").read_text("utf-8")
    for stem in voc.stems:
        assert f'<b class="name">{stem}</b>' in page
    assert page.count('alt="ground truth"') == 4
    assert "broken" in page
    assert "not a picture" in page
    assert "pamr" in page
    assert "tvmonitor" in page
    assert "Gain by the IoU of the coarse mask" in page
    elsewhere = refine_here(*voc.arguments(toy_engine, *options[:-1], "--report", voc.output / "label" / "r.html"))
    assert elsewhere.code == 1
    assert "choose another name" in elsewhere.err


def test_a_page_is_written_also_of_a_run_that_was_ended(toy_engine: Path, folder: Folder) -> None:
    for number in range(60):
        for part in (folder.images, folder.masks):
            (part / f"z{number}.png").write_bytes((part / "a.png").read_bytes())
    program = "import sys; from g4seg_trt.cli.refine import main; sys.exit(main())"
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--report", "--threads", "1")
    run = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list((folder.output / "label").glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=100)
    assert run.returncode == 130, err
    labels = len(list((folder.output / "label").glob("*.png")))
    assert 0 < labels < 64, "there was time to end it"
    page = (folder.output / "report.html").read_text("utf-8")
    assert page.count('alt="changed"') == labels
    assert "without a ground truth" in page


def test_crf_alone_needs_no_engine(refine: Command, folder: Folder) -> None:
    pytest.importorskip("pydensecrf")
    done = refine(
        *("--images", folder.images, "--masks", folder.masks, "--class-name", "disc", "--output", folder.output),
        *("--no-refine", "--post", "crf:psa", "--ground-truth", folder.truth, "--json", folder.root / "r.json"),
    )
    assert done.code == 0, done.err
    report = json.loads((folder.root / "r.json").read_text("utf-8"))
    assert (report["engine"], report["config"], report["post"]) == (None, None, "crf:psa")
    assert report["evaluation"]["images"] == 4
    assert set(report["timings"]) == {"open", "post", "write", "total"}, "no network"
    assert "4 processed, 0 skipped" in done.out
    lines = [json.loads(line) for line in (folder.output / "records" / "all.jsonl").read_text("utf-8").splitlines()]
    assert lines[1]["key"]["engine_sha256"] == ""


def test_what_is_missing_is_said_before_anything_is_written(
    refine_here: Command, toy_engine: Path, folder: Folder
) -> None:
    for option in ("--post", "--compare"):
        done = refine_here(
            *folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth, option, "blur")
        )
        assert done.code == 1
        assert "post-processing 'blur', allowed: crf" in done.lines[-1]
        assert not folder.output.exists()
