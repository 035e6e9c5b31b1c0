"""refine_many: the same results as one by one, in order, whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from g4seg_trt.errors import ClassNameError, ConfigError, ImageError, MaskError
from g4seg_trt.refinement import KEEP, Refinement
from g4seg_trt.refiner import Refiner

Image = npt.NDArray[np.uint8]
Masks = dict[str, npt.NDArray[np.float32]]
Make = Callable[..., Refiner]
Scene = Callable[..., tuple[Image, npt.NDArray[np.float32]]]


@pytest.fixture
def samples(make_scene: Scene) -> list[tuple[Image, Masks]]:
    """Images of different sizes with one to three classes, some of them empty."""
    made: list[tuple[Image, Masks]] = []
    for index in range(9):
        image, mask = make_scene(20 + 3 * index, 41 - 2 * index, shift=0.02 * index)
        masks = {"disc": mask, "a cat": mask[::-1].copy() * np.float32(0.9), "dog": np.zeros_like(mask)}
        made.append((image, {name: masks[name] for name in list(masks)[: 1 + index % 3]}))
    made[3][1]["disc"][:] = 0
    return made


def items(samples: list[tuple[Image, Masks]]) -> list[tuple[int, Callable[[], tuple[Image, Masks]]]]:
    return [(index, partial(samples.__getitem__, index)) for index in range(len(samples))]


def same(one: Refinement, other: Refinement) -> bool:
    return (
        list(one.probabilities) == list(other.probabilities)
        and all(np.array_equal(one.probabilities[name], other.probabilities[name]) for name in one.probabilities)
        and (one.softened, one.warnings) == (other.softened, other.warnings)
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_one_by_one_and_in_a_stream(batch_size: int, make_refiner: Make, samples: Any) -> None:
    refiner = make_refiner(batch_size=batch_size, beta=0.3)
    streamed = list(refiner.refine_many(items(samples), keep=KEEP))
    assert [key for key, _ in streamed] == list(range(len(samples)))
    for (image, masks), (_, result) in zip(samples, streamed, strict=True):
        refiner.set_image(image)
        alone = refiner.refine(masks, keep=KEEP)
        assert isinstance(result, Refinement)
        assert same(result, alone)
        for name in masks:
            assert np.array_equal(result.generated[name], alone.generated[name])
            assert np.array_equal(result.indices[name], alone.indices[name])


def test_batches_are_filled_across_images(make_refiner: Make, samples: Any, runners: Any) -> None:
    refiner = make_refiner(batch_size=4)
    list(refiner.refine_many(items(samples)))
    pairs = sum(bool(mask.any()) for _, masks in samples for mask in masks.values())
    assert len(runners["unet"].calls) == -(-pairs // 4)
    assert len(runners["vae_encoder"].calls) == 8  # the ninth has nothing to refine
    assert len(runners["text_encoder"].calls) == 2


def test_a_failing_item_does_not_stop_the_others(make_refiner: Make, samples: Any) -> None:
    def missing() -> tuple[Image, Masks]:
        raise ImageError("gone.png: no such file")

    image, masks = samples[0]
    work = [
        ("first", lambda: (image, masks)),
        ("missing", missing),
        ("wrong size", lambda: (image, {"disc": np.zeros((3, 3), dtype=np.float32)})),
        ("no image", lambda: (None, masks)),
        ("no name", lambda: (image, {"": masks["disc"]})),
        ("last", lambda: (image, masks)),
    ]
    results = dict(make_refiner(batch_size=3).refine_many(work))
    assert list(results) == [key for key, _ in work]
    assert isinstance(results["first"], Refinement)
    assert isinstance(results["last"], Refinement)
    assert same(results["first"], results["last"])
    assert str(results["missing"]) == "gone.png: no such file"
    assert isinstance(results["wrong size"], MaskError)
    assert isinstance(results["no image"], ImageError)
    assert isinstance(results["no name"], ClassNameError)


def test_a_bug_in_a_loader_is_raised_at_its_turn(make_refiner: Make, samples: Any) -> None:
    def broken() -> tuple[Image, Masks]:
        raise ZeroDivisionError

    stream = make_refiner().refine_many([("fine", lambda: samples[0]), ("broken", broken)])
    assert next(stream)[0] == "fine"
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_loading_runs_ahead_in_one_other_thread(make_refiner: Make, samples: Any) -> None:
    threads: set[int] = set()
    loaded: list[int] = []

    def load(index: int) -> tuple[Image, Masks]:
        threads.add(threading.get_ident())
        loaded.append(index)
        image, masks = samples[index]
        return image, masks

    stream = make_refiner().refine_many([(n, partial(load, n)) for n in range(9)], prefetch=3)
    next(stream)
    for _ in range(200):
        if len(loaded) == 4:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert loaded == [0, 1, 2, 3]  # the one handed out, and three more
    assert len(list(stream)) == 8
    assert threads and threading.get_ident() not in threads and len(threads) == 1


@pytest.mark.parametrize("batch_size", [1, 8])
def test_few_images_are_held_back(batch_size: int, make_refiner: Make, samples: Any) -> None:
    image, masks = samples[0]
    taken = 0

    def endless() -> Iterator[tuple[int, Callable[[], tuple[Image, Mapping[str, Any]]]]]:
        nonlocal taken
        empty = {"disc": np.zeros_like(masks["disc"])}
        for index in range(10_000):
            taken += 1
            yield index, partial([(image, masks), (image, empty)].__getitem__, min(index, 1))

    stream = make_refiner(batch_size=batch_size).refine_many(endless(), prefetch=2)
    assert next(stream)[0] == 0
    assert taken <= 2 * batch_size + 5
    stream.close()


def test_stopping_early_ends_the_thread_and_loads_no_more(make_refiner: Make, samples: Any) -> None:
    before, loaded = threading.active_count(), []

    def load(index: int) -> tuple[Image, Masks]:
        time.sleep(0.05)
        loaded.append(index)
        image, masks = samples[index]
        return image, masks

    stream = make_refiner().refine_many([(n, partial(load, n)) for n in range(9)], prefetch=8)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert len(loaded) < 8


def test_the_image_that_is_set_is_left_alone(make_refiner: Make, samples: Any) -> None:
    refiner = make_refiner()
    image, masks = samples[1]
    refiner.set_image(image)
    before = refiner.refine(masks)
    list(refiner.refine_many(items(samples)))
    assert same(refiner.refine(masks), before)


def test_timings_of_a_stream_add_up(make_refiner: Make, samples: Any) -> None:
    refiner = make_refiner(batch_size=4)
    start = time.perf_counter()
    results = [result for _, result in refiner.refine_many(items(samples))]
    wall = time.perf_counter() - start
    unet = sum(result.timings.get("unet", 0.0) for result in results if isinstance(result, Refinement))
    assert 0 < unet < wall


def test_arguments_are_checked_at_the_call(make_refiner: Make, samples: Any) -> None:
    refiner = make_refiner()
    with pytest.raises(ConfigError, match="prefetch is 0"):
        refiner.refine_many(items(samples), prefetch=0)
    with pytest.raises(ConfigError, match="'all'"):
        refiner.refine_many(items(samples), keep=["all"])


def test_no_items(make_refiner: Make) -> None:
    assert list(make_refiner().refine_many([])) == []
