"""The picture of the matches: its lines, which of them are drawn, its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from g4seg_trt.config import RefineConfig
from g4seg_trt.matches import MOST_LINES, NEEDED, ClassMatches, class_matches, draw_matches
from g4seg_trt.refiner import Refiner

Bytes = npt.NDArray[np.uint8]
TITLE, GAP, PANEL = 24, 12, 480
GREY = np.full((64, 64, 3), 128, np.uint8)


def matches(side: int, pairs: dict[int, int], name: str = "cat", shade: int = 100) -> ClassMatches:
    """On a grid of side x side exactly the keys of `pairs` are uncertain; they match the values."""
    indices = np.arange(side * side)
    uncertain = np.zeros((side, side), np.bool_)
    for position, index in pairs.items():
        indices[position] = index
        uncertain.flat[position] = True
    uncertain = uncertain.repeat(64 // side, axis=0).repeat(64 // side, axis=1)
    generated = np.full((64, 64, 3), shade, np.uint8)
    return ClassMatches(name, generated, indices, np.full(side * side, 0.5, np.float32), uncertain)


def panels(picture: Bytes, row: int = 0, height: int = PANEL) -> Bytes:
    """Both panels of one class and the gap between them."""
    top = TITLE + row * (height + 32)
    cut: Bytes = picture[top : top + height]
    return cut


def plain(values: Bytes) -> npt.NDArray[np.bool_]:
    """Where a picture is grey or white, as it is without any line."""
    same: npt.NDArray[np.bool_] = values.max(axis=-1) == values.min(axis=-1)
    return same


def centre(position: int, side: int) -> tuple[int, int]:
    """(row, column) of a position's middle on a panel."""
    step = PANEL // side
    return position // side * step + step // 2, position % side * step + step // 2


@pytest.mark.parametrize(("position", "index"), [(5, 5), (0, 15), (14, 1), (3, 12)])
def test_a_line_runs_from_the_generated_position_to_the_original_one(position: int, index: int) -> None:
    drawn = panels(draw_matches(GREY, [matches(4, {position: index})]))
    (y0, x0), (y1, x1) = centre(index, 4), centre(position, 4)
    x1 += PANEL + GAP
    colour = drawn[y0, x0]
    assert not plain(colour), "a dot on the original"
    assert (drawn[y1, x1] == colour).all(), "a dot of the same colour on the generated image"
    for share in (0.2, 0.5, 0.8):
        y, x = round(y0 + share * (y1 - y0)), round(x0 + share * (x1 - x0))
        assert (~plain(drawn[y - 2 : y + 3, x - 2 : x + 3])).any(), "a line between them"
    rows, columns = np.nonzero(~plain(drawn))
    length = np.hypot(y1 - y0, x1 - x0)
    away = np.abs((columns - x0) * (y1 - y0) - (rows - y0) * (x1 - x0)) / length
    assert away.max() < 6, "and no other"
    assert columns.min() > x0 - 6
    assert columns.max() < x1 + 6


def test_pixels_that_no_line_touches_are_those_of_the_images() -> None:
    drawn = panels(draw_matches(GREY, [matches(4, {0: 0})]))
    assert (drawn[100:, :PANEL] == 128).all()
    assert (drawn[100:, PANEL : PANEL + GAP] == 255).all()
    assert (drawn[100:, PANEL + GAP :] == 100).all()


def test_lines_have_colours_of_their_own() -> None:
    drawn = panels(draw_matches(GREY, [matches(8, {position: position for position in range(3, 64, 8)})]))
    colours = {tuple(int(value) for value in drawn[centre(position, 8)]) for position in range(3, 64, 8)}
    assert len(colours) == 8
    assert min(max(np.abs(np.subtract(one, other))) for one in colours for other in colours if one != other) > 40


def crossings(picture: Bytes) -> list[int]:
    """The rows, as panel pixels, where lines cross the middle of the gap."""
    touched = np.flatnonzero(~plain(panels(picture)[:, PANEL + GAP // 2]))
    runs = np.split(touched, np.flatnonzero(np.diff(touched) > 1) + 1)
    return [int(run.mean()) for run in runs if run.size]


def test_of_many_positions_some_are_shown_evenly_spread() -> None:
    rows = crossings(draw_matches(GREY, [matches(64, {position: position for position in range(10, 64 * 64, 64)})]))
    assert len(rows) == MOST_LINES
    step = PANEL / 64
    assert max(np.diff(rows)) < 2.5 * step
    assert rows[0] < step
    assert rows[-1] > PANEL - step


@pytest.mark.parametrize("count", [1, MOST_LINES - 1, MOST_LINES])
def test_few_positions_are_all_shown(count: int) -> None:
    rows = crossings(draw_matches(GREY, [matches(64, {row * 64: row * 64 for row in range(count)})]))
    assert len(rows) == count


def test_the_picture_is_the_same_every_time_and_its_inputs_stay() -> None:
    rng = np.random.default_rng(4)
    one = matches(32, {position: int(rng.integers(1024)) for position in range(100, 700)})
    before = one.indices.copy()
    first = draw_matches(GREY, [one])
    assert (first == draw_matches(GREY.copy(), [one])).all()
    assert (one.indices == before).all()
    assert (GREY == 128).all()


def test_positions_that_were_not_searched_have_no_line() -> None:
    one = matches(64, {130: 130, 2000: 9})
    one.indices[2000] = -1
    picture = draw_matches(GREY, [one])
    assert len(crossings(picture)) == 1
    assert (picture == draw_matches(GREY, [matches(64, {130: 130})]))[TITLE : TITLE + PANEL].all()


def test_without_an_uncertain_position_the_picture_says_so() -> None:
    none, one = (draw_matches(GREY, [matches(16, pairs)]) for pairs in ({}, {3: 3}))
    assert none.shape == one.shape
    assert plain(panels(none)).all()
    assert (none[TITLE + PANEL :] != one[TITLE + PANEL :]).any(), "another caption"


def test_the_caption_tells_class_count_and_similarity() -> None:
    one = matches(16, {3: 3, 9: 9})
    other_places = replace(one, similarities=np.where(one.indices == 3, 0.9, one.similarities).astype(np.float32))
    certain = replace(one, similarities=np.where(one.indices == 4, 0.9, one.similarities).astype(np.float32))
    captions = [
        draw_matches(GREY, [this])[TITLE + PANEL :].tobytes()
        for this in (one, replace(one, name="dog"), matches(16, {3: 3}), other_places, certain)
    ]
    assert len(set(captions[:4])) == 4
    assert captions[4] == captions[0], "the mean is that of the uncertain positions"


def test_every_class_has_a_row_with_its_own_generated_image() -> None:
    picture = draw_matches(GREY, [matches(4, {0: 0}, "cat", 50), matches(4, {15: 15}, "a" * 300 + "猫", 200)])
    assert picture.shape == (TITLE + 2 * (PANEL + 32), 2 * PANEL + GAP, 3)
    for row, shade, y in ((0, 50, 60), (1, 200, 420)):
        drawn = panels(picture, row)
        assert (drawn[240, :PANEL] == 128).all()
        assert (drawn[240, PANEL + GAP :] == shade).all()
        assert not plain(drawn[y, PANEL + GAP // 2])


def test_many_classes_shrink() -> None:
    assert draw_matches(GREY, [matches(4, {0: 0})] * 60).shape[0] < 20_000


@pytest.mark.parametrize(
    ("shape", "square", "panel"),
    [
        ((60, 120), 64, (240, 480)),
        ((1200, 800), 64, (480, 320)),
        ((333, 333), 512, (512, 512)),
        ((500, 1000), 1024, (384, 768)),
        ((1, 1), 64, (480, 480)),
        ((1, 90), 64, (96, 480)),
        ((900, 3), 64, (480, 96)),
    ],
)
def test_sizes(shape: tuple[int, int], square: int, panel: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    generated = np.full((square, square, 3), 90, np.uint8)
    indices = rng.integers(0, 256, 256)
    one = ClassMatches("cat", generated, indices, np.ones(256, np.float32), np.ones(shape, np.bool_))
    picture = draw_matches(image, [one])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == TITLE + panel[0] + 32
    assert picture.shape[1] == max(2 * panel[1] + GAP, 520)


def uncertain_rows(image_side: int, side: int, pixels: Sequence[int]) -> list[int]:
    uncertain = np.zeros((image_side, image_side), np.bool_)
    uncertain[pixels] = True
    generated = np.full((64, 64, 3), 90, np.uint8)
    one = ClassMatches("cat", generated, np.arange(side * side), np.ones(side * side, np.float32), uncertain)
    return [row * side // PANEL for row in crossings(draw_matches(GREY, [one]))]


def test_a_position_is_uncertain_if_any_pixel_of_its_cell_is() -> None:
    assert uncertain_rows(64, 8, [7, 8, 40]) == [0, 1, 5]
    assert uncertain_rows(100, 8, [0, 99]) == [0, 7]
    assert uncertain_rows(4, 16, [1]) == [4, 5, 6, 7], "an image smaller than the grid"


def test_a_score_changes_nothing_about_what_is_uncertain() -> None:
    rows, columns = np.mgrid[:70, :50]
    circle = ((rows - 35) ** 2 + (columns - 25) ** 2 < 300).astype(np.float32)
    masks = {"circle": circle, "scored": circle * np.float32(0.8)}
    with Refiner.from_engine("tiny") as refiner:
        refiner.set_image(np.full((70, 50, 3), 90, np.uint8))
        one, other = class_matches(masks, refiner.refine(masks, keep=NEEDED), refiner.config)
    assert 0 < one.uncertain.sum() < one.uncertain.size / 2
    assert np.array_equal(one.uncertain, other.uncertain)


def test_without_softening_a_score_decides_what_is_uncertain() -> None:
    rows, columns = np.mgrid[:70, :50]
    halved = {"circle": np.where((rows - 35) ** 2 + (columns - 25) ** 2 < 300, np.float32(0.5), np.float32(0))}
    config = RefineConfig(certainty_filter=(0.4, 0.6), beta=0.1, soften=0.0)
    with Refiner.from_engine("tiny") as refiner:
        refiner.set_image(np.full((70, 50, 3), 90, np.uint8))
        refinement = refiner.refine(halved, config=config, keep=NEEDED)
    (one,) = class_matches(halved, refinement, config)
    changed = refinement.probabilities["circle"] != halved["circle"]
    assert changed.any()
    assert np.array_equal(one.uncertain, halved["circle"] > 0)


@pytest.mark.parametrize("resolution", ["grid", "pixel"])
def test_of_a_refinement(resolution: str) -> None:
    rows, columns = np.mgrid[:70, :50]
    image = np.stack([rows * 3, columns * 5, rows + columns], axis=-1).astype(np.uint8)
    masks = {
        "circle": ((rows - 35) ** 2 + (columns - 25) ** 2 < 300).astype(np.float32),
        "slope": (columns / 49).astype(np.float32),
        "nothing": np.zeros((70, 50), np.float32),
    }
    config = RefineConfig(certainty_filter=(0.2, 0.6), beta=0.1, resolution=resolution)
    with Refiner.from_engine("tiny") as refiner:
        refiner.set_image(image)
        refinement = refiner.refine(masks, config=config, keep=NEEDED)
    classes = class_matches(masks, refinement, config)
    assert [one.name for one in classes] == list(masks)
    circle, slope, nothing = (one.uncertain for one in classes)
    assert (slope == (masks["slope"] >= np.float32(0.2)) & (masks["slope"] <= np.float32(0.6))).all()
    assert circle.any(), "a mask of 0 and 1 is softened first"
    assert not nothing.any()
    for one in classes:
        changed = refinement.probabilities[one.name] != masks[one.name]
        assert one.name == "nothing" or changed.any()
        assert not (changed & ~one.uncertain).any(), "only what is uncertain changes"
    picture = draw_matches(image, classes)
    assert (~plain(panels(picture, 0)[:, 343 + GAP // 2])).any()
    gap = panels(picture, 2)[:, 343 + 2 : 343 + GAP - 2]
    assert (gap == 255).all()
