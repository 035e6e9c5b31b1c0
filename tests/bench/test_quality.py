"""Figures of the quality benchmark against hand calculations, and the whole of it on the toy engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_bench.quality import Score, iou, main, score, table, unchanged
from g4seg_export.tiny.scenes import make_samples

Record = Callable[..., dict[str, Any]]

SCORE = Score(
    before=np.array([50.0, 60.0, 70.0]),
    after=np.array([55.0, 58.0, 70.0]),
    kinds=np.array(["plain", "shuffled", "plain"]),
    severities=np.array(["light", "medium", "light"]),
)


def test_iou() -> None:
    truth = np.array([[True, True, False, False]])
    assert iou(np.array([[0.9, 0.4, 0.5, 0.1]], dtype=np.float32), truth) == pytest.approx(100 / 3)
    assert iou(np.array([[0.5, 0.7, 0.4, 0.0]], dtype=np.float32), truth) == 100.0
    assert iou(np.zeros((1, 4), dtype=np.float32), truth) == 0.0
    assert iou(np.zeros((1, 4), dtype=np.float32), ~truth & truth) == 100.0


def test_a_score_s_summary() -> None:
    # Gains 5, -2, 0: mean 1, sample variance 13, two standard errors 2 * sqrt(13 / 3).
    assert SCORE.summary() == {
        "count": 3,
        "before": 60.0,
        "after": 61.0,
        "gain": 1.0,
        "gain_error": 4.16,
        "worse_percent": 33.3,
    }
    assert SCORE.part(kind="plain").summary()["gain"] == 2.5
    assert SCORE.part(severity="medium").summary()["gain"] == -2.0
    assert SCORE.part(severity="medium").summary()["gain_error"] == 0.0
    assert len(SCORE.part(kind="shuffled", severity="light").before) == 0


def test_the_table() -> None:
    assert table({"method": SCORE}).splitlines() == [
        "| method | mean IoU | all | light | medium | plain | shuffled | made worse |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| coarse (mean IoU) | 60.0 | 60.0 | 60.0 | 60.0 | 60.0 | 60.0 |  |",
        "| method | 61.0 | +1.00 | +2.50 | -2.00 | +2.50 | -2.00 | 33 % |",
    ]


def test_scores_keep_what_belongs_to_each_sample() -> None:
    samples = list(make_samples(4, 5))
    result = score(samples, unchanged, "nothing")
    assert np.array_equal(result.before, result.after)
    assert result.kinds.tolist() == [sample.kind for sample in samples]
    assert result.severities.tolist() == [sample.severity for sample in samples]
    perfect = score(samples, lambda sample: sample.scene.masks[sample.scene.target].astype(np.float32), "truth")
    assert perfect.after.tolist() == [100.0] * 4


@pytest.fixture(scope="module")
def options(toy_engine: Path) -> list[object]:
    return ["--engine", toy_engine, "--count", 4, "--seed", 3, "--settings", '{"timestep": 300}']


def test_the_ablation(record_of: Record, options: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of(main, *options, "--only", "ablation")
    assert (record["benchmark"], record["engine"], record["count"]) == ("quality", "toy", 4)
    assert (record["config"]["timestep"], record["config"]["beta"]) == (300, 0.5)
    ablation = record["ablation"]
    assert ablation["nothing"]["all"]["gain"] == 0.0
    assert ablation["nothing"]["all"]["worse_percent"] == 0.0
    assert {"EMI", "SCA", "EMI + SCA", "EMI + SCA + CF", "colour model"} < set(ablation)
    coarse = ablation["nothing"]["all"]["before"]
    printed = capsys.readouterr().out
    for name, groups in ablation.items():
        assert groups["all"]["count"] == 4
        assert groups["all"]["before"] == coarse
        assert groups["all"]["gain"] == pytest.approx(groups["all"]["after"] - coarse, abs=0.02)
        kinds = [groups[kind] for kind in ("plain", "shuffled")]
        assert [kind["count"] for kind in kinds] == [2, 2]
        assert np.mean([kind["gain"] for kind in kinds]) == pytest.approx(groups["all"]["gain"], abs=0.02)
        assert f"| {name} |" in printed


def test_the_timesteps(record_of: Record, options: list[object]) -> None:
    sweep = record_of(main, *options, "--only", "timesteps")["timesteps"]
    assert list(sweep) == ["100", "200", "300", "400", "500", "600", "700"]
    assert sweep["300"] == record_of(main, *options, "--only", "ablation")["ablation"]["EMI + SCA + CF"]
    assert sweep["700"] != sweep["300"]


def test_the_training_scenes_are_refused(toy_engine: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--engine", str(toy_engine), "--seed", "0"])
