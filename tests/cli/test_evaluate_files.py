"""g4seg-evaluate: which files belong together, and every way in which files and options can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_trt.class_table import ClassTable
from g4seg_trt.evaluate import SetEvaluation
from g4seg_trt.evaluate.pairs import SetFiles
from g4seg_trt.evaluate.predictions import Predictions
from g4seg_trt.masks.array import write_npz
from tests.cli.evaluation import STEMS, DataSet, Labels, figures_of, labels_of, save, scene

Command = Callable[..., Any]


def test_only_the_images_of_a_list(voc: DataSet, evaluate: Any, tmp_path: Path) -> None:
    listed = tmp_path / "split.txt"
    (voc.labels / "übung.png").unlink()
    for lines in (
        "2007_000032 0 14\nb c\n\n/JPEGImages/d.e.jpg /SegmentationClassAug/d.e.png\n",
        "# Windows\nD:\\VOC\\JPEGImages\\2007_000032.jpg\nJPEGImages\\b c.jpg\nd.e 1\n",
        "photos/2007_000032.JPEG\nmy photos/b c.png\nphotos/d.e\n",
    ):
        listed.write_text(lines, encoding="utf-8")
        done, report = evaluate(*voc.arguments(None, "--list", listed))
        assert done.code == 0, done.err
        assert report["images"] == 3
    for lines, message in (
        ("2007_000032\ngone\n", "no prediction of 1 images (gone); no ground truth of 1 images (gone)"),
        ("b c\nd.e\nphotos/b c.jpg\n", "the list of images has 'b c' twice: as 'b c' and as 'photos/b c.jpg'"),
    ):
        listed.write_text(lines, encoding="utf-8")
        done, _ = evaluate(*voc.arguments(None, "--list", listed))
        assert done.code == 1
        assert message in done.lines[-1]


def test_missing_files_are_an_error_or_left_out(voc: DataSet, evaluate: Any) -> None:
    (voc.labels / "b c.png").unlink()
    (voc.truth / "d.e.png").unlink()
    done, report = evaluate(*voc.arguments())
    assert (done.code, report) == (1, {})
    assert "no prediction of 1 images (b c); no ground truth of 1 images (d.e): give --list" in done.lines[-1]
    done, report = evaluate(*voc.arguments(None, "--allow-missing"))
    assert done.code == 0
    assert report["missing"] == {"prediction": ["b c"], "ground truth": ["d.e"]}
    assert report["images"] == 2
    assert "warning: no prediction of 1 images (b c)" in done.err
    done, _ = evaluate(*voc.arguments(voc.truth, "--coarse", voc.labels, "--allow-missing"))
    assert done.code == 0
    assert "no coarse masks of 1 images (b c)" in done.err


def test_bad_files_are_listed_and_the_others_counted(voc: DataSet, evaluate: Any) -> None:
    save(voc.labels / "2007_000032.png", np.zeros((5, 5), np.uint8))
    save(voc.labels / "b c.png", np.full(scene(1)[1].shape, 21, np.uint8))
    (voc.labels / "d.e.png").write_bytes((voc.labels / "d.e.png").read_bytes()[:60])
    done, report = evaluate(*voc.arguments())
    assert done.code == 3
    assert report["images"] == 1
    assert list(report["failures"]) == ["2007_000032", "b c", "d.e"]
    assert "failed: 2007_000032: the prediction is 5x5 pixels, its ground truth is 41x30" in done.err
    assert "failed: b c: the prediction has the value 21, voc12 has 0 to 20, and 255 for no label" in done.err
    assert "d.e.png: damaged picture" in report["failures"]["d.e"]
    only = SetEvaluation(ClassTable.of_dataset("voc12"))
    only.add(labels_of(3), scene(3)[1])
    assert figures_of(report) == only.summary()


def test_when_every_file_is_bad_there_are_no_figures(voc: DataSet, evaluate: Any) -> None:
    done, report = evaluate(*voc.arguments(voc.probabilities, "--background", "channel"))
    assert done.code == 3
    assert len(report["failures"]) == 4
    assert "mean IoU: n/a over 0 of 21 classes" in done.out
    assert all("channel needs" in message for message in report["failures"].values())


def test_masks_of_one_class_are_no_label_pictures(voc: DataSet, evaluate: Any, tmp_path: Path) -> None:
    for seed, stem in enumerate(STEMS):
        save(voc.labels / f"{stem}.png", (scene(seed)[1] == 1).astype(np.uint8) * np.uint8(255))
        save(tmp_path / "truth" / f"{stem}.png", (scene(seed)[1] == 1).astype(np.uint8))
    done, report = evaluate(*voc.arguments())
    assert done.code == 0
    assert "warning: " in done.err
    assert "only 255, which means no label" in report["warnings"][0]
    table = tmp_path / "one.txt"
    table.write_text("thing\n", encoding="utf-8")
    one = ["--predictions", voc.labels, "--class-table", table, "--format", "png"]
    done, report = evaluate(*one, "--ground-truth", tmp_path / "truth")
    assert done.code == 0, done.err
    assert (report["figures"]["mean_iou"], report["warnings"]) == (1.0, [])
    done, report = evaluate(*one, "--ground-truth", voc.labels)
    assert done.code == 0
    assert "no pixel of the ground truth has a class" in report["warnings"][0]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--sweep", "constant:0.1:0.5:0.1"], 1, "holds label pictures, which are decided already"),
        (["--background", "constant:0.4"], 1, "holds label pictures, which are decided already"),
        (["--background", "half"], 1, "background rule 'half', allowed: constant:T"),
        (["--sweep", "constant:1"], 1, "allowed: KIND:FROM:TO:STEP"),
        (["--class-table", "none.json"], 1, "none.json"),
        (["--list", "none.txt"], 1, "none.txt: no such file"),
        (["--coarse", "none"], 1, "none: no such folder of predictions"),
        (["--ground-truth-suffix", "_gt"], 1, "holds none of the ground truth pictures, whose names end in _gt"),
        (["--format", "photo"], 1, "no mask format is called 'photo'"),
        (["--json", "none/report.json"], 1, "the folder none does not exist"),
        (["--workers", "0"], 2, "--workers 0: expected 1 or more"),
        (["--mean-over", "some"], 2, "invalid choice: 'some'"),
    ],
)
def test_wrong_options_are_one_line(voc: DataSet, run_here: Command, more: list[str], code: int, message: str) -> None:
    done = run_here("g4seg_trt.cli.evaluate", *voc.arguments(None, *more))
    assert done.code == code
    assert message in done.lines[-1]
    assert "Traceback" not in done.err
    assert done.out == ""


def test_the_classes_must_be_given(voc: DataSet, run_here: Command) -> None:
    given = ["--predictions", voc.labels, "--ground-truth", voc.truth]
    for more, message in (
        ([], "give --dataset, or --class-table"),
        (["--dataset", "custom"], "give --dataset, or --class-table"),
        (["--dataset", "voc12", "--class-table", "x"], "voc12 has a table of its own"),
    ):
        done = run_here("g4seg_trt.cli.evaluate", *given, *more)
        assert done.code == 2
        assert message in done.lines[-1]


def test_unusable_folders_are_one_line(voc: DataSet, run_here: Command, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    twice = tmp_path / "twice"
    save(twice / "b c.png", np.zeros((2, 2), np.uint8))
    write_npz(twice / "b c.npz", {"person": np.zeros((2, 2), np.float32)})
    strange = tmp_path / "strange"
    save(strange / "x.png", np.zeros((2, 2), np.uint8))
    for folder, message in (
        (empty, "holds none of the predictions"),
        (tmp_path / "none", "no such folder of predictions"),
        (twice, "b c.npz and b c.png are both predictions of 'b c'"),
        (strange, "no image has all of prediction, ground truth"),
        (voc.probabilities / f"{STEMS[0]}.npz", "is the masks of one image; give the folder that it is in"),
    ):
        done = run_here("g4seg_trt.cli.evaluate", *voc.arguments(folder))
        assert done.code == 1
        assert message in done.lines[-1]
        assert "Traceback" not in done.err


def test_an_interruption_ends_the_reading(tmp_path: Path) -> None:
    read = []

    def one(stem: str, *_: object) -> Labels:
        read.append(stem)
        return np.zeros((1, 1), np.uint8)

    def stop() -> None:
        raise KeyboardInterrupt

    save(tmp_path / "truth.png", np.zeros((1, 1), np.uint8))
    stems = [str(number) for number in range(500)]
    files = SetFiles(
        ClassTable.of_dataset("voc12"),
        Predictions(Path("p"), stems, one, (), frozenset(stems)),
        dict.fromkeys(stems, tmp_path / "truth.png"),
    )
    with pytest.raises(KeyboardInterrupt):
        files.evaluate(stems, workers=1, done=stop)
    assert 0 < len(read) < 500
