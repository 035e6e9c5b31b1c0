"""Runs that are killed with SIGKILL at random moments and gone on with end as an undisturbed run does."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

IMAGES, KILLS = 200, 20

Outputs = Callable[[Path], dict[str, bytes]]
Lines = Callable[[Path], list[dict[str, object]]]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill(dataset: Dataset, chance: random.Random, *more: object) -> None:
    """Start a run and kill it: at any moment from its start, or soon after it has recorded something."""
    process = dataset.start("--resume", "--overlay", *more)
    records = dataset.output / "records" / "all.jsonl"
    size = size_of(records)
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 0.8))
    else:
        deadline = time.monotonic() + 60
        while size_of(records) <= size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 1.5 * IMAGES / (KILLS * 15)))
    process.kill()
    process.communicate(timeout=60)


def make_folders(dataset: Dataset) -> None:
    """Every second PNG among the masks becomes a folder of two."""
    for path in sorted(dataset.masks.glob("*.png"))[1::2]:
        folder = dataset.masks / path.stem
        folder.mkdir()
        Image.fromarray(255 - np.asarray(Image.open(path))).save(folder / "background.png")
        path.rename(folder / "disc.png")


def check_records(dataset: Dataset, lines: list[dict[str, object]], whole: dict[str, bytes] | None) -> set[str]:
    """Every record that counts is about files that are there and whole; returns their stems."""
    done: dict[str, dict[str, list[object]]] = {}
    for line in lines:
        if "withdrawn" in line:
            done.pop(str(line["withdrawn"]), None)
        elif "stem" in line:
            done[str(line["stem"])] = line["outputs"]  # type: ignore[assignment]
    for found in done.values():
        for name, size in found.values():
            path = dataset.output / str(name)
            files = list(path.iterdir()) if path.is_dir() else [path]
            content = {file.relative_to(dataset.output).as_posix(): file.read_bytes() for file in files}
            assert sum(map(len, content.values())) == size
            assert whole is None or content.items() <= whole.items()
    folders = [path for path in (dataset.output / "masks").glob("im *") if path.is_dir()]
    assert all(len(list(path.iterdir())) == 2 for path in folders), "no folder under its own name is half-written"
    return set(done)


def test_killed_and_gone_on_is_the_same_as_undisturbed(
    make: Callable[[int], Dataset], outputs_of: Outputs, lines_of: Lines, tmp_path: Path
) -> None:
    dataset, chance = make(IMAGES), random.Random(6)
    make_folders(dataset)
    undisturbed = dataset.refine("--overlay", output=tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    whole = outputs_of(tmp_path / "undisturbed")
    assert len(whole) == 4 * IMAGES + sum(path.is_dir() for path in dataset.masks.iterdir())
    done: set[str] = set()
    for _ in range(KILLS):
        kill(dataset, chance)
        now = check_records(dataset, lines_of(dataset.output), whole) if dataset.output.exists() else set()
        assert now >= done, "what was recorded stays"
        done = now
        halves = [
            name for name, data in outputs_of(dataset.output).items() if ".part" not in name and data != whole[name]
        ]
        assert not halves, "no file under its own name is half-written"
    last = dataset.refine("--resume", "--overlay")
    assert last.returncode == 0, last.stderr
    assert f"{IMAGES} images: {IMAGES - len(done)} refined, {len(done)} skipped" in last.stdout
    assert outputs_of(dataset.output) == whole
    assert not list(dataset.output.rglob("*.part"))


def test_a_kill_while_images_are_done_again_never_vouches_for_a_mixture(
    make: Callable[[int], Dataset], outputs_of: Outputs, lines_of: Lines, tmp_path: Path
) -> None:
    dataset, chance = make(24), random.Random(7)
    make_folders(dataset)
    assert dataset.refine("--overlay").returncode == 0
    other = ("--beta", 0.9, "--certainty-filter", "0.1,0.9")
    assert dataset.refine("--overlay", *other, output=tmp_path / "other").returncode == 0
    wanted = outputs_of(tmp_path / "other")
    assert {name for name, data in outputs_of(dataset.output).items() if data != wanted[name]}
    for _ in range(2):
        kill(dataset, chance, *other)
        check_records(dataset, lines_of(dataset.output), None)
    assert dataset.refine("--resume", "--overlay", *other).returncode == 0
    assert outputs_of(dataset.output) == wanted
