"""g4seg-refine on one image: masks and ground truth in folders are safe, each class has one mask, the rule is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Scene

    Files = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("option", ["--output", "--label", "--overlay", "--matches", "--json"])
@pytest.mark.parametrize("inputs", ["masks", "truth"])
def test_no_output_takes_the_place_of_a_file_in_a_folder_of_inputs(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path, files_of: Files, inputs: str, option: str
) -> None:
    for name in ("masks", "truth"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disc.png").write_bytes(scene.mask.read_bytes())
        (tmp_path / name / "star.png").write_bytes(scene.truth.read_bytes())
    options = {
        "--engine": toy_engine,
        "--image": scene.image,
        "--mask": tmp_path / "masks",
        "--ground-truth": tmp_path / "truth",
        "--output": tmp_path / "out.npz",
        option: tmp_path / inputs / "disc.png",
    }
    before = files_of(tmp_path)
    done = refine_here(*[part for pair in options.items() for part in pair])
    assert done.code == 1
    assert f"it is the input {tmp_path / inputs / 'disc.png'}" in done.lines[-1]
    assert files_of(tmp_path) == before


def test_two_masks_of_one_class_are_refused(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    names = {"aeroplane": scene.mask, "airplane": scene.truth, "cat": scene.mask}
    masks = [part for name, path in names.items() for part in ("--mask", f"{name}={path}")]
    arguments = ("--engine", toy_engine, "--image", scene.image, "--output", tmp_path / "out.npz")
    done = refine_here(*arguments, *masks, "--dataset", "voc12")
    assert done.code == 1
    assert "'aeroplane' and 'airplane' are both the class 'aeroplane'" in done.lines[-1]
    assert not (tmp_path / "out.npz").exists()
    assert refine_here(*arguments, *masks).code == 0, "without a table they are two"


@pytest.mark.parametrize(
    ("mask", "more", "rule"),
    [
        ("clip-es", ("--dataset", "voc12"), "power:1"),
        ("clip-es", ("--dataset", "voc12", "--background", "constant:0.3"), "constant:0.3"),
        ("npz", (), "channel"),
        ("png", ("--class-name", "disc"), "constant:0.5"),
    ],
)
def test_the_rule_that_decided_is_told(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path, mask: str, more: tuple[str, ...], rule: str
) -> None:
    np.save(tmp_path / "clip-es.npy", {"keys": np.array([16]), "attn_highres": scene.probability[None]})  # type: ignore[arg-type]
    np.savez(tmp_path / "npz.npz", disc=scene.probability, background=1 - scene.probability)
    files = {"clip-es": tmp_path / "clip-es.npy", "npz": tmp_path / "npz.npz", "png": scene.mask}
    arguments = ("--image", scene.image, "--mask", files[mask], *more, "--output", tmp_path / "out.npz", "--json", "-")
    for steps in (("--engine", toy_engine), ("--no-refine", "--post", "pamr")):
        done = refine_here(*arguments, *steps)
        assert done.code == 0, done.err
        assert json.loads(done.out)["background"] == rule


def test_a_missing_background_is_asked_for_where_it_can_be_given(
    refine_here: Command, toy_engine: Path, scene: Scene, tmp_path: Path
) -> None:
    np.savez(tmp_path / "mask.npz", disc=scene.probability)
    arguments = ("--engine", toy_engine, "--image", scene.image, "--output", tmp_path / "o.npz")
    one = refine_here(*arguments, "--mask", tmp_path / "mask.npz", "--background", "channel")
    assert one.code == 1
    assert f"needs a mask of the background, which {tmp_path / 'mask.npz'} does not hold" in one.lines[-1]
    several = refine_here(*arguments, "--mask", f"disc={scene.mask}", "--background", "channel")
    assert several.code == 1
    assert "--mask background=FILE" in several.lines[-1]
