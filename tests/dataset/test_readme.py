"""The example of the README for data sets runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

README = Path(__file__).parents[2] / "README.md"


def test_the_example_for_data_sets(dataset: Dataset) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "refine_dataset" in block]
    dataset.truth.rename(dataset.root / "ground_truth")
    for stem in dataset.stems:
        next(dataset.masks.glob(f"{stem}.*")).unlink()
        path = dataset.root / "ground_truth" / f"{stem}.png"
        true = (np.asarray(Image.open(path)) > 0).astype(np.uint8) * np.uint8(17)
        Image.fromarray(true).save(path)
        Image.fromarray(np.roll(true, 5, axis=1)).save(dataset.masks / f"{stem}.png")
    program = example.replace("engines/sd21", "tiny")
    for state in ("refined", "skipped"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=dataset.root, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:5] == [f"{stem} {state}" for stem in dataset.stems]
        assert lines[5].startswith("voc12: 5 images, ")
        assert lines[-4].split()[:2] == ["17", "sheep"]
    assert len(list((dataset.root / "refined" / "label").iterdir())) == 5
