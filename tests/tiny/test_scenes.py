from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from g4seg_export.tiny import scenes
from g4seg_export.tiny.corruption import SEVERITIES, coarse_mask


def _iou(coarse: np.ndarray, truth: np.ndarray) -> float:
    mask = coarse >= 0.5
    return float((mask & truth).sum() / (mask | truth).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(scenes.KINDS), st.sampled_from(sorted(SEVERITIES)))
def test_scene_and_coarse_mask_hold_their_contract(seed: int, kind: str, severity: str) -> None:
    rng = np.random.default_rng(seed)
    scene = scenes.make_scene(rng, kind)
    assert scene.image.shape == (64, 64, 3)
    assert scene.image.dtype == np.uint8
    assert scene.target in scene.masks
    assert 1 <= len(scene.masks) <= 3
    assert set(scene.masks) <= set(scenes.CLASS_NAMES)
    covered = np.sum(list(scene.masks.values()), axis=0)
    assert covered.max() == 1, "visible masks must be disjoint"
    assert min(np.count_nonzero(m) for m in scene.masks.values()) >= 150
    coarse = coarse_mask(rng, scene.masks[scene.target], [], severity)
    assert coarse.shape == (64, 64)
    assert coarse.dtype == np.float32
    assert coarse.min() >= 0
    assert 0.9 < coarse.max() <= 1


def test_same_seed_same_samples_other_seed_others() -> None:
    first, again, other = (list(scenes.make_samples(4, seed)) for seed in (5, 5, 6))
    for one, two, three in zip(first, again, other, strict=True):
        assert np.array_equal(one.scene.image, two.scene.image)
        assert np.array_equal(one.coarse, two.coarse)
        assert not np.array_equal(one.scene.image, three.scene.image)


def test_kinds_and_severities_take_turns() -> None:
    found = {(s.kind, s.severity) for s in scenes.make_samples(6, 1)}
    assert found == {(k, s) for k in scenes.KINDS for s in SEVERITIES}


def test_severities_are_ordered_and_in_range() -> None:
    means = [
        np.mean([_iou(s.coarse, s.scene.masks[s.scene.target]) for s in scenes.make_samples(120, 3, "both", level)])
        for level in ("light", "medium", "heavy")
    ]
    assert 0.8 > means[0] > means[1] > means[2] > 0.5


def test_every_shape_has_an_inside_and_an_outside() -> None:
    y, x = np.mgrid[-1.6:1.6:65j, -1.6:1.6:65j].astype(np.float32)
    shapes = [c.distance(x, y) < 0 for c in scenes.CLASSES]
    for shape in shapes:
        assert 0.05 < shape.mean() < 0.6
        assert not shape[0].any() and not shape[-1].any() and not shape[:, 0].any() and not shape[:, -1].any()
    for i, one in enumerate(shapes):
        for other in shapes[i + 1 :]:
            assert (one & other).sum() / (one | other).sum() < 0.9


def test_command_writes_a_set_and_loads_no_torch(tmp_path: Path) -> None:
    output = tmp_path / "a set"
    code = (
        "import sys; from g4seg_export.tiny.scenes import main;"
        f"code = main(['--count', '6', '--seed', '9', '--output', {str(output)!r}]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    classes = json.loads((output / "classes.json").read_text())
    assert len(classes) == 6
    for name, label in classes.items():
        assert label in scenes.CLASS_NAMES
        assert Image.open(output / "images" / f"{name}.png").mode == "RGB"
        mask = np.asarray(Image.open(output / "masks" / f"{name}.png"))
        truth = np.asarray(Image.open(output / "ground_truth" / f"{name}.png"))
        assert mask.dtype == np.uint8 and len(np.unique(mask)) > 2
        assert set(np.unique(truth)) == {0, 255}


def test_command_refuses_a_folder_that_holds_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert scenes.main(["--count", "1", "--seed", "9", "--output", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
