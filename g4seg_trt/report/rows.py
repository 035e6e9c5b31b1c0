"""Which images of a run a report shows: chosen in one pass, in bounded memory, the same in any order of the images."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from g4seg_trt.report.pictures import Pictures

MOST_ROWS = 2000
"""Images drawn evenly for the table; smaller runs are shown whole."""

EXTREMES = 50
"""The worst, and as many of the best, are shown with pictures."""

SPREAD = 100
"""Of the images drawn evenly, so many have pictures."""

_STEPS = 100  # of the histogram, to 1


@dataclass(frozen=True)
class ReportRow:
    """What the table says about one image.

    Attributes:
        stem: the image's name, once in a run.
        classes: class names in the order of the labels.
        changed: share of pixels whose label changed, 0 to 1.
        before: mean IoU of the coarse masks, 0 to 1, or None.
        after: mean IoU of the refined masks, 0 to 1, or None.
        seconds: what the refinement took, None if it was done by an earlier run.
        warnings: one line each.
    """

    stem: str
    classes: tuple[str, ...]
    changed: float
    before: float | None = None
    after: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def gain(self) -> float | None:
        """IoU after minus before, None without both."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass
class ShownRow:
    """A row of the table.

    Attributes:
        row: its figures.
        groups: why it has pictures: some of "worst", "best", "most changed" and "spread".
        pictures: of the image, None for a row without.
    """

    row: ReportRow
    groups: tuple[str, ...] = ()
    pictures: Pictures | None = None


class Histogram:
    """Counts of values from -1 to 1 in steps of 0.01."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count a value; one that rounding put just below a step belongs to it."""
        step = math.floor(value * _STEPS + 1e-6)
        self._counts[min(max(step, -_STEPS), _STEPS - 1)] += 1

    def bars(self, most: int = 40) -> list[tuple[float, float, int]]:
        """(from, to, count) of equal ranges that meet at 0, at most so many; empty without values."""
        if not self._counts:
            return []
        low, high = min(0, *self._counts), max(0, *self._counts)
        width = next(width for width in (1, 2, 5, 10) if high // width - low // width < most or width == 10)
        sums: Counter[int] = Counter()
        for step, count in self._counts.items():
            sums[step // width] += count
        steps = range(low // width, high // width + 1)
        return [(step * width / _STEPS, (step + 1) * width / _STEPS, sums[step]) for step in steps]


class ReportRows:
    """Takes every image of a run once and keeps those that a report shows.

    Args:
        most_rows: images drawn evenly for the table.
        extremes: worst, and best, images with pictures. Without a ground truth the most changed instead.
        spread: images with pictures among those drawn evenly.
    """

    def __init__(self, most_rows: int = MOST_ROWS, extremes: int = EXTREMES, spread: int = SPREAD) -> None:
        self.count = 0
        self.better = self.same = self.worse = 0
        self.gains, self.changes = Histogram(), Histogram()
        self._table = _Best(most_rows)
        self._groups = {
            "worst": _Best(extremes),
            "best": _Best(extremes),
            "most changed": _Best(extremes),
            "spread": _Best(min(spread, most_rows)),
        }
        self._held: dict[int, ShownRow] = {}

    def add(self, row: ReportRow, draw: Callable[[], Pictures | None]) -> None:
        """Take an image.

        Args:
            row: its figures.
            draw: makes its pictures, or None if they cannot be made; called at once, and only if they are shown as
                things stand.
        """
        number, self.count = self.count, self.count + 1
        chance = _chance(row.stem)
        self.changes.add(row.changed)
        offers: list[tuple[str, float]] = [("spread", 0.0)]
        if row.gain is not None:
            self._count_gain(row.gain)
            offers += [("worst", -row.gain), ("best", row.gain)]
        elif not self.measured:
            offers.append(("most changed", row.changed))
        pushed = self._table.offer((0.0, chance), number)
        for group, value in offers:
            pushed |= self._groups[group].offer((value, chance), number)
        if any(number in group for group in self._groups.values()):
            self._held[number] = ShownRow(row, pictures=draw())
        elif number in self._table:
            self._held[number] = ShownRow(row)
        for other in pushed:
            self._let_go(other)

    @property
    def measured(self) -> bool:
        """Whether any image has a gain."""
        return bool(self.better or self.same or self.worse)

    def shown(self) -> list[ShownRow]:
        """The rows of the table: the worst first, or without any gain the most changed."""
        for number, held in self._held.items():
            held.groups = tuple(name for name, group in self._groups.items() if number in group)
        return sorted(self._held.values(), key=_worst_first)

    def _count_gain(self, gain: float) -> None:
        self.gains.add(gain)
        self.better += gain > 0
        self.same += gain == 0
        self.worse += gain < 0
        # Where the ground truth tells good from bad, how much changed matters little.
        for number in self._groups["most changed"].clear():
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        """Drop what nothing holds any more."""
        held = self._held.get(number)
        if held is None or any(number in group for group in self._groups.values()):
            return
        held.pictures = None
        if number not in self._table:
            del self._held[number]


@dataclass
class _Best:
    """The numbers of the `size` greatest keys offered."""

    size: int
    _heap: list[tuple[tuple[float, bytes], int]] = field(default_factory=list)
    _numbers: set[int] = field(default_factory=set)

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def offer(self, key: tuple[float, bytes], number: int) -> set[int]:
        """The number that has no place any more, which may be this one; empty while there is room."""
        self._numbers.add(number)
        heapq.heappush(self._heap, (key, number))
        if len(self._heap) <= self.size:
            return set()
        _, out = heapq.heappop(self._heap)
        self._numbers.remove(out)
        return {out}

    def clear(self) -> set[int]:
        """Let all go; returns them."""
        gone, self._numbers, self._heap = self._numbers, set(), []
        return gone


def _chance(stem: str) -> bytes:
    """The same for the same name in any run: what is drawn by it is drawn evenly."""
    return hashlib.blake2b(stem.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _worst_first(shown: ShownRow) -> tuple[bool, float, float, str]:
    gain = shown.row.gain
    return gain is None, 0.0 if gain is None else gain, -shown.row.changed, shown.row.stem
