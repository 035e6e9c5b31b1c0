"""The report of a run: which images it shows, and their pictures."""

from __future__ import annotations

import gc
import io
import random
import weakref
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from g4seg_trt.report import Pictures, ReportRow, ReportRows, draw_pictures
from g4seg_trt.report.pictures import BETTER, LONGER_SIDE, OTHER, WORSE
from g4seg_trt.report.rows import Histogram

Bytes = npt.NDArray[np.uint8]


def row(stem: str, gain: float | None = None, changed: float = 0.1) -> ReportRow:
    if gain is None:
        return ReportRow(stem, ("cat",), changed)
    return ReportRow(stem, ("cat",), changed, 0.5, 0.5 + gain)


def picture(number: int = 0) -> Pictures:
    return Pictures((1, 1), b"%d" % number, b"", b"")


# Which images are shown.


def groups(rows: ReportRows) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in rows.shown():
        for group in one.groups:
            found.setdefault(group, []).append(one.row.stem)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.none(), st.integers(-4, 4).map(lambda eighths: eighths / 8)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_the_worst_and_the_best_are_shown_in_whatever_order_images_come(
    gains: list[float | None], order: random.Random
) -> None:
    all_rows = [row(f"image{number}", gain, number / 40) for number, gain in enumerate(gains)]
    results = []
    for _ in range(2):
        rows = ReportRows(most_rows=9, extremes=3, spread=4)
        for one in order.sample(all_rows, len(all_rows)):
            rows.add(one, picture)
        results.append(rows)
    shown, again = ([(one.row, one.groups, one.pictures is None) for one in rows.shown()] for rows in results)
    assert shown == again
    measured = sorted(one.gain for one in all_rows if one.gain is not None)
    found = {group: [one.gain for one, names, _ in shown if group in names] for group in ("worst", "best")}
    assert found["worst"] == measured[:3]
    assert found["best"] == measured[-3:]
    assert sum("spread" in names for _, names, _ in shown) == min(4, len(gains))
    most_changed = [one.changed for one, names, _ in shown if "most changed" in names]
    assert sorted(most_changed) == ([] if measured else sorted(one.changed for one in all_rows)[-3:])
    assert len(shown) >= min(9, len(gains))
    assert len(shown) <= 9 + 6
    assert all((no_pictures is False) == bool(names) for _, names, no_pictures in shown)
    order_of_gains = [one.gain for one, *_ in shown]
    assert order_of_gains == [
        *sorted(one for one in order_of_gains if one is not None),
        *[None] * order_of_gains.count(None),
    ]
    assert results[0].count == len(gains)
    assert results[0].better == sum(gain > 0 for gain in measured)
    assert results[0].worse == sum(gain < 0 for gain in measured)
    assert results[0].better + results[0].same + results[0].worse == len(measured)


def test_what_is_drawn_evenly_does_not_depend_on_the_gains() -> None:
    chosen = []
    for sign in (1, -1):
        rows = ReportRows(most_rows=50, extremes=2, spread=20)
        for number in range(2000):
            rows.add(row(f"image{number}", sign * number / 4000), picture)
        chosen.append(set(groups(rows)["spread"]))
    assert chosen[0] == chosen[1]
    numbers = sorted(int(stem.removeprefix("image")) for stem in chosen[0])
    assert len(numbers) == 20
    assert numbers[4] < 1000 < numbers[15], "from the whole range"


def test_few_pictures_are_made_and_fewer_are_kept() -> None:
    rows = ReportRows(most_rows=100, extremes=5, spread=10)
    alive: list[weakref.ref[Pictures]] = []

    def draw() -> Pictures:
        made = picture(len(alive))
        alive.append(weakref.ref(made))
        return made

    gains = random.Random(5).sample(range(-10_000, 10_000), 20_000)
    for number, gain in enumerate(gains):
        rows.add(row(f"image{number}", gain / 20_000), draw)
    gc.collect()
    kept = [one for one in (reference() for reference in alive) if one is not None]
    assert len(kept) == sum(one.pictures is not None for one in rows.shown()) <= 20
    assert len(alive) < 500
    assert len(rows.shown()) <= 110


def test_pictures_that_cannot_be_made_leave_the_row() -> None:
    rows = ReportRows()
    rows.add(row("gone", 0.1), lambda: None)
    (one,) = rows.shown()
    assert one.row.stem == "gone"
    assert one.pictures is None


def test_stems_that_differ_only_in_what_is_no_unicode_are_two_rows() -> None:
    rows = ReportRows(most_rows=2, extremes=1, spread=1)
    for stem in ("a\udcff", "a\udcfe"):
        rows.add(row(stem), picture)
    assert sorted(one.row.stem for one in rows.shown()) == ["a\udcfe", "a\udcff"]


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=60), st.integers(4, 50))
def test_the_histogram_counts_everything_once(values: list[float], most: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    bars = histogram.bars(most)
    assert sum(count for *_, count in bars) == len(values)
    for (_, high, _), (low, _, _) in pairwise(bars):
        assert high == low
    for low, high, count in bars:
        assert count == sum(low - 1e-7 < value < high + 1e-7 for value in values) or any(
            min(abs(value - low), abs(value - high)) < 1e-7 for value in values
        )
        assert not low < 0 < high, "gains and losses share no bar"


def test_the_histogram_puts_round_values_where_they_belong() -> None:
    histogram = Histogram()
    for hundredths in range(-100, 101):
        histogram.add(hundredths / 100)
    assert [count for *_, count in histogram.bars(300)] == [1] * 199 + [2]


# Pictures.


def decoded(content: bytes | None) -> npt.NDArray[np.int64]:
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)


def near(pixel: npt.NDArray[np.int64], colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixel - np.array(colour)) < 45).all())


def test_changed_pixels_have_the_colour_of_what_they_became() -> None:
    image = np.full((80, 120, 3), 200, np.uint8)
    before, after, truth = (np.zeros((80, 120), np.uint8) for _ in range(3))
    ignored = np.zeros((80, 120), np.bool_)
    truth[:, 60:] = 1
    ignored[60:] = True
    before[:, 80:], after[:, 80:] = 1, 1
    before[0:20, :20], after[0:20, :20] = 1, 0  # now right
    before[20:40, 60:80], after[20:40, 60:80] = 1, 2  # now wrong
    before[40:60, :20], after[40:60, :20] = 1, 2  # wrong before and after
    before[60:80, :20], after[60:80, :20] = 1, 0  # where the truth is silent
    pictures = draw_pictures(image, before, after, truth, ignored)
    assert pictures.size == (120, 80)
    changed = decoded(pictures.changed)
    for (y, x), colour in {
        (10, 10): BETTER,
        (30, 70): WORSE,
        (50, 10): OTHER,
        (70, 10): OTHER,
        (10, 100): (90, 90, 90),
        (10, 50): (90, 90, 90),
    }.items():
        assert near(changed[y, x], colour), (y, x, changed[y, x])
    assert near(decoded(draw_pictures(image, before, after).changed)[10, 10], OTHER)
    assert draw_pictures(image, before, after).truth is None


def test_classes_are_tinted_each_in_its_own_picture() -> None:
    image = np.full((60, 90, 3), 128, np.uint8)
    before, after, truth = (np.zeros((60, 90), np.uint16) for _ in range(3))
    before[:, :30], after[:, 30:60], truth[:, 60:] = 1, 2, 1
    ignored = np.zeros((60, 90), np.bool_)
    ignored[:30] = True
    pictures = draw_pictures(image, before, after, truth, ignored)
    coloured = []
    for content in (pictures.before, pictures.after, pictures.truth):
        pixels = decoded(content)[45, [15, 45, 75]]
        coloured.append(((pixels.max(axis=-1) - pixels.min(axis=-1)) > 40).tolist())
    assert coloured == [[True, False, False], [False, True, False], [False, False, True]]
    top = decoded(pictures.truth)[15, [15, 75]]
    assert (top.max(axis=-1) - top.min(axis=-1) < 20).all(), "ignored pixels have no class"
    assert (top > 150).all()
    assert (truth[15, 60:] == 1).all(), "the caller's labels stay"


def test_a_thin_change_in_a_large_image_is_seen() -> None:
    image = np.zeros((1500, 2000, 3), np.uint8)
    before = np.zeros((1500, 2000), np.uint8)
    after = before.copy()
    after[:, 1000:1003] = 1
    pictures = draw_pictures(image, before, after)
    assert pictures.size == (LONGER_SIDE, LONGER_SIDE * 3 // 4)
    assert (decoded(pictures.changed)[:, 112] > 60)[:, :2].all()
    assert (decoded(pictures.changed)[:, 100] < 30).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 1), (1, 1)), ((3, 5), (5, 3)), ((224, 100), (100, 224)), ((4000, 10), (8, 224)), ((1, 9000), (224, 1))],
)
def test_sizes(shape: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    before, after, truth = (rng.integers(0, 3, shape, np.uint8) for _ in range(3))
    pictures = draw_pictures(image, before, after, truth)
    assert pictures.size == size
    for content in (pictures.before, pictures.after, pictures.changed, pictures.truth):
        assert decoded(content).shape == (size[1], size[0], 3)
