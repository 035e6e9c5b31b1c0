"""g4seg-evaluate: figures of files, formats, pairing, and every way in which files can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from g4seg_trt.class_table import ClassTable
from g4seg_trt.evaluate import LabelSpace, SetEvaluation, report_lines
from g4seg_trt.evaluate.pairs import SetFiles
from g4seg_trt.evaluate.predictions import Predictions
from g4seg_trt.masks import label_colours
from g4seg_trt.masks.array import write_npz
from g4seg_trt.update import label_map

Labels = npt.NDArray[np.uint8]
Command = Callable[..., Any]

STEMS = ("2007_000032", "b c", "d.e", "übung")
IDS = (1, 15)
NAMES = ("aeroplane", "person")


def save(path: Path, labels: npt.NDArray[Any], *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if palette:
        picture.putpalette(label_colours(256).tobytes())
    picture.save(path)


def scene(seed: int) -> tuple[npt.NDArray[np.float32], Labels]:
    """Probabilities of the two classes [2,H,W], and the true labels; sizes differ."""
    height, width = 30 + seed, 41 - seed
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    away = np.stack([np.hypot(rows - 12, columns - 12 - seed), np.hypot(rows - 20, columns - 26)])
    probabilities = np.round(1 / (1 + np.exp(away - 8)), 3).astype(np.float32)
    near = np.hypot(rows - 12, columns - 11) < 8
    truth = np.where(near, 1, np.where(np.hypot(rows - 21, columns - 27) < 7, 15, 0)).astype(np.uint8)
    truth[np.abs(np.hypot(rows - 12, columns - 11) - 8.5) < 0.5] = 255
    return probabilities, truth


@dataclass(frozen=True)
class DataSet:
    """Label pictures, probabilities and ground truth of four images with two classes of VOC12."""

    root: Path

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def probabilities(self) -> Path:
        return self.root / "probabilities"

    @property
    def truth(self) -> Path:
        return self.root / "truth"

    def arguments(self, predictions: Path | None = None, *more: object) -> list[object]:
        given = ["--predictions", predictions or self.labels, "--ground-truth", self.truth]
        return [*given, *([] if "--class-table" in more else ["--dataset", "voc12"]), *more]


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    made = DataSet(tmp_path / "data set")
    made.root.mkdir()
    made.probabilities.mkdir()
    for seed, stem in enumerate(STEMS):
        probabilities, truth = scene(seed)
        save(made.truth / f"{stem}.png", truth, palette=True)
        labels = np.array([0, *IDS], np.uint8)[label_map(probabilities)]
        save(made.labels / f"{stem}.png", labels, palette=seed % 2 == 0)
        write_npz(made.probabilities / f"{stem}.npz", dict(zip(NAMES, probabilities, strict=True)))
    return made


@pytest.fixture
def evaluate(run_here: Command, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """evaluate(*arguments) -> how the command ended, and its report ({} without one)."""

    def run(*arguments: object) -> tuple[Any, dict[str, Any]]:
        file = tmp_path / "report.json"
        file.unlink(missing_ok=True)
        done = run_here("g4seg_trt.cli.evaluate", *arguments, "--json", file)
        return done, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    return run


def expected(threshold: str = "constant:0.5") -> SetEvaluation:
    evaluation = SetEvaluation(ClassTable.of_dataset("voc12"))
    for seed in range(len(STEMS)):
        probabilities, truth = scene(seed)
        evaluation.add(np.array([0, *IDS], np.uint8)[label_map(probabilities, threshold)], truth)
    return evaluation


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("dataset", "images", "mean_over", "figures", "coarse", "gain")}


def as_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "import sys; from g4seg_trt.cli.evaluate import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


def test_the_command_as_a_process(data: DataSet) -> None:
    done = as_process(*data.arguments())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == report_lines(expected().summary())
    assert "taken for: 2007_000032.png: index-png" in done.stderr
    done = as_process(*data.arguments(None, "--json", "-"))
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert figures_of(report) == expected().summary()
    assert report["command"] == "g4seg-evaluate"
    assert (report["missing"], report["failures"], report["warnings"], report["sweep"]) == ({}, {}, [], None)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_do_not_change_the_figures(data: DataSet, evaluate: Any, workers: int) -> None:
    _, report = evaluate(*data.arguments(None, "--workers", workers))
    assert figures_of(report) == expected().summary()


@pytest.mark.parametrize("rule", [None, "constant:0.3", "power:2"])
def test_probabilities_are_decided_by_the_rule(data: DataSet, evaluate: Any, rule: str | None) -> None:
    more = [] if rule is None else ["--background", rule]
    done, report = evaluate(*data.arguments(data.probabilities, *more))
    assert done.code == 0, done.err
    assert figures_of(report) == expected(rule or "constant:0.5").summary()


def test_other_formats_give_the_same(data: DataSet, evaluate: Any, tmp_path: Path) -> None:
    folders, clip_es, both = tmp_path / "folders", tmp_path / "clip_es", tmp_path / "both"
    for folder in (folders, clip_es, both):
        folder.mkdir()
    for seed, stem in enumerate(STEMS):
        probabilities, _ = scene(seed)
        for name, probability in zip(NAMES, probabilities, strict=True):
            save(folders / stem / f"{name}.png", np.rint(probability * 65535).astype(np.uint16))
        content = {"keys": np.array(IDS) - 1, "attn_highres": probabilities}
        np.save(clip_es / f"{stem}.npy", np.array(content, dtype=object), allow_pickle=True)
        if seed % 2:
            (both / f"{stem}.npz").write_bytes((data.probabilities / f"{stem}.npz").read_bytes())
        else:
            (both / f"{stem}.png").write_bytes((data.labels / f"{stem}.png").read_bytes())
    _, by_folder = evaluate(*data.arguments(folders))
    assert figures_of(by_folder) == expected().summary()
    done, by_dict = evaluate(*data.arguments(clip_es))
    assert figures_of(by_dict) == expected("power:1").summary()
    assert "clip-es" in done.err
    _, by_dict = evaluate(*data.arguments(clip_es, "--background", "constant:0.5"))
    assert figures_of(by_dict) == expected().summary()
    done, mixed = evaluate(*data.arguments(both))
    assert figures_of(mixed) == expected().summary()
    assert len(mixed["taken_for"]) == 2


def test_a_file_of_the_whole_data_set(evaluate: Any, tmp_path: Path) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    results = []
    truth = np.zeros((20, 30), np.uint8)
    truth[2:9, 4:20] = 1
    truth[12:18, 4:20] = 80
    for image, stem in ((139, "COCO_val2014_000000000139"), (7, "COCO_val2014_000000000007")):
        save(tmp_path / "truth" / f"{stem}_instanceTrainIds.png", truth)
        for number, category in ((1, 1), (80, 90)):
            code = mask.encode(np.asfortranarray((truth == number).astype(np.uint8)))
            segmentation = {"size": list(code["size"]), "counts": code["counts"].decode()}
            results.append({"image_id": image, "category_id": category, "segmentation": segmentation, "score": 0.9})
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    done, report = evaluate(
        *("--predictions", tmp_path / "results.json", "--ground-truth", tmp_path / "truth"),
        *("--dataset", "coco-object", "--ground-truth-suffix", "_instanceTrainIds"),
    )
    assert done.code == 0, done.err
    assert (report["images"], report["figures"]["mean_iou"]) == (2, 1.0)


def test_what_a_refinement_gained(data: DataSet, evaluate: Any) -> None:
    done, report = evaluate(
        *data.arguments(data.labels, "--coarse", data.probabilities, "--background", "constant:0.2")
    )
    assert done.code == 0, done.err
    evaluation = SetEvaluation(ClassTable.of_dataset("voc12"))
    for seed in range(len(STEMS)):
        probabilities, truth = scene(seed)
        coarse, refined = (
            np.array([0, *IDS], np.uint8)[label_map(probabilities, rule)] for rule in ("constant:0.2", "constant:0.5")
        )
        evaluation.add_gain(coarse, refined, truth)
    assert figures_of(report) == evaluation.summary()
    assert done.out.splitlines() == report_lines(evaluation.summary())
    assert report["gain"]["strata"][-1]["masks"] == 8


def test_the_best_of_a_sweep_stands_apart(data: DataSet, evaluate: Any) -> None:
    done, report = evaluate(*data.arguments(data.probabilities, "--sweep", "constant:0.1:0.9:0.1"))
    assert done.code == 0, done.err
    assert figures_of(report) == expected().summary()
    alone = [expected(f"constant:{n / 10}").summary()["figures"]["mean_iou"] for n in range(1, 10)]
    assert [rule["mean_iou"] for rule in report["sweep"]["rules"]] == alone
    assert report["sweep"]["best"]["mean_iou"] == max(alone) > report["figures"]["mean_iou"]
    best = f"constant:{(alone.index(max(alone)) + 1) / 10}"
    assert f"best of the sweep, chosen on the ground truth: {best} with mean IoU" in done.out


def test_means_over_other_classes(data: DataSet, evaluate: Any) -> None:
    for over in ("present", "ground-truth", "all"):
        _, report = evaluate(*data.arguments(None, "--mean-over", over))
        assert figures_of(report) == expected().summary(over)


def test_a_table_of_ones_own(data: DataSet, evaluate: Any, tmp_path: Path) -> None:
    table = tmp_path / "classes.json"
    table.write_text('[{"id": 1, "name": "aeroplane"}, {"id": 15, "name": "person"}]', encoding="utf-8")
    for dataset in ([], ["--dataset", "custom"]):
        done, report = evaluate(*data.arguments(data.probabilities, "--class-table", table, *dataset))
        assert done.code == 0, done.err
        assert [one["name"] for one in report["figures"]["classes"]] == ["background", *NAMES]
        assert report["figures"]["mean_iou"] == expected().summary()["figures"]["mean_iou"]


@pytest.mark.parametrize("dataset", ["context59", "ade20k"])
def test_without_background_0_does_not_count(dataset: str, evaluate: Any, tmp_path: Path) -> None:
    truth = np.zeros((6, 6), np.uint8)
    truth[:3], truth[3] = 1, 2
    names = [entry.name for entry in ClassTable.of_dataset(dataset).classes[:2]]
    # The second class is the likelier one from the fourth row on, though nowhere above 0.5.
    maps = np.stack([np.full((6, 6), 0.3, np.float32), np.zeros((6, 6), np.float32)])
    maps[1, 3:] = 0.4
    (tmp_path / "p").mkdir()
    write_npz(tmp_path / "p" / "a.npz", dict(zip(names, maps, strict=True)))
    save(tmp_path / "t" / "a.png", truth)
    done, report = evaluate("--predictions", tmp_path / "p", "--ground-truth", tmp_path / "t", "--dataset", dataset)
    assert done.code == 0, done.err
    assert (report["figures"]["mean_iou"], report["figures"]["pixels"]) == (1.0, 24)
    save(tmp_path / "l" / "a.png", np.zeros((6, 6), np.uint8))
    _, report = evaluate("--predictions", tmp_path / "l", "--ground-truth", tmp_path / "t", "--dataset", dataset)
    assert (report["figures"]["mean_iou"], report["figures"]["unlabelled_pixels"]) == (0.0, 24)


def test_only_the_images_of_a_list(data: DataSet, evaluate: Any, tmp_path: Path) -> None:
    listed = tmp_path / "split.txt"
    listed.write_text("2007_000032 0 14\nb c\n\n/JPEGImages/d.e.jpg /SegmentationClassAug/d.e.png\n", encoding="utf-8")
    (data.labels / "übung.png").unlink()
    done, report = evaluate(*data.arguments(None, "--list", listed))
    assert done.code == 0, done.err
    assert report["images"] == 3
    listed.write_text("2007_000032\ngone\n", encoding="utf-8")
    done, _ = evaluate(*data.arguments(None, "--list", listed))
    assert done.code == 1
    assert "no prediction of 1 images (gone); no ground truth of 1 images (gone)" in done.lines[-1]


def test_missing_files_are_an_error_or_left_out(data: DataSet, evaluate: Any) -> None:
    (data.labels / "b c.png").unlink()
    (data.truth / "d.e.png").unlink()
    done, report = evaluate(*data.arguments())
    assert (done.code, report) == (1, {})
    assert "no prediction of 1 images (b c); no ground truth of 1 images (d.e): give --list" in done.lines[-1]
    done, report = evaluate(*data.arguments(None, "--allow-missing"))
    assert done.code == 0
    assert report["missing"] == {"prediction": ["b c"], "ground truth": ["d.e"]}
    assert report["images"] == 2
    assert "warning: no prediction of 1 images (b c)" in done.err
    done, _ = evaluate(*data.arguments(data.truth, "--coarse", data.labels, "--allow-missing"))
    assert done.code == 0
    assert "no coarse masks of 1 images (b c)" in done.err


def test_bad_files_are_listed_and_the_others_counted(data: DataSet, evaluate: Any) -> None:
    save(data.labels / "2007_000032.png", np.zeros((5, 5), np.uint8))
    save(data.labels / "b c.png", np.full(scene(1)[1].shape, 21, np.uint8))
    (data.labels / "d.e.png").write_bytes((data.labels / "d.e.png").read_bytes()[:60])
    done, report = evaluate(*data.arguments())
    assert done.code == 3
    assert report["images"] == 1
    assert list(report["failures"]) == ["2007_000032", "b c", "d.e"]
    assert "failed: 2007_000032: the prediction is 5x5 pixels, its ground truth is 41x30" in done.err
    assert "failed: b c: the prediction has the value 21, voc12 has 0 to 20, and 255 for no label" in done.err
    assert "d.e.png: damaged picture" in report["failures"]["d.e"]
    only = SetEvaluation(ClassTable.of_dataset("voc12"))
    only.add(np.array([0, *IDS], np.uint8)[label_map(scene(3)[0])], scene(3)[1])
    assert figures_of(report) == only.summary()


def test_when_every_file_is_bad_there_are_no_figures(data: DataSet, evaluate: Any) -> None:
    done, report = evaluate(*data.arguments(data.probabilities, "--background", "channel"))
    assert done.code == 3
    assert len(report["failures"]) == 4
    assert "mean IoU: n/a over 0 of 21 classes" in done.out
    assert all("channel needs" in message for message in report["failures"].values())


def test_masks_of_one_class_are_no_label_pictures(data: DataSet, evaluate: Any, tmp_path: Path) -> None:
    for seed, stem in enumerate(STEMS):
        save(data.labels / f"{stem}.png", (scene(seed)[1] == 1).astype(np.uint8) * np.uint8(255))
        save(tmp_path / "truth" / f"{stem}.png", (scene(seed)[1] == 1).astype(np.uint8))
    done, report = evaluate(*data.arguments())
    assert done.code == 0
    assert "warning: " in done.err
    assert "only 255, which means no label" in report["warnings"][0]
    table = tmp_path / "one.txt"
    table.write_text("thing\n", encoding="utf-8")
    one = ["--predictions", data.labels, "--class-table", table, "--format", "png"]
    done, report = evaluate(*one, "--ground-truth", tmp_path / "truth")
    assert done.code == 0, done.err
    assert (report["figures"]["mean_iou"], report["warnings"]) == (1.0, [])
    done, report = evaluate(*one, "--ground-truth", data.labels)
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
def test_wrong_options_are_one_line(data: DataSet, run_here: Command, more: list[str], code: int, message: str) -> None:
    done = run_here("g4seg_trt.cli.evaluate", *data.arguments(None, *more))
    assert done.code == code
    assert message in done.lines[-1]
    assert "Traceback" not in done.err
    assert done.out == ""


def test_the_classes_must_be_given(data: DataSet, run_here: Command) -> None:
    given = ["--predictions", data.labels, "--ground-truth", data.truth]
    for more, message in (
        ([], "give --dataset, or --class-table"),
        (["--dataset", "custom"], "give --dataset, or --class-table"),
        (["--dataset", "voc12", "--class-table", "x"], "voc12 has a table of its own"),
    ):
        done = run_here("g4seg_trt.cli.evaluate", *given, *more)
        assert done.code == 2
        assert message in done.lines[-1]


def test_unusable_folders_are_one_line(data: DataSet, run_here: Command, tmp_path: Path) -> None:
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
        (data.probabilities / f"{STEMS[0]}.npz", "is the masks of one image; give the folder that it is in"),
    ):
        done = run_here("g4seg_trt.cli.evaluate", *data.arguments(folder))
        assert done.code == 1
        assert message in done.lines[-1]
        assert "Traceback" not in done.err


def test_an_interruption_ends_the_reading() -> None:
    read = []

    def one(stem: str) -> Labels:
        read.append(stem)
        return np.zeros((1, 1), np.uint8)

    def stop() -> None:
        raise KeyboardInterrupt

    stems = [str(number) for number in range(500)]
    predictions = Predictions(Path("p"), stems, one, (), labels_only=True)
    table = ClassTable.of_dataset("voc12")
    assert LabelSpace.of(table).ids[0] == 0
    with pytest.raises(KeyboardInterrupt):
        SetFiles(table, predictions, {stem: Path("none") for stem in stems}).evaluate(stems, workers=1, done=stop)
    assert len(read) < 500
