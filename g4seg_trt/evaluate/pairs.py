"""Evaluating a set of files: which predictions belong to which ground truth, read and counted in threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import G4SegError, InputError
from g4seg_trt.evaluate.confusion import LabelSpace
from g4seg_trt.evaluate.predictions import Predictions, labels_under, read_labels
from g4seg_trt.evaluate.sets import SetEvaluation
from g4seg_trt.evaluate.sweep import SweepEvaluation
from g4seg_trt.update import BackgroundRule

_SHOWN = 5


@dataclass(frozen=True)
class Pairing:
    """Which images are evaluated.

    Attributes:
        stems: those that have everything.
        missing: what is missing -> stems of the images without it.
    """

    stems: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, sides: Mapping[str, Collection[str]], wanted: Collection[str] | None = None) -> Pairing:
        """Find the stems that every side has.

        Args:
            sides: name of a side, such as "prediction" -> its stems.
            wanted: the stems that are asked for, None for all that there are.

        Raises:
            InputError: if no stem is in all of them.
        """
        everything = dict.fromkeys(wanted if wanted is not None else (stem for side in sides.values() for stem in side))
        missing = {name: tuple(stem for stem in everything if stem not in side) for name, side in sides.items()}
        lost = {stem for stems in missing.values() for stem in stems}
        stems = tuple(stem for stem in everything if stem not in lost)
        if not stems:
            examples = "; ".join(f"no {name} of {_some(stems)}" for name, stems in missing.items() if stems)
            raise InputError(f"no image has all of {', '.join(sides)}: {examples}")
        return cls(stems, {name: stems for name, stems in missing.items() if stems})

    def check_complete(self, remedy: str) -> None:
        """Raise InputError, with the remedy, if something is missing."""
        if self.missing:
            raise InputError(f"{'; '.join(self.missing_lines())}: {remedy}")

    def missing_lines(self) -> list[str]:
        """What is missing, a line for each side."""
        return [f"no {name} of {len(stems)} images ({_some(stems)})" for name, stems in self.missing.items()]


@dataclass(frozen=True)
class SetFiles:
    """A set of files with their classes.

    Attributes:
        table: the classes.
        predictions: what is evaluated.
        truth: stem -> ground truth, label pictures with the table's ids.
        coarse: what the predictions were refined from, or None.
        rule: how probabilities become labels; None for each source's own rule.
        sweep: background rules to try on the predictions; label pictures are the same under all of them.
    """

    table: ClassTable
    predictions: Predictions
    truth: Mapping[str, Path]
    coarse: Predictions | None = None
    rule: BackgroundRule | None = None
    sweep: Sequence[BackgroundRule] = ()

    def evaluate(
        self, stems: Iterable[str], *, workers: int, done: Callable[[], object]
    ) -> tuple[SetEvaluation, SweepEvaluation, dict[str, str]]:
        """Read and count every image.

        Args:
            stems: the images.
            workers: threads; Pillow and numpy let several of them work.
            done: called after each image.

        Returns:
            The figures, those under the rules of the sweep, and why an image is not among them, by stem.
        """
        space = LabelSpace.of(self.table)
        parts = [(SetEvaluation(space), SweepEvaluation(space, self.sweep)) for _ in range(workers)]
        free: SimpleQueue[tuple[SetEvaluation, SweepEvaluation]] = SimpleQueue()
        for part in parts:
            free.put(part)

        def one(stem: str) -> tuple[str, str | None]:
            part = free.get()
            try:
                self._add(stem, *part)
            except G4SegError as error:
                return stem, str(error)
            finally:
                free.put(part)
            return stem, None

        failures = {}
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="g4seg-evaluate") as pool:
            try:
                for stem, failure in pool.map(one, stems):
                    if failure is not None:
                        failures[stem] = failure
                    done()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        (total, sweep), *others = parts
        for other, other_sweep in others:
            total.merge(other)
            sweep.merge(other_sweep)
        return total, sweep, failures

    def _add(self, stem: str, total: SetEvaluation, sweep: SweepEvaluation) -> None:
        truth = read_labels(self.truth[stem])
        size = (truth.shape[0], truth.shape[1])
        prediction = self.predictions.read(stem, size, (self.rule, *self.sweep))
        labels, swept = labels_under(prediction, self.table, self.rule, self.sweep)
        if self.coarse is None:
            total.add(labels, truth)
        else:
            before, _ = labels_under(self.coarse.read(stem, size, (self.rule,)), self.table, self.rule, ())
            total.add_gain(before, labels, truth)
        if swept:
            sweep.add(swept, truth)
        elif self.sweep:
            sweep.add_decided(labels, truth)


def _some(stems: Sequence[str]) -> str:
    return ", ".join([*stems[:_SHOWN], ".."] if len(stems) > _SHOWN else stems)
