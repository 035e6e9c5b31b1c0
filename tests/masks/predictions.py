"""Predictions as mmengine's DumpResults metric writes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g4seg_trt.arrays import Floats
from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.mmseg import PredictionCollection, write_collection

THREE = ClassTable("three", tuple(ClassEntry(n, name, name) for n, name in enumerate("abc", 1)), background=True)
NAMING = Naming(table=THREE)


def probabilities(channels: int, height: int, width: int, seed: int = 0) -> Floats:
    """Probabilities that sum to 1 over the channels."""
    values = np.random.default_rng(seed).random((channels, height, width), np.float32) + np.float32(0.01)
    found: Floats = values / values.sum(axis=0)
    return found


def entry(name: str, values: Floats | None, labels: Any = None, **more: Any) -> dict[str, Any]:
    """What DumpResults keeps of one image."""
    if labels is None:
        assert values is not None
        labels = values.argmax(axis=0)
    made: dict[str, Any] = {
        "img_path": f"data/VOC2012/JPEGImages/{name}.jpg",
        "ori_shape": np.shape(labels),
        "img_shape": torch.Size((3, 4)),
        "scale_factor": (1.5, 1.5),
        "reduce_zero_label": False,
        "flip_direction": None,
        "gt_sem_seg": {"data": torch.ones((1, *np.shape(labels)), dtype=torch.uint8)},
    }
    if values is not None:
        made["seg_logits"] = {"data": torch.from_numpy(values)}
    made["pred_sem_seg"] = {"data": torch.from_numpy(np.array(labels, np.int64))[None]}
    return {**made, **more}


def dump(path: Path, entries: object, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(entries, protocol))


def write(path: Path, found: PredictionCollection, results: list[Any]) -> list[dict[str, Any]]:
    """What mmengine.load gives of the written file."""
    write_collection(path, iter(results), found)
    loaded: list[dict[str, Any]] = pickle.loads(path.read_bytes())
    return loaded
