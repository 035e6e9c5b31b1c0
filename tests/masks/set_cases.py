"""Files of the formats that have one for all images."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import torch

from g4seg_trt.masks.coco_rle import decode, encode
from tests.masks.case import HEIGHT, TABLE, WIDTH, Case, bits
from tests.masks.dict_files import Array, maps

LEVEL = 3.0
"""What the logits here are above the logarithms of probabilities."""

LABELS = np.random.default_rng(5).integers(0, 4, (1, HEIGHT, WIDTH))


def _predictions(dtype: Any, logits: bool) -> list[dict[str, Any]]:
    """Two images; in the second the cow is nowhere the likeliest."""
    found = []
    for number in range(2):
        values = maps(4, HEIGHT, WIDTH, number) + np.float32(0.01)
        values[3, :, :] *= 1 - number
        values += np.float32(1e-3)
        values /= values.sum(axis=0)
        labels = torch.from_numpy(values.argmax(axis=0)[None])
        stored = torch.from_numpy(np.log(values) + np.float32(LEVEL) if logits else values).to(dtype)
        found.append(
            {
                "img_path": f"x/image{number}.jpg",
                "seg_logits": {"data": stored, "note": "kept"},
                "ori_shape": (HEIGHT, WIDTH),
                "reduce_zero_label": False,
                "pred_sem_seg": {"data": labels},
            }
        )
    return found


def _no_dog_channel(loaded: list[dict[str, Any]]) -> None:
    for one in loaded:
        one["seg_logits"]["data"][2] = 0
        one["pred_sem_seg"]["data"] = None


def _mmseg(dtype: Any, logits: bool) -> Case:
    def dog(loaded: list[dict[str, Any]]) -> Array:
        values: Array = loaded[0]["seg_logits"]["data"][2].float().numpy()
        return np.exp(values - LEVEL) if logits else values

    return Case(
        "mmseg",
        "all.pkl",
        lambda path: path.write_bytes(pickle.dumps(_predictions(dtype, logits), 2)),
        lambda path: pickle.loads(path.read_bytes()),
        dog,
        _no_dog_channel,
        step=1e-3 if dtype == torch.float16 else 1e-5,
        rounding=2e-6 if logits else 0.0,
    )


def _label_list(loaded: list[dict[str, Any]]) -> Array:
    labels: Array = loaded[0]["pred_sem_seg"]["data"].numpy()
    return labels


def _mmseg_labels() -> Case:
    entry = {"img_path": "a.jpg", "pred_sem_seg": {"data": torch.from_numpy(LABELS)}}

    def erase(loaded: list[dict[str, Any]]) -> None:
        labels = loaded[0]["pred_sem_seg"]["data"]
        labels[labels == 2] = 0

    return Case(
        "mmseg",
        "all.pkl",
        lambda path: path.write_bytes(pickle.dumps([entry], 2)),
        lambda path: pickle.loads(path.read_bytes()),
        lambda loaded: _label_list(loaded)[0] == 2,
        erase,
        hard=0.5,
        free=lambda loaded: np.isin(_label_list(loaded)[0], [0, 2]),
    )


def _code(category: int) -> dict[str, Any]:
    return encode(bits(category))


def _results() -> Case:
    def content() -> Any:
        return [
            {"image_id": image, "category_id": category, "segmentation": _code(category), "score": category / 4}
            for image in (139, 7)
            for category in (1, 2, 3)
        ]

    def dog(loaded: list[dict[str, Any]]) -> Array:
        one = next(one for one in loaded if one["category_id"] == 2)
        return decode(one["segmentation"], None, "x")

    def erase(loaded: list[dict[str, Any]]) -> None:
        loaded[:] = [one for one in loaded if one["category_id"] != 2]

    return Case(
        "coco-results",
        "all.json",
        lambda path: path.write_text(json.dumps(content())),
        lambda path: json.loads(path.read_text()),
        dog,
        erase,
        hard=0.25,
    )


def _annotation(number: int, category: int) -> dict[str, Any]:
    rows, columns = np.nonzero(bits(category))
    left, top = columns.min().item(), rows.min().item()
    return {
        "id": number,
        "image_id": 5,
        "category_id": category,
        "segmentation": _code(category),
        "area": bits(category).sum().item(),
        "bbox": [left, top, columns.max().item() - left + 1, rows.max().item() - top + 1],
        "iscrowd": 0,
    }


def _instances() -> Case:
    def content() -> Any:
        return {
            "info": {"year": 2017},
            "images": [{"id": 5, "file_name": "a/b.jpg", "height": HEIGHT, "width": WIDTH, "more": [1]}],
            "licenses": [],
            "annotations": [_annotation(number, number) for number in (1, 2, 3)],
            "categories": [{"id": entry.id, "name": entry.name, "supercategory": "x"} for entry in TABLE.classes],
        }

    def dog(loaded: dict[str, Any]) -> Array:
        one = next(one for one in loaded["annotations"] if one["category_id"] == 2)
        return decode(one["segmentation"], None, "x")

    def erase(loaded: dict[str, Any]) -> None:
        others = [one for one in loaded["annotations"] if one["category_id"] != 2]
        loaded["annotations"] = [{**one, "id": None} for one in others]

    return Case(
        "coco-instances",
        "all.json",
        lambda path: path.write_text(json.dumps(content())),
        lambda path: json.loads(path.read_text()),
        dog,
        erase,
        hard=0.5,
    )


SETS: dict[str, Case] = {
    "mmseg": _mmseg(torch.float32, False),
    "mmseg in float16": _mmseg(torch.float16, False),
    "mmseg logits": _mmseg(torch.float32, True),
    "mmseg labels": _mmseg_labels(),
    "coco-results": _results(),
    "coco-instances": _instances(),
}
"""At least one of each format with one file for all images."""
