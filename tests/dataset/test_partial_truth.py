"""A ground truth of some of the images, of others than before, or of none: what is measured, said and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import DatasetSource, InputError, Refiner
from g4seg_trt.cli.refine import main
from g4seg_trt.cli.tally import MOST_WARNINGS, Tally
from g4seg_trt.dataset.measures import ClassFigures
from g4seg_trt.dataset.result import Result
from g4seg_trt.evaluate import NamedEvaluation
from g4seg_trt.evaluate.confusion import MOST_CLASSES
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.refinement import Refinement

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Capture = pytest.CaptureFixture[str]
    Lines = Callable[[Path], list[dict[str, object]]]


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def command(dataset: Dataset, *more: object) -> int:
    arguments = ["--engine", "tiny", "--threads", 1, "--images", dataset.images, "--masks", dataset.masks]
    arguments += ["--class-name", "disc", "--output", dataset.output, *more]
    return main([str(argument) for argument in arguments])


def test_images_without_a_ground_truth_are_refined_and_left_out(dataset: Dataset, capsys: Capture) -> None:
    for number in (0, 3):
        (dataset.truth / f"{dataset.stems[number]}.png").unlink()
    assert command(dataset, "--ground-truth", dataset.truth, "--json", dataset.root / "report.json") == 0
    told = capsys.readouterr()
    assert "5 images: 5 refined, 0 skipped (done before), 0 failed" in told.out
    assert "mean IoU of 3 masks" in told.out
    expected = f"2 images have no ground truth in {dataset.truth}: not evaluated (im 000, im 003)"
    assert [line for line in told.err.splitlines() if "ground truth" in line] == [f"warning: {expected}"]
    report = json.loads((dataset.root / "report.json").read_bytes())
    assert report["evaluation"]["images"] == 3
    assert report["warnings"][0] == expected
    assert report["images"]["im 000"]["classes"]["disc"]["iou_after"] is None
    assert report["images"]["im 001"]["classes"]["disc"]["iou_after"] is not None
    assert command(dataset, "--ground-truth", dataset.truth, "--resume") == 0
    assert "5 skipped" in capsys.readouterr().out


def test_a_broken_or_doubtful_ground_truth_is_a_failure(refiner: Refiner, dataset: Dataset) -> None:
    (dataset.truth / "im 000.png").unlink()
    (dataset.truth / "im 001.png").write_bytes(b"no picture")
    np.save(dataset.truth / "im 002.npy", np.zeros((64, 64), np.float32))
    results = list(refiner.refine_dataset(source_of(dataset, truth=dataset.truth), dataset.output))
    assert [result.state for result in results] == ["refined", "failed", "failed", "refined", "refined"]
    assert "im 001.png" in str(results[1].error)
    assert "several files could be its ground truth: im 002.npy, im 002.png" in str(results[2].error)
    assert results[0].counts is None


def test_a_ground_truth_of_no_image_is_a_mistake(dataset: Dataset) -> None:
    other = dataset.root / "other"
    other.mkdir()
    Image.new("L", (64, 64)).save(other / "no such image.png")
    with pytest.raises(InputError, match="other: holds no ground truth of any of the 5 images"):
        source_of(dataset, truth=other)


def test_what_nobody_asks_for_is_not_told(refiner: Refiner, dataset: Dataset) -> None:
    list(refiner.refine_dataset(source_of(dataset, truth=dataset.truth), dataset.output))
    for result in refiner.refine_dataset(source_of(dataset), dataset.output, resume=True):
        assert result.state == "skipped"
        figures = result.classes["disc"]
        assert (figures.iou_before, figures.iou_after) == (None, None)
        assert figures.area_after > 0
        assert result.counts is None
    (dataset.truth / "im 002.png").unlink()
    results = list(refiner.refine_dataset(source_of(dataset, truth=dataset.truth), dataset.output, resume=True))
    assert [result.classes["disc"].iou_after is None for result in results] == [False, False, True, False, False]


def test_another_ground_truth_is_measured_once(
    refiner: Refiner, dataset: Dataset, lines_of: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(dataset, truth=dataset.truth)
    list(refiner.refine_dataset(source, dataset.output))
    before = {line["stem"]: line for line in lines_of(dataset.output) if "stem" in line}
    for path in dataset.truth.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [(result.state, result.remeasured) for result in second] == [("skipped", True)] * 5

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("g4seg_trt.dataset.done.read_done", never)
    third = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [(result.state, result.remeasured) for result in third] == [("skipped", False)] * 5
    assert [result.classes for result in third] == [result.classes for result in second]
    assert [result.counts for result in third] == [result.counts for result in second]
    after = {line["stem"]: line for line in lines_of(dataset.output) if "stem" in line}
    figures = ("classes", "counts", "truth_sha256")
    for stem, line in after.items():
        assert {name for name in line if line[name] != before[stem][name]} == {*figures}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("classes", "size", "changed_pixels", "warnings")),
        ("classes", {"disc": {}}),
        ("classes", {"disc": {"iou_before": 1}}),
        ("classes", {"disc": "disc"}),
        ("size", []),
        ("size", [0, 64]),
        ("size", ["a", "b"]),
        ("size", 64),
        ("changed_pixels", 4097),
        ("warnings", "none"),
        ("warnings", [3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("measured", [False, True], ids=["", "measured"])
def test_an_image_whose_record_was_changed_by_hand_is_done_again(
    measured: bool, name: str, value: object, dataset: Dataset, capsys: Capture
) -> None:
    more = ("--ground-truth", dataset.truth) if measured else ()
    assert command(dataset, *more) == 0
    change(dataset, name, value)
    capsys.readouterr()
    assert command(dataset, *more, "--resume", "--report", dataset.root / "report.html") == 0
    assert "5 images: 1 refined, 4 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("value", [None, {}, {"refined": {}}, {"refined": {"pixels": 3, "boundary": {}}}, 7], ids=str)
def test_counts_that_were_changed_by_hand_matter_to_who_asks_for_them(
    value: object, dataset: Dataset, capsys: Capture
) -> None:
    assert command(dataset, "--ground-truth", dataset.truth) == 0
    change(dataset, "counts", value)
    capsys.readouterr()
    assert command(dataset, "--resume") == 0
    assert "5 images: 0 refined, 5 skipped" in capsys.readouterr().out
    assert command(dataset, "--ground-truth", dataset.truth, "--resume") == 0
    assert "5 images: 1 refined, 4 skipped" in capsys.readouterr().out


def change(dataset: Dataset, name: str, value: object) -> None:
    """In the record of the second image."""
    path = dataset.output / "records" / "all.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        if line.get("stem") == dataset.stems[1]:
            line[name] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_class_names_are_one_or_several(dataset: Dataset) -> None:
    classes = {"im 000": "disc", "im 001": ["disc", "cat"], "im 002": ("disc",)}
    source = DatasetSource.from_folders(dataset.images, dataset.masks, classes=classes)
    names = [source.naming(f"im 00{number}").names for number in range(3)]
    assert names == [("disc",), ("disc", "cat"), ("disc",)]


def test_why_there_are_no_figures_is_said(dataset: Dataset, capsys: Capture) -> None:
    evaluation = NamedEvaluation()
    assert (evaluation.summary(), evaluation.missing) == (None, "no image was evaluated")
    names = [f"class {number}" for number in range(MOST_CLASSES + 1)]
    for name in names:
        if name == names[-1]:
            assert evaluation.missing == ""
        counts = NamedCounts({(name, name): 1})
        evaluation.add({"coarse": counts, "refined": counts})
    assert evaluation.summary() is None
    assert evaluation.missing.startswith("4097 classes came up, allowed are 4096")
    for path in dataset.images.iterdir():
        path.write_bytes(b"no picture")
    assert command(dataset, "--ground-truth", dataset.truth) == 3
    assert "warning: no figures of the set: no image was evaluated" in capsys.readouterr().err


def result_of(number: int) -> Result:
    share = 1 / (number + 3)
    figures = {"disc": ClassFigures(1, 1, 0, share, share / 3)}
    refinement = Refinement({}, {}, [f"first {number}", f"second {number}"], {}, {}, {}, {}, {})
    return Result(str(number), f"{number}.png", refinement, classes=figures, taken_for=(f"format {number % 7}", ""))


def test_a_report_does_not_depend_on_who_is_ready_first() -> None:
    count = 1500
    reports = []
    for seed in (None, 1, 2):
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        tally = Tally({}, {str(number): number for number in range(count)}, remarks=["a remark"])
        for number in order.tolist():
            tally.add(result_of(number), Path("images"))
        tally.sort()
        reports.append(
            json.dumps([tally.iou.to_mapping(), tally.warnings, tally.more_warnings, tally.formats, tally.images])
        )
    assert reports[1:] == reports[:1] * 2
    mean, warnings, more, *_ = json.loads(reports[0])
    assert mean["before"] == pytest.approx(np.mean([1 / (number + 3) for number in range(count)]), rel=1e-12)
    expected = [f"{number}: {word} {number}" for number in range(count) for word in ("first", "second")]
    assert warnings == ["a remark", *expected[:MOST_WARNINGS]]
    assert more == 2 * count - MOST_WARNINGS
