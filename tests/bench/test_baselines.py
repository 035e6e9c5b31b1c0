"""The comparison of published post-processing with G4Seg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_bench.baselines import enlarged, main
from g4seg_bench.inputs import enlarge
from g4seg_export.tiny.scenes import make_samples

Record = Callable[..., dict[str, Any]]


def test_the_comparison(record_of: Record, toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pydensecrf", reason="the extra crf is not installed")
    options = ["--engine", toy_engine, "--count", 4, "--seed", 3, "--post", "crf:clip-es", "--post", "pamr,crf:irn"]
    record = record_of(main, *options)
    assert (record["benchmark"], record["engine"], record["count"], record["size"]) == ("baselines", "toy", 4, 64)
    posts = ["crf:clip-es", "pamr,crf:irn"]
    methods = record["methods"]
    assert list(methods) == ["coarse", *posts, "G4Seg", *[f"G4Seg + {post}" for post in posts]]
    assert methods["coarse"]["all"]["gain"] == 0.0
    assert {row["all"]["before"] for row in methods.values()} == {methods["coarse"]["all"]["after"]}
    assert len({row["all"]["after"] for row in methods.values()}) == len(methods), "every way is another"
    for post in posts:
        for key, one in (("g4seg_over", "G4Seg"), ("g4seg_before", f"G4Seg + {post}")):
            difference = methods[one]["all"]["after"] - methods[post]["all"]["after"]
            assert record[key][post]["mean"] == pytest.approx(difference, abs=0.02)
            assert record[key][post]["error"] > 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in methods)


def test_enlarged_scenes_are_those_of_the_speed_benchmarks() -> None:
    sample = next(make_samples(1, 5))
    large = enlarged(sample, 192)
    image, coarse = enlarge(sample, 192)
    assert (large.scene.image == image).all()
    assert (large.coarse == coarse).all()
    truth, small = large.scene.masks[sample.scene.target], sample.scene.masks[sample.scene.target]
    assert (truth == np.kron(small, np.ones((3, 3), dtype=np.bool_))).all()
    assert (enlarged(sample, 64).scene.image == sample.scene.image).all()


@pytest.mark.parametrize("seed", [0, -1])
def test_the_training_scenes_are_refused(seed: int) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--seed", str(seed)])


def test_an_unknown_process_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--post", "densecrf"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("python -m g4seg_bench.baselines: error: post-processing 'densecrf', allowed: crf, ")
