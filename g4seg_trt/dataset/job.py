"""One image of a data set on its way: read in the loading thread, finished in the writing one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np

from g4seg_engine.manifest import file_sha256
from g4seg_trt.arrays import Bytes, Floats, Labels
from g4seg_trt.atomic import check_writable, reason
from g4seg_trt.dataset.done import check_done
from g4seg_trt.dataset.layout import ALWAYS, KINDS, MASKS, PROBABILITY, Layout
from g4seg_trt.dataset.mask_files import MaskSource, content_digest, names_of
from g4seg_trt.dataset.measures import GroundTruth, figures, read_ground_truth, scores
from g4seg_trt.dataset.plan import Finished, NothingToRefine, Plan, compared_rows
from g4seg_trt.dataset.record import Key, Record
from g4seg_trt.dataset.source import Item
from g4seg_trt.dataset.writing import Outputs, Work, write_outputs
from g4seg_trt.errors import ClassNameError, ImageError, InputError, MaskError, OutputError
from g4seg_trt.evaluate.named import COARSE, RESULT
from g4seg_trt.geometry import load_image
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.labels import background_of, class_ids, places, without
from g4seg_trt.outputs import identity, make_folders
from g4seg_trt.postprocess import PostProcess
from g4seg_trt.refinement import Refinement
from g4seg_trt.update import BACKGROUND, BackgroundRule

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Loaded:
    key: Key
    image: Bytes
    masks: CoarseMasks
    rule: BackgroundRule
    truth: GroundTruth | None
    truth_sha256: str | None


class _Seen(NamedTuple):
    source: MaskSource
    key: Key
    truth_sha256: str | None


class Job:
    """One image: `load` (which is `look`, `check`, `read`), then `work` and `finish`, `discard` or `drop`.

    Args:
        item: where its inputs are.
        plan: what all images have in common.
        before: the record that it has.
        withdrawn: whether it has none because an earlier run took that back, and did not come to its end.

    Attributes:
        item: as given.
        before: as given.
        withdrawn: as given.
        stale: in what the inputs differ from those of the record, once `look` knows.
        holds: whether the record is of the same inputs, once `look` knows; whatever it says was written is right then.
        taken_for: the format of its masks, and why, once `look` knows.
    """

    def __init__(self, item: Item, plan: Plan, before: Record | None, *, withdrawn: bool = False) -> None:
        self.item = item
        self.before = before
        self.withdrawn = withdrawn
        self.stale: tuple[str, ...] = ()
        self.holds = False
        self.taken_for = ("", "")
        self._plan = plan
        self._seen: _Seen | None = None
        self._loaded: _Loaded | None = None

    def load(self) -> tuple[Bytes, dict[str, Floats], BackgroundRule]:
        """Read the image uint8 RGB [H,W,3] and its masks, by the words for their prompts, and the background rule.

        Raises:
            DoneBefore: if the record holds and its outputs are there.
            NothingToRefine: if the masks are those of no class.
            InputError: if anything about this image cannot be read or is missing, or an output has no place.
        """
        self.look()
        self.check()
        return self.read()

    def look(self) -> None:
        """Compare the inputs with the record; raises InputError if one cannot be read or is missing."""
        plan, before = self._plan, self.before
        if before is not None:  # this much is known whatever cannot be read
            now = replace(before.key, settings_sha256=plan.settings_sha256, engine_sha256=plan.engine_sha256)
            self.stale = now.differing(before.key)
        source = self._source()
        try:
            self.taken_for = source.taken_for()
        except InputError:
            with suppress(InputError):  # masks of no known format may be others than those of the record
                self._compare(self._key(source))
            raise
        key = self._key(source)
        self._compare(key)
        self._seen = _Seen(source, key, self._truth_digest())

    def _compare(self, key: Key) -> None:
        if self.before is not None:
            self.stale = key.differing(self.before.key)
            self.holds = not self.stale

    def check(self) -> None:
        """After `look`, whether the image is done.

        Raises:
            DoneBefore: if the record holds and its outputs are there.
            InputError: if what tells its figures cannot be read.
        """
        layout, truth_sha256 = self._plan.layout, self._looked().truth_sha256
        if self.before is None or layout is None or self.stale or not self.before.has(layout.root, layout.kinds()):
            return
        check_done(self.before, self.item, self._plan, layout, truth_sha256)

    def read(self) -> tuple[Bytes, dict[str, Floats], BackgroundRule]:
        """What `load` returns, after `look` and whatever the record says; raises NothingToRefine and InputError."""
        (source, key, truth_sha256), layout = self._looked(), self._plan.layout
        image = load_image(self.item.image)
        masks = source.read((image.shape[0], image.shape[1]), (self._plan.rule,))
        if not masks.ids and masks.size != image.shape[:2]:  # nothing else would look at them
            (height, width), (rows, columns) = image.shape[:2], masks.size
            raise MaskError(f"{self.item.name}: is {width}x{height} pixels, its masks are {columns}x{rows}")
        truth = self._truth(masks.names, (image.shape[0], image.shape[1]))
        if layout is not None:
            self._check_places(layout, source, len(masks.ids))
        rule = background_of(masks, self._plan.table, self._plan.rule)
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

    def completed(self, refinement: Refinement) -> Refinement:
        """A refinement with the names of the masks in place of the words for their prompts, and post-processed.

        Raises:
            G4SegError: if the post-processing fails.
        """
        loaded, post = self._kept(), self._plan.post
        names = loaded.masks.names
        of = dict(zip(self._prompts(names), names, strict=True))
        probabilities, timings = _renamed(refinement.probabilities, of), refinement.timings
        if post is not None and names:
            start = perf_counter()
            maps = np.stack([probabilities[name] for name in names])
            maps = post.apply(loaded.image, maps, loaded.rule, loaded.masks.background)
            probabilities = dict(zip(names, maps, strict=True))
            timings = {**timings, "post": perf_counter() - start}
        return replace(
            refinement,
            probabilities=probabilities,
            timings=timings,
            softened=_renamed(refinement.softened, of),
            generated=_renamed(refinement.generated, of),
            denoised=_renamed(refinement.denoised, of),
            indices=_renamed(refinement.indices, of),
            similarities=_renamed(refinement.similarities, of),
        )

    def work(self, refinement: Refinement) -> Work:
        """What became of the image, before anything is written.

        Args:
            refinement: `completed`.

        Raises:
            G4SegError: if the post-processing that it is compared with fails.
        """
        loaded, masks = self._kept(), self._kept().masks
        names = masks.names
        refined = np.stack([refinement.probabilities[name] for name in names]) if names else masks.probabilities
        before, after = (self._places(maps) for maps in (masks.probabilities, refined))
        measured = figures(names, without(before, masks.ignored), without(after, masks.ignored), loaded.truth)
        counts = None
        if loaded.truth is not None:
            rows = {COARSE: before, RESULT: after}
            if self._plan.compare is not None:
                start = perf_counter()
                rows |= self._compared(self._plan.compare, masks.probabilities, refined)
                timings = {**refinement.timings, "compare": perf_counter() - start}
                refinement = replace(refinement, timings=timings)
            counts = scores(masks, rows, loaded.truth, self._plan.table)
        ids = class_ids(after, masks.ids, masks.ignored)
        return Work(
            self.item.stem, loaded.image, masks, loaded.rule, refinement, refined, before, after, ids, measured, counts
        )

    def finish(self, work: Work) -> Finished:
        """Write the outputs, if any are to be written, and let go of the inputs.

        Args:
            work: from `work`; for a picture of the matches of a refinement with matches.NEEDED kept.

        Raises:
            OutputError: if a file cannot be written.
        """
        loaded, plan = self._kept(), self._plan
        self._loaded = None
        outputs: Outputs = {}
        if plan.layout is not None:
            outputs = write_outputs(
                work, plan.layout, self._source(), plan.config, plan.table, self._older(plan.layout)
            )
            self._remove(plan.layout, outputs)
        softened = work.refinement.softened
        details = {
            "classes": {name: {**one.to_mapping(), "softened": softened[name]} for name, one in work.figures.items()},
            "size": list(loaded.image.shape[:2]),
            "changed_pixels": work.changed_pixels,
            "truth_sha256": loaded.truth_sha256,
            "counts": None if work.counts is None else {row: one.to_mapping() for row, one in work.counts.items()},
            # Also where there was nothing to compare, for that to be known.
            "compare_sha256": None if loaded.truth_sha256 is None else plan.compare_sha256,
            "masks": self.taken_for[0],
            "background": str(loaded.rule),
            "warnings": work.refinement.warnings,
            "timings": {name: round(value, 6) for name, value in work.refinement.timings.items()},
        }
        return Finished(loaded.key, outputs, work.figures, work.counts, details)

    def discard(self) -> None:
        """Remove the files of an image that could not be finished: they are of other inputs, or not all of them.

        What cannot be removed stays: no record vouches for it.
        """
        layout = self._plan.layout
        if layout is None:
            return
        files = {layout.file(kind, self.item.stem, count) for kind in KINDS if kind != MASKS for count in (1, 2)}
        files.update(self.before.files(layout.root) if self.before is not None else [])
        with suppress(InputError):  # masks that cannot be told for any format
            if (back := self._source().back()) is not None:
                files.add(layout.masks(back.name))
        if self.withdrawn:  # no record says what its masks were called
            files |= self._masks_of_any_name(layout)
        for path in files:
            with suppress(OutputError):
                layout.remove(path)

    def keeps_outputs(self) -> bool:
        """Whether the image has outputs of these inputs already, those that every run writes."""
        layout = self._plan.layout
        return self.holds and layout is not None and self.before is not None and self.before.has(layout.root, ALWAYS)

    def _older(self, layout: Layout) -> Outputs:
        """Files of the record that stay beside those of this run: not asked for now, and of the same inputs."""
        if self.before is None or self.stale:
            return {}
        return {
            kind: found
            for kind, found in self.before.outputs.items()
            if kind not in layout.kinds() and (found is None or (layout.root / found[0]).exists())
        }

    def _remove(self, layout: Layout, outputs: Outputs) -> None:
        """Remove what earlier runs left of this image and is not among the outputs; raises OutputError."""
        # A file system that folds case or Unicode forms has each of them under other names too.
        kept = {identity(layout.root / found[0]) for found in outputs.values() if found is not None}
        # A run that was killed in between has withdrawn its record already.
        spellings = {layout.root / PROBABILITY / f"{self.item.stem}{suffix}" for suffix in (".png", ".npz")}
        spellings |= self._masks_of_any_name(layout)
        for path in spellings.union([] if self.before is None else self.before.files(layout.root)):
            if identity(path) not in kept:
                layout.remove(path)

    def _masks_of_any_name(self, layout: Layout) -> set[Path]:
        """The refined masks of this image that are there, whatever their format."""
        found = {layout.masks(name): is_folder for name, is_folder in names_of(self.item.stem)}
        return {path for path, is_folder in found.items() if (path.is_dir() if is_folder else path.is_file())}

    def _key(self, source: MaskSource) -> Key:
        plan = self._plan
        if plan.layout is None:  # nothing is recorded
            return Key(self.item.name, "", "", plan.settings_sha256, plan.engine_sha256)
        try:
            image_sha256 = file_sha256(self.item.image)
        except OSError as error:
            raise ImageError(f"{self.item.image}: cannot be read ({reason(error)})") from error
        return Key(self.item.name, image_sha256, source.digest(), plan.settings_sha256, plan.engine_sha256)

    def _looked(self) -> _Seen:
        if self._seen is None:
            raise RuntimeError("this comes after look")
        return self._seen

    def _kept(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("this comes after load")
        return self._loaded

    def _source(self) -> MaskSource:
        if isinstance(self.item.masks, InputError):
            raise self.item.masks
        return self.item.masks

    def _places(self, probabilities: Floats) -> Labels:
        loaded = self._kept()
        (found,) = places(loaded.masks, probabilities, [loaded.rule])
        return found

    def _compared(self, post: PostProcess, coarse: Floats, refined: Floats) -> dict[str, Labels]:
        """The rows of a comparison: places of the maps after another post-processing."""
        loaded = self._kept()
        kinds = [coarse] if np.array_equal(coarse, refined) else [coarse, refined]  # the same maps need it once
        found = [self._places(post.apply(loaded.image, maps, loaded.rule, loaded.masks.background)) for maps in kinds]
        return dict(zip(compared_rows(post), (found[0], found[-1]), strict=True))

    def _prompts(self, names: tuple[str, ...]) -> tuple[str, ...]:
        table = self._plan.table
        return names if table is None else tuple(table.named(name, self.item.name).prompt for name in names)

    def _check_places(self, layout: Layout, source: MaskSource, classes: int) -> None:
        files = [layout.file(kind, self.item.stem, classes) for kind in layout.kinds()]
        for path in files:
            check_writable(path)
        if (back := source.back()) is not None:
            masks = layout.masks(back.name)
            make_folders([masks.parent])
            check_writable(masks, folder=back.is_folder)

    def _truth_path(self) -> Path | None:
        if isinstance(self.item.truth, InputError):
            raise self.item.truth
        return self.item.truth

    def _truth(self, names: tuple[str, ...], size: tuple[int, int]) -> GroundTruth | None:
        path = self._truth_path()
        if path is None or (not names and self._plan.table is None):
            return None
        return read_ground_truth(path, names, size, self._plan.table)

    def _truth_digest(self) -> str | None:
        path = self._truth_path()
        return None if path is None or self._plan.layout is None else content_digest(path)


def _renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    return {names[name]: value for name, value in values.items()}
