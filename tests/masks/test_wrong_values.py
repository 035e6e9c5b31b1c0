"""Anything in the place of anything, in the formats that hold dicts and lists: one clear line, and nothing else."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g4seg_trt.errors import MaskError
from g4seg_trt.masks.formats import FORMATS
from tests.masks.case import ALL, HEIGHT, WIDTH, soft
from tests.masks.dict_files import load, save
from tests.masks.every_format import CASES
from tests.masks.tried import has_pycocotools, tried

ROUNDS = 60
"""How many values are put into a file; many times that have been tried."""

# Of pycocotools itself, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested containers."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else in one place."""
    if not path:
        return new
    key, *rest = path
    changed = list(value) if isinstance(value, (list, tuple)) else dict(value)
    changed[key] = replaced(changed[key], tuple(rest), new)
    return tuple(changed) if isinstance(value, tuple) else changed


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


JSON_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, 2**40, 2**63, -(2**63), 10**4000, 0.5, 1e308, float("inf"), float("nan")),
    *("", "x", "dog", "1", "\ud800", "a\nb", "0" * 2000, [], {}, [[]], [1, 2], [7, 11], [0, 0], [-7, -11], [10**18, 1]),
    *([[0, 0, 1, 1]], [[0, 0, 5, 0, 5, 5]], {"size": [7, 11], "counts": "l2"}, {"size": [7, 11], "counts": [77]}),
    *({"size": [7, 11], "counts": [-1, 78]}, {"size": [7, 11], "counts": [2**31, 2**31]}, {"size": [7, 11]}),
    *({"counts": "0"}, {"id": 2, "name": "dog"}, nested(50), nested(600), [None] * 50),
]

PICKLED_VALUES: list[Any] = [
    *(None, True, 0, -1, 2**70, 1 << 100_000, 0.5, float("nan"), "", "x", "\ud800", b"x", [], {}, (), {1: {}}),
    *(np.array(0.5), np.zeros(0), np.zeros((0, 3)), np.zeros((2, 0, 3)), np.zeros((1, 1)), np.zeros((1, 1, 1))),
    *(np.array([1, 2]), np.array([-1, 2]), np.array([2**62, 1]), np.array([2**63], np.uint64), np.array([[1, 2]])),
    *(np.full((2, HEIGHT, WIDTH), np.nan), np.full((HEIGHT, WIDTH), np.inf), np.full((2, HEIGHT, WIDTH), 1e300)),
    *(np.full((HEIGHT, WIDTH), -1e300), np.full((HEIGHT, WIDTH), 3, np.int8), np.full((4, HEIGHT, WIDTH), 1e300)),
    *(np.array([["a"]]), np.array([[b"a"]]), np.array([[None]]), np.full((HEIGHT, WIDTH), None)),
    *(soft() > 0.5, soft().astype(">f8"), np.asfortranarray(soft()), soft()[:, :-1], soft()[None], np.float32(0.5)),
    *(torch.tensor(0.5), torch.zeros(0), torch.full((2, HEIGHT, WIDTH), torch.nan), torch.ones(2, 2).bfloat16()),
    *(torch.from_numpy(soft()).t(), torch.zeros(1).expand(HEIGHT, WIDTH), torch.tensor([1, 2]), torch.tensor([-1, 2])),
    *({"data": None}, {"data": torch.zeros(1)}, nested(20), nested(40), {0: soft(), 1: 1 - soft()}, {"keys": 1}),
    *({-1: soft()}, {1.5: soft()}, {True: soft()}, {(1, 2): soft()}, {b"keys": soft()}, {2**60: soft()}),
]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content, 2))


STRUCTURED: dict[str, tuple[Callable[[Path, Any], None], list[Any]]] = {
    **dict.fromkeys(("coco-results", "coco-instances"), (write_json, JSON_VALUES)),
    **dict.fromkeys(("clip-es", "irn", "psa", "psa-crf"), (save, PICKLED_VALUES)),
    "mmseg": (write_pickle, PICKLED_VALUES),
}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.format in STRUCTURED])
def test_anything_in_the_place_of_anything(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    if case.format.startswith("coco"):
        pytest.importorskip("pycocotools")
    writer, values = STRUCTURED[case.format]
    source = tmp_path / case.file
    case.save(source)
    content = case.load(source)
    where = list(places(content))[1:]
    chance = random.Random(name)
    every = [(path, value) for path in where for value in values]
    for path, value in chance.sample(every, min(ROUNDS, len(every))):
        changed = replaced(content, path, copy.copy(value))
        if chance.random() < 0.2:  # and a second one
            second = list(places(changed))[1:]
            changed = replaced(changed, chance.choice(second), chance.choice(values))
        writer(source, changed)
        tried(case, source, tmp_path / f"out-{case.file}")


def test_keys_that_are_gone(tmp_path: Path) -> None:
    for name, case in CASES.items():
        if case.format not in STRUCTURED or (name.startswith("coco") and not has_pycocotools()):
            continue
        writer, _ = STRUCTURED[case.format]
        source = tmp_path / case.file
        case.save(source)
        content = case.load(source)
        for path in list(places(content)):
            if path:
                changed = copy.deepcopy(content)
                holder = changed
                for key in path[:-1]:
                    holder = holder[key]
                if isinstance(holder, (dict, list)):
                    del holder[path[-1]]
                    writer(source, changed)
                    tried(case, source, tmp_path / f"out-{case.file}")


def test_a_category_without_a_name_that_can_be_written(tmp_path: Path) -> None:
    case = CASES["coco-instances"]
    if not has_pycocotools():
        pytest.skip("needs the extra coco")
    case.save(tmp_path / case.file)
    content = case.load(tmp_path / case.file)
    content["categories"][1]["name"] = "d\ud800g"
    write_json(tmp_path / case.file, content)
    with pytest.raises(MaskError, match=r"category 2 is called 'd\\ud800g', no Unicode text"):
        FORMATS[case.format].open(tmp_path / case.file, ALL)  # type: ignore[union-attr]


def test_a_number_of_thousands_of_digits_in_a_pickle(tmp_path: Path) -> None:
    case = CASES["clip-es"]
    case.save(tmp_path / case.file)
    save(tmp_path / case.file, {**load(tmp_path / case.file), "extra": 1 << 100_000})
    with pytest.raises(MaskError, match="holds a whole number of 100001 bits: refused"):
        FORMATS[case.format].read(tmp_path / case.file, ALL)  # type: ignore[union-attr]
