"""One image of a data set on its way: read in the loading thread, finished in the writing one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from g4seg_engine.manifest import file_sha256
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.atomic import check_writable, reason
from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.labels import DEFAULT_RULE, class_ids, places
from g4seg_trt.dataset.layout import KINDS, LABEL, MASKS, Layout
from g4seg_trt.dataset.mask_files import MaskSource, content_digest
from g4seg_trt.dataset.measures import ClassFigures, GroundTruth, figures, read_ground_truth
from g4seg_trt.dataset.record import Key, Record
from g4seg_trt.dataset.source import Item
from g4seg_trt.dataset.writing import Outputs, Work, is_binary, write_outputs
from g4seg_trt.errors import ClassNameError, ImageError, InputError, MaskError, OutputError
from g4seg_trt.geometry import load_image
from g4seg_trt.masks import read_index_png
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.refinement import Refinement
from g4seg_trt.update import BACKGROUND, BackgroundRule

Value = TypeVar("Value")


@dataclass(frozen=True)
class Plan:
    """What is the same for all images of a run.

    Attributes:
        settings_sha256: of what the results depend on beside the image, its masks and the engine.
        engine_sha256: of the engine's manifest.
        config: the settings of the refinement.
        rule: the background rule asked for, None for the masks' own.
        table: the data set's classes, if it has them.
        layout: where the outputs go, None if nothing is written.
    """

    settings_sha256: str
    engine_sha256: str
    config: RefineConfig
    rule: BackgroundRule | None
    table: ClassTable | None
    layout: Layout | None


@dataclass(frozen=True)
class Finished:
    """What became of one image: small, so that it can be sent from one process to another.

    Attributes:
        key: what the outputs depend on.
        outputs: as in a Record.
        classes: figures of each class.
        details: the rest of the Record.
    """

    key: Key
    outputs: Outputs
    classes: dict[str, ClassFigures]
    details: dict[str, Any]

    def record(self, stem: str) -> Record:
        """The record of the image."""
        return Record(stem, self.key, self.outputs, self.details)


class DoneBefore(InputError):
    """No error: the image's outputs are there; its figures come along."""

    def __init__(self, classes: dict[str, ClassFigures], record: Record) -> None:
        super().__init__("done before")
        self.classes = classes
        self.record = record


class NothingToRefine(InputError):
    """No error: the image has masks of no class."""


@dataclass(frozen=True)
class _Loaded:
    key: Key
    image: Bytes
    masks: CoarseMasks
    rule: BackgroundRule
    truth: GroundTruth | None
    truth_sha256: str | None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


class Job:
    """One image: `load`, then `finish`, `discard` or `drop`.

    Args:
        item: where its inputs are.
        plan: what all images have in common.
        before: the record that it has.

    Attributes:
        item: as given.
        before: as given.
        stale: in what the inputs differ from those of the record, once `load` knows.
        taken_for: the format of its masks, and why, once `load` knows.
    """

    def __init__(self, item: Item, plan: Plan, before: Record | None) -> None:
        self.item = item
        self.before = before
        self.stale: tuple[str, ...] = ()
        self.taken_for = ("", "")
        self._plan = plan
        self._loaded: _Loaded | None = None

    def load(self) -> tuple[Bytes, dict[str, Floats], BackgroundRule]:
        """Read the image uint8 RGB [H,W,3] and its masks, by the words for their prompts, and the background rule.

        Raises:
            DoneBefore: if the record holds and its outputs are there.
            NothingToRefine: if the masks are those of no class.
            InputError: if anything about this image cannot be read or is missing, or an output has no place.
        """
        source, layout = self._source(), self._plan.layout
        self.taken_for = source.taken_for()
        truth_sha256 = self._truth_digest()
        key = self._key(source)
        if self.before is not None and layout is not None:
            self.stale = key.differing(self.before.key)
            if not self.stale and self.before.has(layout.root, layout.kinds()):
                raise DoneBefore(self._figures_before(self.before, source, truth_sha256), self.before)
        image = load_image(self.item.image)
        masks = source.read()
        truth = self._truth(masks.names, (image.shape[0], image.shape[1]))
        if layout is not None:
            self._check_places(layout, source, len(masks.ids))
        rule = self._rule(masks)
        self._loaded = _Loaded(key, image, masks, rule, truth, truth_sha256)
        if not masks.ids:
            raise NothingToRefine(f"{self.item.name}: no class has a mask")
        maps: dict[str, Floats] = dict(zip(self._prompts(masks.names), masks.probabilities, strict=True))
        if rule.kind == "channel" and masks.background is not None:
            if BACKGROUND in maps:
                raise ClassNameError(f"{self.item.name}: {BACKGROUND!r} is the name of a class and of the background")
            maps[BACKGROUND] = masks.background
        return image, maps, rule

    def drop(self) -> None:
        """Let go of the inputs of an image that will not be finished."""
        self._loaded = None

    def renamed(self, refinement: Refinement) -> Refinement:
        """A refinement with the names of the masks in place of the words for their prompts."""
        names = self._kept().masks.names
        of = dict(zip(self._prompts(names), names, strict=True))
        return replace(
            refinement,
            probabilities=_renamed(refinement.probabilities, of),
            softened=_renamed(refinement.softened, of),
            generated=_renamed(refinement.generated, of),
            denoised=_renamed(refinement.denoised, of),
            indices=_renamed(refinement.indices, of),
            similarities=_renamed(refinement.similarities, of),
        )

    def finish(self, refinement: Refinement) -> Finished:
        """Write the outputs, if any are to be written, and let go of the inputs.

        Args:
            refinement: `renamed`; for a picture of the matches with matches.NEEDED kept.

        Raises:
            OutputError: if a file cannot be written.
        """
        loaded, layout = self._kept(), self._plan.layout
        self._loaded = None
        masks, names = loaded.masks, loaded.masks.names
        refined = np.stack([refinement.probabilities[name] for name in names]) if names else masks.probabilities
        pair = tuple(places(masks, maps, loaded.rule, loaded.size) for maps in (masks.probabilities, refined))
        before, after = (class_ids(one, masks.ids, masks.ignored) for one in pair)
        measured = figures(names, before, after, loaded.truth, masks.ids)
        outputs: Outputs = {}
        if layout is not None:
            work = Work(self.item.stem, loaded.image, masks, refinement, refined, pair[0], pair[1], after)
            outputs = write_outputs(
                work, layout, self._source(), self._plan.config, self._plan.table, self._older(layout)
            )
            self._remove(layout, outputs)
        classes = {name: {**one.to_mapping(), "softened": refinement.softened[name]} for name, one in measured.items()}
        details = {
            "classes": classes,
            "truth_sha256": loaded.truth_sha256,
            "masks": self.taken_for[0],
            "background": str(loaded.rule),
            "warnings": refinement.warnings,
            "timings": {name: round(value, 6) for name, value in refinement.timings.items()},
        }
        return Finished(loaded.key, outputs, measured, details)

    def discard(self) -> None:
        """Remove the files of an image that could not be finished: they are of other inputs, or not all of them.

        What cannot be removed stays: no record vouches for it.
        """
        layout = self._plan.layout
        if layout is None:
            return
        files = {layout.file(kind, self.item.stem, count) for kind in KINDS if kind != MASKS for count in (1, 2)}
        files.update(self.before.files(layout.root) if self.before is not None else [])
        if not isinstance(self.item.masks, InputError) and (back := self.item.masks.back()) is not None:
            files.add(layout.root / MASKS / back)
        for path in files:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _older(self, layout: Layout) -> Outputs:
        """Files of the record that stay beside those of this run: not asked for now, and of the same inputs."""
        if self.before is None or self.stale:
            return {}
        return {
            kind: found
            for kind, found in self.before.outputs.items()
            if kind not in layout.kinds() and (found is None or (layout.root / found[0]).is_file())
        }

    def _remove(self, layout: Layout, outputs: Outputs) -> None:
        """Remove the files of the record that are not among the outputs; raises OutputError."""
        if self.before is None:
            return
        kept = {layout.root / found[0] for found in outputs.values() if found is not None}
        for path in self.before.files(layout.root):
            if path not in kept:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise OutputError(f"cannot remove {path}: {reason(error)}") from error

    def _key(self, source: MaskSource) -> Key:
        plan = self._plan
        if plan.layout is None:  # nothing is recorded
            return Key(self.item.name, "", "", plan.settings_sha256, plan.engine_sha256)
        try:
            image_sha256 = file_sha256(self.item.image)
        except OSError as error:
            raise ImageError(f"{self.item.image}: cannot be read ({reason(error)})") from error
        return Key(self.item.name, image_sha256, source.digest(), plan.settings_sha256, plan.engine_sha256)

    def _kept(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("this comes after load")
        return self._loaded

    def _source(self) -> MaskSource:
        if isinstance(self.item.masks, InputError):
            raise self.item.masks
        return self.item.masks

    def _rule(self, masks: CoarseMasks) -> BackgroundRule:
        return self._plan.rule or masks.rule or DEFAULT_RULE

    def _prompts(self, names: tuple[str, ...]) -> tuple[str, ...]:
        table = self._plan.table
        return names if table is None else tuple(table.named(name, self.item.name).prompt for name in names)

    def _check_places(self, layout: Layout, source: MaskSource, classes: int) -> None:
        files = [layout.file(kind, self.item.stem, classes) for kind in layout.kinds()]
        if (back := source.back()) is not None:
            folder = layout.root / MASKS
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make the folder {folder}: {reason(error)}") from error
            files.append(folder / back)
        for path in files:
            check_writable(path)

    def _truth_path(self) -> Path | None:
        if isinstance(self.item.truth, InputError):
            raise self.item.truth
        return self.item.truth

    def _truth(self, names: tuple[str, ...], size: tuple[int, int]) -> GroundTruth | None:
        path = self._truth_path()
        return None if path is None or not names else read_ground_truth(path, names, size, self._plan.table)

    def _truth_digest(self) -> str | None:
        path = self._truth_path()
        return None if path is None else content_digest(path)

    def _figures_before(self, record: Record, source: MaskSource, truth_sha256: str | None) -> dict[str, ClassFigures]:
        """Figures of an image that is done: of its record or, with another ground truth, of its label picture.

        Raises:
            InputError: if an input or the label picture cannot be read.
        """
        classes: Mapping[str, Mapping[str, Any]] = record.details.get("classes", {})
        if truth_sha256 is None or record.details.get("truth_sha256") == truth_sha256:
            known = [field.name for field in fields(ClassFigures)]
            return {name: ClassFigures(*(values[field] for field in known)) for name, values in classes.items()}
        masks = source.read()
        if not masks.ids or self._plan.layout is None:
            return {}
        before = class_ids(places(masks, masks.probabilities, self._rule(masks), masks.size), masks.ids, masks.ignored)
        path = self._plan.layout.file(LABEL, self.item.stem, len(masks.ids))
        pixels = read_index_png(path)
        after = (pixels > 0).astype(np.uint8) if is_binary(masks, self._plan.table) else pixels
        if after.shape != before.shape:
            raise MaskError(f"{path}: of another size than the masks; delete it")
        return figures(masks.names, before, after, self._truth(masks.names, masks.size), masks.ids)


def _renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    return {names[name]: value for name, value in values.items()}
