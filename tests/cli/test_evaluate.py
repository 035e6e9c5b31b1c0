"""g4seg-evaluate: the figures, whatever form the predictions have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_trt.class_table import ClassTable
from g4seg_trt.evaluate import SetEvaluation, report_lines
from g4seg_trt.masks.array import write_npz
from tests.cli.evaluation import IDS, NAMES, STEMS, DataSet, expected, figures_of, labels_of, save, scene


def as_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "import sys; from g4seg_trt.cli.evaluate import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


def test_the_command_as_a_process(voc: DataSet) -> None:
    done = as_process(*voc.arguments())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == report_lines(expected().summary())
    assert "taken for: 2007_000032.png: index-png" in done.stderr
    done = as_process(*voc.arguments(None, "--json", "-"))
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert figures_of(report) == expected().summary()
    assert report["command"] == "g4seg-evaluate"
    assert (report["missing"], report["failures"], report["warnings"], report["sweep"]) == ({}, {}, [], None)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_do_not_change_the_figures(voc: DataSet, evaluate: Any, workers: int) -> None:
    _, report = evaluate(*voc.arguments(None, "--workers", workers))
    assert figures_of(report) == expected().summary()


@pytest.mark.parametrize("rule", [None, "constant:0.3", "power:2"])
def test_probabilities_are_decided_by_the_rule(voc: DataSet, evaluate: Any, rule: str | None) -> None:
    more = [] if rule is None else ["--background", rule]
    done, report = evaluate(*voc.arguments(voc.probabilities, *more))
    assert done.code == 0, done.err
    assert figures_of(report) == expected(rule or "constant:0.5").summary()


def test_other_formats_give_the_same(voc: DataSet, evaluate: Any, tmp_path: Path) -> None:
    folders, clip_es, both = tmp_path / "folders", tmp_path / "clip_es", voc.mixed(tmp_path / "both")
    for folder in (folders, clip_es):
        folder.mkdir()
    for seed, stem in enumerate(STEMS):
        probabilities, _ = scene(seed)
        for name, probability in zip(NAMES, probabilities, strict=True):
            save(folders / stem / f"{name}.png", np.rint(probability * 65535).astype(np.uint16))
        content = {"keys": np.array(IDS) - 1, "attn_highres": probabilities}
        np.save(clip_es / f"{stem}.npy", np.array(content, dtype=object), allow_pickle=True)
    _, by_folder = evaluate(*voc.arguments(folders))
    assert figures_of(by_folder) == expected().summary()
    done, by_dict = evaluate(*voc.arguments(clip_es))
    assert figures_of(by_dict) == expected("power:1").summary()
    assert "clip-es" in done.err
    _, by_dict = evaluate(*voc.arguments(clip_es, "--background", "constant:0.5"))
    assert figures_of(by_dict) == expected().summary()
    done, mixed = evaluate(*voc.arguments(both))
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


def test_what_a_refinement_gained(voc: DataSet, evaluate: Any) -> None:
    done, report = evaluate(*voc.arguments(voc.labels, "--coarse", voc.probabilities, "--background", "constant:0.2"))
    assert done.code == 0, done.err
    evaluation = SetEvaluation(ClassTable.of_dataset("voc12"))
    for seed in range(len(STEMS)):
        evaluation.add_gain(labels_of(seed, "constant:0.2"), labels_of(seed), scene(seed)[1])
    assert figures_of(report) == evaluation.summary()
    assert done.out.splitlines() == report_lines(evaluation.summary())
    assert report["gain"]["strata"][-1]["masks"] == 8
    assert report["warnings"] == []


def test_the_best_of_a_sweep_stands_apart(voc: DataSet, evaluate: Any) -> None:
    done, report = evaluate(*voc.arguments(voc.probabilities, "--sweep", "constant:0.1:0.9:0.1"))
    assert done.code == 0, done.err
    assert figures_of(report) == expected().summary()
    alone = [expected(f"constant:{n / 10}").summary()["figures"]["mean_iou"] for n in range(1, 10)]
    assert [rule["mean_iou"] for rule in report["sweep"]["rules"]] == alone
    assert report["sweep"]["best"]["mean_iou"] == max(alone) > report["figures"]["mean_iou"]
    best = f"constant:{(alone.index(max(alone)) + 1) / 10}"
    assert f"best of the sweep, chosen on the ground truth: {best} with mean IoU" in done.out


def test_label_pictures_among_probabilities_are_the_same_under_every_rule(
    voc: DataSet, evaluate: Any, tmp_path: Path
) -> None:
    both = voc.mixed(tmp_path / "both")
    done, report = evaluate(*voc.arguments(both, "--sweep", "constant:0.1:0.9:0.1"))
    assert done.code == 0, done.err
    rules = [f"constant:{n / 10}" for n in range(1, 10)]
    alone = [expected("constant:0.5", rule, "constant:0.5", rule).summary()["figures"]["mean_iou"] for rule in rules]
    assert [rule["mean_iou"] for rule in report["sweep"]["rules"]] == alone
    assert len(set(alone)) > 5
    assert (report["sweep"]["images"], report["sweep"]["label_pictures"]) == (4, 2)
    # The figure beside the sweep's is about the same images.
    assert report["figures"]["mean_iou"] == alone[4]
    assert "(2 of 4 images are label pictures, the same under every rule)" in done.out
    changes = f"changes nothing in 2 of 4 images: {both} has label pictures of them"
    assert report["warnings"] == [f"--sweep constant:0.1:0.9:0.1 {changes}, which are decided already"]
    done, report = evaluate(*voc.arguments(both, "--background", "constant:0.2"))
    assert figures_of(report) == expected("constant:0.5", "constant:0.2", "constant:0.5", "constant:0.2").summary()
    assert f"warning: --background constant:0.2 {changes}" in done.err
    # Of the images asked for, all may be label pictures.
    (tmp_path / "split.txt").write_text(f"{STEMS[0]}\n{STEMS[2]}\n", encoding="utf-8")
    done, report = evaluate(*voc.arguments(both, "--sweep", "power:1:3:1", "--list", tmp_path / "split.txt"))
    assert len({rule["mean_iou"] for rule in report["sweep"]["rules"]}) == 1
    assert "changes nothing in 2 of 2 images" in done.err


def test_means_over_other_classes(voc: DataSet, evaluate: Any) -> None:
    for over in ("present", "ground-truth", "all"):
        _, report = evaluate(*voc.arguments(None, "--mean-over", over))
        assert figures_of(report) == expected().summary(over)


def test_a_table_of_ones_own(voc: DataSet, evaluate: Any, tmp_path: Path) -> None:
    table = tmp_path / "classes.json"
    table.write_text('[{"id": 1, "name": "aeroplane"}, {"id": 15, "name": "person"}]', encoding="utf-8")
    for dataset in ([], ["--dataset", "custom"]):
        done, report = evaluate(*voc.arguments(voc.probabilities, "--class-table", table, *dataset))
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
