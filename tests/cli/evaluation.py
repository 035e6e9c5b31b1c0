"""What the tests of g4seg-evaluate share: a small data set, and what its figures have to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from g4seg_trt.class_table import ClassTable
from g4seg_trt.evaluate import SetEvaluation
from g4seg_trt.masks import label_colours
from g4seg_trt.masks.array import write_npz
from g4seg_trt.update import label_map

Labels = npt.NDArray[np.uint8]

STEMS = ("2007_000032", "b c", "d.e", "übung")
IDS = (1, 15)
NAMES = ("aeroplane", "person")


def save(path: Path, labels: npt.NDArray[Any], *, palette: bool = False) -> None:
    """Write a label picture, and the folder that it is in."""
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


def labels_of(seed: int, rule: str = "constant:0.5") -> Labels:
    """Class ids of a scene's probabilities under a rule."""
    labels: Labels = np.array([0, *IDS], np.uint8)[label_map(scene(seed)[0], rule)]
    return labels


@dataclass(frozen=True)
class DataSet:
    """Label pictures, probabilities and ground truth of four images with two classes of VOC12."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> DataSet:
        made = cls(root)
        made.probabilities.mkdir(parents=True)
        for seed, stem in enumerate(STEMS):
            probabilities, truth = scene(seed)
            save(made.truth / f"{stem}.png", truth, palette=True)
            save(made.labels / f"{stem}.png", labels_of(seed), palette=seed % 2 == 0)
            write_npz(made.probabilities / f"{stem}.npz", dict(zip(NAMES, probabilities, strict=True)))
        return made

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def probabilities(self) -> Path:
        return self.root / "probabilities"

    @property
    def truth(self) -> Path:
        return self.root / "truth"

    def mixed(self, folder: Path) -> Path:
        """A folder with the label pictures of the first and third image and the probabilities of the others."""
        folder.mkdir()
        for seed, stem in enumerate(STEMS):
            there = self.probabilities / f"{stem}.npz" if seed % 2 else self.labels / f"{stem}.png"
            (folder / there.name).write_bytes(there.read_bytes())
        return folder

    def arguments(self, predictions: Path | None = None, *more: object) -> list[object]:
        given = ["--predictions", predictions or self.labels, "--ground-truth", self.truth]
        return [*given, *([] if "--class-table" in more else ["--dataset", "voc12"]), *more]


def expected(*rules: str) -> SetEvaluation:
    """The evaluation of the data set, with a rule for all images (constant:0.5 without one) or for each."""
    each = (rules or ("constant:0.5",)) * (1 if len(rules) > 1 else len(STEMS))
    evaluation = SetEvaluation(ClassTable.of_dataset("voc12"))
    for seed, rule in enumerate(each):
        evaluation.add(labels_of(seed, rule), scene(seed)[1])
    return evaluation


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a report that `SetEvaluation.summary` gives."""
    return {key: report[key] for key in ("dataset", "images", "mean_over", "figures", "coarse", "gain")}
