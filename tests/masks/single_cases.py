"""Files of the formats that have one for each image."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from g4seg_trt.masks.png import label_colours
from tests.masks.case import DOG, HEIGHT, WIDTH, Case, bits, soft
from tests.masks.dict_files import Array, load, maps, save


def _picture(mode: str, hard: bool) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray((bits() * 65535 if hard else soft() * 65535).astype(np.uint16))
    grey: Image.Image = Image.fromarray((bits() * 255 if hard else soft() * 255).astype(np.uint8))
    if mode == "two colours":
        picture = Image.fromarray(bits().astype(np.uint8))
        picture.putpalette(bytes((0, 0, 0, 255, 255, 255)))
        return picture
    return grey if mode == "L" else grey.convert(mode)


def _load_picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        palette = picture.getpalette()
        depth = path.read_bytes()[24]
        return {"mode": picture.mode, "palette": palette, "depth": depth, "values": np.array(picture)}


def _grey(loaded: dict[str, Any]) -> Array:
    values = loaded["values"]
    if loaded["mode"] == "P":
        return np.asarray(np.array(loaded["palette"]).reshape(-1, 3)[values][..., 0] / 255)
    if loaded["mode"].startswith("I"):
        return np.asarray(values / 65535)
    values = values if values.ndim == 2 else values[..., 0]
    return np.asarray(values / (1 if values.dtype == np.bool_ else 255))


def _put(key: Any, loaded: Any) -> None:
    loaded[key] = np.zeros_like(loaded[key])


def _png(mode: str, hard: bool) -> Case:
    return Case(
        "png",
        "a.png",
        lambda path: _picture(mode, hard).save(path),
        _load_picture,
        _grey,
        partial(_put, "values"),
        naming=DOG,
        step=1 / 65535 if mode == "I;16" else 1 / 255,
        hard=0.5 if hard else None,
    )


LABELS = np.random.default_rng(5).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
LABELS[0] = 255


def _label_picture(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.where(LABELS == 255, 65535, LABELS).astype(np.uint16))
    if mode == "RGB":
        return Image.fromarray(label_colours(256)[LABELS])
    picture = Image.fromarray(LABELS)
    if mode == "P":
        picture.putpalette(np.random.default_rng(6).integers(0, 256, 768).astype(np.uint8).tobytes())
    return picture


def _ids(loaded: dict[str, Any]) -> Array:
    values: Array = loaded["values"]
    if values.ndim == 3:
        return np.asarray((values[:, :, None] == label_colours(256)).all(axis=-1).argmax(axis=-1))
    return values


def _no_dog_pixels(loaded: dict[str, Any]) -> None:
    loaded["values"][_ids(loaded) == 2] = 0


def _index(mode: str) -> Case:
    return Case(
        "index-png",
        "a.png",
        lambda path: _label_picture(mode).save(path),
        _load_picture,
        lambda loaded: _ids(loaded) == 2,
        _no_dog_pixels,
        hard=0.5,
        free=lambda loaded: np.isin(_ids(loaded), [0, 2]),
    )


def _npy(dtype: Any) -> Case:
    hard = np.dtype(dtype).kind != "f"
    return Case(
        "npy",
        "a.npy",
        lambda path: np.save(path, (bits() if hard else soft()).astype(dtype)),
        lambda path: {"array": np.load(path)},
        lambda loaded: loaded["array"].astype(np.float32),
        partial(_put, "array"),
        naming=DOG,
        step=1 / 1024,
        hard=0.5 if hard else None,
    )


def _stack(dtype: Any, axis: int, background: bool) -> Case:
    hard = np.dtype(dtype).kind != "f"
    make = bits if hard else soft
    first = 0 if background else 1
    whole = np.stack([make(seed) for seed in range(first, 4)], axis).astype(dtype)

    def dog(loaded: Any) -> Array:
        return np.asarray(np.moveaxis(loaded["array"], axis, 0)[2 - first].astype(np.float32))

    def erase(loaded: Any) -> None:
        np.moveaxis(loaded["array"], axis, 0)[2 - first] = 0

    return Case(
        "array",
        "a.npy",
        lambda path: np.save(path, whole),
        lambda path: {"array": np.load(path)},
        dog,
        erase,
        step=1 / 1024,
        hard=0.5 if hard else None,
    )


def _save_npz(path: Path, dtype: Any, background: bool) -> None:
    hard = np.dtype(dtype).kind != "f"
    dog = (bits(1) if hard else soft(1)).astype(dtype)
    more: dict[str, Any] = {"background": soft(3)} if background else {}
    np.savez(path, cow=soft(0).astype(np.float16), dog=dog, **more, cat=bits(2))


def _load_npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        return {name: np.load(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def _npz(dtype: Any, background: bool) -> Case:
    return Case(
        "npz",
        "a.npz",
        partial(_save_npz, dtype=dtype, background=background),
        _load_npz,
        lambda loaded: loaded["dog.npy"].astype(np.float32),
        partial(_put, "dog.npy"),
        step=1 / 1024,
        hard=0.5 if np.dtype(dtype).kind != "f" else None,
    )


def _save_folder(path: Path) -> None:
    path.mkdir()
    _picture("I;16", False).save(path / "cat.png")
    _picture("L", False).save(path / "dog.PNG")
    _picture("1", True).save(path / "background.png")
    np.save(path / "cow.npy", soft().astype(np.float16))


def _load_folder(path: Path) -> dict[str, Any]:
    return {
        file.name: np.load(file) if file.suffix == ".npy" else _load_picture(file) for file in sorted(path.iterdir())
    }


def _keyed_erase(places: dict[str, int], loaded: dict[str, Any]) -> None:
    for key, place in places.items():
        loaded[key][place] = 0


def _clip_es(dtype: Any, keys: Any) -> Case:
    saved = {
        "name": "2007_000032",
        "keys": keys,
        "strided_cam": maps(2, 2, 3).astype(np.float16),
        "attn_highres": np.stack([soft(0).astype(np.float64) / 3, soft(1)]).astype(dtype),
        "extra": [1, {"a": (2.5, None)}],
    }
    return Case(
        "clip-es",
        "a.npy",
        lambda path: save(path, saved),
        load,
        lambda loaded: loaded["attn_highres"][1].astype(np.float32),
        partial(_keyed_erase, {"attn_highres": 1}),
        step=1 / 1024,
    )


def _no_cam(loaded: dict[str, Any]) -> None:
    loaded["cam"][:] = 0


def _irn(keys: Any, cam: Any, high: Any) -> Case:
    saved = {"cam": cam(maps(2, 2, 3)), "keys": keys, "high_res": high(np.stack([soft(0), soft(1)])), "x": np.int64(3)}
    return Case(
        "irn",
        "a.npy",
        lambda path: save(path, saved),
        load,
        lambda loaded: np.asarray(loaded["high_res"][1], np.float32),
        partial(_keyed_erase, {"cam": 1, "high_res": 1}),
        derived=_no_cam,
        step=1 / 1024,
    )


def _psa(dtype: Any, torched: bool) -> Case:
    dog = soft(1).astype(dtype)
    saved = {2: soft(0), np.int64(1): torch.from_numpy(dog) if torched else dog, np.int32(0): soft(2).astype("f8") / 3}
    return Case(
        "psa",
        "a.npy",
        lambda path: save(path, saved),
        load,
        lambda loaded: np.asarray(loaded[1], np.float32),
        partial(_put, 1) if not torched else lambda loaded: loaded.update({1: None}),
        step=1 / 1024,
    )


def _save_crf(path: Path) -> None:
    whole = maps(4, HEIGHT, WIDTH)
    whole /= whole.sum(axis=0)
    save(path, {np.int64(0): whole[0], 3: whole[3].astype(np.float64), 2: whole[2], 1: whole[1]})


def _no_dog_and_background(loaded: dict[Any, Any]) -> None:
    loaded[0], loaded[2] = None, None


def _mat(dtype: Any, packed: bool = True) -> Case:
    whole = {"1": np.rint(soft(1) * 255).astype(dtype), "0": soft(0) * 255, "2": np.rint(soft(2) * 255).astype("f8")}

    def save_mat(path: Path) -> None:
        pytest.importorskip("scipy.io").savemat(path, whole, do_compression=packed)

    def load_mat(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = pytest.importorskip("scipy.io").loadmat(path)
        return {key: value for key, value in found.items() if not key.startswith("__")}

    return Case(
        "diffsegmenter",
        "a.mat",
        save_mat,
        load_mat,
        lambda loaded: loaded["1"] / 255,
        partial(_put, "1"),
        step=1 / 255 if np.dtype(dtype).kind != "f" else 1e-6,
        rounding=2e-5,  # of 255
    )


SINGLE: dict[str, Case] = {
    **{f"png {mode}": _png(mode, False) for mode in ("L", "I;16", "P", "LA", "RGB", "RGBA")},
    **{f"hard png {mode}": _png(mode, True) for mode in ("1", "L", "I;16", "two colours")},
    **{f"index {mode}": _index(mode) for mode in ("L", "P", "RGB", "I;16")},
    **{f"npy {dtype}": _npy(dtype) for dtype in ("f2", "f4", ">f4", "f8", "?", "u1")},
    "array": _stack("f4", 0, False),
    "array with background": _stack("f8", 0, True),
    "array, channels last": _stack("f2", 2, False),
    "hard array": _stack("u1", 2, True),
    "npz": _npz("f4", False),
    "npz with background": _npz("f8", True),
    "hard npz": _npz("?", False),
    "class-folder": Case(
        "class-folder",
        "a",
        _save_folder,
        _load_folder,
        lambda loaded: _grey(loaded["dog.PNG"]),
        lambda loaded: _put("values", loaded["dog.PNG"]),
        step=1 / 255,
    ),
    "clip-es": _clip_es(np.float16, np.array([2, 1])),
    "clip-es in float64": _clip_es(np.float64, torch.tensor([2, 1], dtype=torch.int32)),
    "irn": _irn(torch.tensor([2, 1]), torch.from_numpy, lambda one: one),
    "irn in tensors": _irn(
        np.array([2, 1]), lambda one: one.astype(np.float64), lambda one: torch.from_numpy(one).half()
    ),
    "psa": _psa(np.float32, False),
    "psa in float16": _psa(np.float16, False),
    "psa in tensors": _psa(np.float64, True),
    "psa-crf": Case(
        "psa-crf",
        "a.npy",
        _save_crf,
        load,
        lambda loaded: loaded[2] / np.maximum(loaded[0] + loaded[2], 1e-12),
        _no_dog_and_background,
    ),
    "diffsegmenter": _mat(np.float32),
    "diffsegmenter in bytes": _mat(np.uint8),
    "diffsegmenter, not packed": _mat(np.float64, packed=False),
}
"""At least one of each format with a file, or a folder, for each image."""
