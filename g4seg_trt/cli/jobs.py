"""One image of a folder run: what it is read from, what is written for it, whether that is done already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from g4seg_trt.arrays import Bytes, Floats, Labels
from g4seg_trt.atomic import check_writable, reason
from g4seg_trt.cli.measures import ClassFigures, GroundTruth, figures, label_both, read_ground_truth
from g4seg_trt.cli.pairing import Item, MaskSource
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import InputError, MaskError, OutputError
from g4seg_trt.geometry import load_image
from g4seg_trt.masks import (
    probability_suffix,
    read_index_png,
    write_label_png,
    write_probabilities,
)
from g4seg_trt.matches import class_matches, draw_matches
from g4seg_trt.overlay import draw_overlay, write_overlay
from g4seg_trt.refinement import Refinement
from g4seg_trt.update import BACKGROUND, BackgroundRule, label_map


@dataclass(frozen=True)
class Layout:
    """The folders that a folder run writes to.

    Attributes:
        root: the output folder.
        overlay: whether pictures before | after are asked for.
        matches: whether pictures of the matches are asked for.
    """

    root: Path
    overlay: bool = False
    matches: bool = False

    @property
    def record(self) -> Path:
        """What the results were made with."""
        return self.root / "run.json"

    def folders(self) -> list[Path]:
        """Every folder that files are written to."""
        left_out = {name for name, asked in (("overlay", self.overlay), ("matches", self.matches)) if not asked}
        return [folder for folder in self.all_folders() if folder.name not in left_out]

    def all_folders(self) -> list[Path]:
        """The same, with those of the pictures whether or not they are asked for."""
        return [self.root / name for name in ("probability", "label", "overlay", "matches")]

    def has_results(self) -> bool:
        """Whether any file lies in one of the folders."""
        return any(
            path.is_file() and not path.name.startswith(".")
            for folder in self.all_folders()
            if folder.is_dir()
            for path in folder.iterdir()
        )

    def probability(self, stem: str, classes: int) -> Path:
        """The probabilities of one image: .png for one class, .npz for several."""
        return self.root / "probability" / f"{stem}{probability_suffix(classes)}"

    def label(self, stem: str) -> Path:
        """The label picture of one image."""
        return self.root / "label" / f"{stem}.png"

    def picture(self, stem: str) -> Path:
        """The overlay of one image."""
        return self.root / "overlay" / f"{stem}.png"

    def matches_picture(self, stem: str) -> Path:
        """The picture of one image's matches."""
        return self.root / "matches" / f"{stem}.png"

    def possible(self, stem: str) -> list[Path]:
        """Every file that may be there for one image after any run."""
        return Layout(self.root, overlay=True, matches=True).asked(stem)

    def asked(self, stem: str) -> list[Path]:
        """Those of them that this run may write."""
        files = [self.probability(stem, 1), self.probability(stem, 2), self.label(stem)]
        files += [self.picture(stem)] if self.overlay else []
        files += [self.matches_picture(stem)] if self.matches else []
        return files

    def is_done(self, stem: str) -> bool:
        """Whether all of one image's files are there; written atomically, they are whole then."""
        one, several, *others = self.asked(stem)
        return (one.is_file() or several.is_file()) and all(path.is_file() for path in others)

    def remove(self, stem: str) -> None:
        """Remove one image's files; raises OutputError."""
        for path in self.possible(stem):
            try:
                if path.is_file():
                    path.unlink()
            except OSError as error:
                raise OutputError(f"cannot remove {path}: {reason(error)}") from error


@dataclass
class _Loaded:
    image: Bytes
    masks: dict[str, Floats]
    background: Floats | None
    truth: GroundTruth | None


class Job:
    """One image on its way: `load` in the reading thread, then `finish`.

    Args:
        item: where its inputs are.
        layout: where its outputs go.
        rule: the background rule.
    """

    def __init__(self, item: Item, layout: Layout, rule: BackgroundRule) -> None:
        self.item = item
        self._layout = layout
        self._rule = rule
        self._loaded: _Loaded | None = None

    def classes(self) -> tuple[str, ...] | None:
        """The names of the image's classes, None if its masks cannot be found or opened."""
        try:
            return self._source().classes(background=self._rule.kind == "channel")
        except InputError:
            return None

    def load(self) -> tuple[Bytes, dict[str, Floats]]:
        """Read the image uint8 RGB [H,W,3] and its masks, with the rule "channel" also that of the background.

        Raises:
            InputError: if anything about this image cannot be read or is missing, or an output has no place.
        """
        source = self._source()
        for path in self._layout.asked(self.item.stem):
            check_writable(path)
        image = load_image(self.item.image)
        masks, background = source.read(background=self._rule.kind == "channel")
        size = (image.shape[0], image.shape[1])
        self._loaded = _Loaded(image, masks, background, self._truth(list(masks), size))
        return image, masks if background is None else {**masks, BACKGROUND: background}

    def drop(self) -> None:
        """Let go of the inputs of an image that will not be finished."""
        self._loaded = None

    def finish(self, refinement: Refinement, config: RefineConfig) -> dict[str, ClassFigures]:
        """Write the outputs and let go of the inputs.

        Args:
            refinement: of the loaded masks; for a picture of the matches with matches.NEEDED kept.
            config: the settings it was made with.

        Returns:
            Figures of each class.

        Raises:
            OutputError: if a file cannot be written.
        """
        loaded, stem = self._loaded, self.item.stem
        if loaded is None:
            raise RuntimeError("finish comes after load")
        self._loaded = None
        before, after = label_both(loaded.masks, refinement.probabilities, self._rule, loaded.background)
        names = list(loaded.masks)
        write_probabilities(self._layout.probability(stem, len(names)), refinement.probabilities)
        write_label_png(self._layout.label(stem), after, len(names))
        if self._layout.overlay:
            write_overlay(self._layout.picture(stem), draw_overlay(loaded.image, before, after, names))
        if self._layout.matches:
            matches = draw_matches(loaded.image, class_matches(loaded.masks, refinement, config))
            write_overlay(self._layout.matches_picture(stem), matches)
        return figures(names, before, after, loaded.truth)

    def measure_done(self) -> dict[str, ClassFigures]:
        """Figures of an image whose outputs are there already, from its label picture.

        Raises:
            InputError: if an input or the label picture cannot be read.
        """
        masks, background = self._source().read(background=self._rule.kind == "channel")
        names = list(masks)
        before = label_map(list(masks.values()), self._rule, background)
        after = self._read_label(len(names))
        if after.shape != before.shape:
            raise MaskError(f"{self._layout.label(self.item.stem)}: of another size than the masks; delete it")
        return figures(names, before, after, self._truth(names, (before.shape[0], before.shape[1])))

    def _source(self) -> MaskSource:
        if isinstance(self.item.masks, InputError):
            raise self.item.masks
        return self.item.masks

    def _truth(self, names: list[str], size: tuple[int, int]) -> GroundTruth | None:
        truth = self.item.truth
        if isinstance(truth, InputError):
            raise truth
        return None if truth is None else read_ground_truth(truth, names, size)

    def _read_label(self, classes: int) -> Labels:
        path = self._layout.label(self.item.stem)
        pixels = read_index_png(path)
        return np.asarray(pixels > 0).astype(np.uint8) if classes == 1 else pixels
