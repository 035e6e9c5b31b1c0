"""g4seg-refine --no-refine: baselines alone, without an engine and without what only a refinement takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from g4seg_trt.masks import read_mask
from g4seg_trt.postprocess import Pamr

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder, Scene


def alone(folder: Folder, output: Path, *more: object) -> list[object]:
    inputs = ("--images", folder.images, "--masks", folder.masks, "--class-name", "disc")
    return [*inputs, "--ground-truth", folder.truth, "--output", output, "--no-refine", *more]


def table_in(out: str) -> dict[str, list[str]]:
    """The rows of a comparison by their names."""
    lines = out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("compared ("))
    rows = [re.split(r"  +", line.strip()) for line in lines[start + 2 :] if line.startswith("  ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(
    "given",
    [
        ["--engine", "/nonexistent"],
        ["--engine", "tiny"],
        ["--beta", "7"],
        ["--timestep", "5000"],
        ["--certainty-filter", "off"],
        ["--soften", "auto"],
        ["--preset", "wsss"],
        ["--threads", "0"],
        ["--backend", "tensorrt"],
        ["--batch-size", "2"],
        ["--low-memory"],
        ["--no-cache"],
        ["--device", "cuda", "--verify"],
    ],
    ids=" ".join,
)
def test_what_only_a_refinement_takes_is_refused(refine_here: Command, folder: Folder, given: list[str]) -> None:
    done = refine_here(*alone(folder, folder.output, "--post", "pamr", *given))
    assert done.code == 2
    names = ", ".join(word for word in given if word.startswith("--"))
    assert done.lines[-1].endswith(f"--no-refine leaves nothing to do for {names}: leave out one or the other")
    assert not folder.output.exists()


def test_it_says_that_nothing_was_refined(refine_here: Command, folder: Folder) -> None:
    done = refine_here(*alone(folder, folder.output, "--post", "pamr", "--report"))
    assert done.code == 0, done.err
    assert "4 images: 4 processed, 0 skipped (done before), 0 failed" in done.out
    page = (folder.output / "report.html").read_text("utf-8")
    assert "<dt>processed</dt><dd>4</dd>" in page
    assert "<dt>refined</dt>" not in page


def test_coarse_masks_and_a_baseline_in_one_table_without_an_engine(
    refine_here: Command, toy_engine: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    apply = Pamr.apply

    def counted(self: Pamr, *given: Any) -> Any:
        calls.append(given)
        return apply(self, *given)

    monkeypatch.setattr(Pamr, "apply", counted)
    compare = ("--compare", "pamr", "--json", folder.root / "r.json", "--resume")
    done = refine_here(*alone(folder, folder.output, *compare))
    assert done.code == 0, done.err
    assert len(calls) == 4, "once for each image"
    table = table_in(done.out)
    assert list(table) == ["coarse", "coarse + pamr"]
    assert table["coarse"] != table["coarse + pamr"]
    assert list(json.loads((folder.root / "r.json").read_text("utf-8"))["compared"]) == list(table)
    for stem in folder.stems:  # what is written is the masks as they came
        given, written = (
            read_mask(path / f"{stem}.png", "disc") for path in (folder.masks, folder.output / "probability")
        )
        assert np.abs(given - written).max() < 1e-4
    with_engine = refine_here(
        *folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth, *compare)
    )
    assert with_engine.code == 0, with_engine.err
    assert "4 refined" in with_engine.out, "the settings differ"
    assert table_in(with_engine.out).items() > table.items()
    assert list(table_in(with_engine.out)) == ["coarse", "refined", "coarse + pamr", "refined + pamr"]


def test_nothing_to_do_is_said_with_both_ways_out(refine_here: Command, folder: Folder, scene: Scene) -> None:
    done = refine_here(*alone(folder, folder.output))
    assert done.code == 2
    assert "--no-refine goes with --post or --compare" in done.lines[-1]
    one = refine_here("--image", scene.image, "--mask", scene.mask, "--output", "o.png", "--no-refine")
    assert one.code == 2
    assert one.lines[-1].endswith("--no-refine goes with --post: nothing else is left to do"), (
        "--compare is for folders"
    )
