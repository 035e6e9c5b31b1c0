"""Predictions of every format: told the size and the rules, they are read with less work and to the same figures."""

from __future__ import annotations

import json
import pickle
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from g4seg_trt.arrays import Labels
from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import MaskError
from g4seg_trt.evaluate import LabelSpace, SetEvaluation, parse_sweep
from g4seg_trt.evaluate.pairs import SetFiles
from g4seg_trt.evaluate.predictions import Predictions, labels_under
from g4seg_trt.masks import formats
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.update import BackgroundRule

Floats = npt.NDArray[np.float32]

TABLE = ClassTable("twelve", tuple(ClassEntry(n, f"c{n}", f"c {n}", category=n) for n in range(1, 13)), True)
SIZES = {"a": (11, 14), "b c": (9, 16), "0007": (13, 10)}
RULES = (*parse_sweep("constant:0.1:0.9:0.2"), *parse_sweep("power:1:3:1"))


def scores(stem: str) -> Floats:
    """The background's and the classes' probabilities [13,H,W]: few of the classes win anywhere, with many ties."""
    generator = np.random.default_rng(len(stem))
    weights = np.array([2.0, *[2.0] * 4, *[0.2] * 8]).reshape(13, 1, 1)
    values = np.kron(generator.random((13, 4, 5)) ** 2 * weights, np.ones((4, 4)))[
        :, : SIZES[stem][0], : SIZES[stem][1]
    ]
    whole: Floats = (np.round(16 * values / values.sum(axis=0)) / 16).astype(np.float32)
    return whole


def masks_of(stem: str, *, background: bool) -> CoarseMasks:
    whole = scores(stem)
    ids = tuple(range(1, 13))
    names = tuple(f"c{number}" for number in ids)
    return CoarseMasks(ids, names, whole[1:], background=whole[0] if background else None)


def one_file_each(name: str, suffix: str, *, background: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        found = formats.format_named(name)
        assert isinstance(found, formats.Format)
        for stem in SIZES:
            found.write(folder / f"{stem}{suffix}", masks_of(stem, background=background))
        return folder

    return write


def arrays(folder: Path) -> Path:
    for stem in SIZES:
        np.save(folder / f"{stem}.npy", scores(stem))
    return folder


def mmseg(folder: Path, scale: float | None = None) -> Path:
    import torch

    entries = []
    for stem in SIZES:
        values = scores(stem) if scale is None else scores(stem) * np.float32(scale)
        labels = torch.from_numpy(values.argmax(axis=0)[None])
        entry = {"img_path": f"x/{stem}.jpg", "pred_sem_seg": {"data": labels}}
        entries.append({**entry, "seg_logits": {"data": torch.from_numpy(values)}})
    (folder / "a.pkl").write_bytes(pickle.dumps(entries, 2))
    return folder / "a.pkl"


def coco_results(folder: Path) -> Path:
    mask = pytest.importorskip("pycocotools.mask")
    found = []
    for number, stem in enumerate(SIZES):
        for category, one in enumerate(scores(stem)[1:], start=1):
            code = mask.encode(np.asfortranarray((one > 0.1).astype(np.uint8)))
            segmentation = {"size": list(code["size"]), "counts": code["counts"].decode()}
            one_result = {"image_id": number, "category_id": category, "segmentation": segmentation}
            found.append({**one_result, "score": float(one.max())})
    (folder / "a.json").write_text(json.dumps(found), encoding="utf-8")
    return folder / "a.json"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "npz": one_file_each("npz", ".npz"),
    "npz with background": one_file_each("npz", ".npz", background=True),
    "class folder": one_file_each("class-folder", ""),
    "class folder with background": one_file_each("class-folder", "", background=True),
    "array": arrays,
    "clip-es": one_file_each("clip-es", ".npy"),
    "irn": one_file_each("irn", ".npy"),
    "psa": one_file_each("psa", ".npy"),
    "psa-crf": one_file_each("psa-crf", ".npy", background=True),
    "diffsegmenter": one_file_each("diffsegmenter", ".mat"),
    "mmseg": mmseg,
    "mmseg with logits": lambda folder: mmseg(folder, 20.0),
    "coco-results": coco_results,
}


def predictions(kind: str, folder: Path) -> Predictions:
    """What a maker wrote, whose stems are those of SIZES; files of COCO results have numbers."""
    where = MAKERS[kind](folder)
    found = Predictions.find(where, TABLE, SIZES)
    if set(found.stems) == set(SIZES):
        return found
    names = dict(zip(SIZES, found.stems, strict=True))
    return replace(found, stems=names.keys(), read=lambda stem, *more: found.read(names[stem], *more))


def told_nothing(given: Predictions) -> Predictions:
    """The same, read without size and rules."""
    return replace(given, read=lambda stem, *_: given.read(stem))


@pytest.mark.parametrize("kind", MAKERS)
def test_size_and_rules_change_no_figure(kind: str, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    found = predictions(kind, tmp_path / "masks")
    truth = {stem: tmp_path / f"{stem}.png" for stem in SIZES}
    for stem, path in truth.items():
        labels = np.random.default_rng(1).choice(np.array([0, 1, 2, 3, 9, 255], np.uint8), SIZES[stem])
        Image.fromarray(labels).save(path)
    channels = [None, BackgroundRule("channel", 0.0)] if "background" in kind or kind == "mmseg" else [None]
    for rule in (*channels, BackgroundRule("constant", 0.25), BackgroundRule("power", 2.0)):
        for sweep in ((), RULES):
            results = []
            for one in (found, told_nothing(found)):
                total, swept, failures = SetFiles(TABLE, one, truth, one, rule, sweep).evaluate(
                    SIZES, workers=2, done=lambda: None
                )
                assert failures == {}
                results.append((total.summary(), swept.summary()))
            assert results[0] == results[1]
            assert results[0][0]["images"] == 3


@pytest.mark.parametrize("kind", MAKERS)
def test_masks_of_another_size_are_refused_by_it(kind: str, tmp_path: Path) -> None:
    found = predictions(kind, tmp_path)
    for stem, (height, width) in SIZES.items():
        masks = found.read(stem, (height, width))
        assert isinstance(masks, CoarseMasks)
        assert masks.size == (height, width)
        with pytest.raises(MaskError, match=f"{width}x{height} pixels"):
            found.read(stem, (height, width + 1))


def test_only_the_classes_that_a_rule_gives_a_pixel_are_read(tmp_path: Path) -> None:
    found = predictions("mmseg", tmp_path)
    strict = (BackgroundRule("constant", 0.5),)
    fewer = 0
    for stem in SIZES:
        whole, some = found.read(stem), found.read(stem, SIZES[stem], strict)
        assert isinstance(whole, CoarseMasks)
        assert isinstance(some, CoarseMasks)
        best = scores(stem)[1:].max(axis=0)
        assert set(some.ids) == set((scores(stem)[1:].argmax(axis=0) + 1)[best >= 0.5].tolist())
        fewer += len(some.ids) < len(whole.ids)
        both: list[Labels] = [labels_under(one, TABLE, strict[0], ())[0] for one in (whole, some)]
        assert (both[0] == both[1]).all()
    assert fewer


def test_names_in_a_file_are_composed(tmp_path: Path) -> None:
    stem = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": unicodedata.normalize("NFD", f"{stem}.jpg"), "height": 2, "width": 3}],
        "annotations": [],
        "categories": [{"id": 1, "name": "c1"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    found = Predictions.find(tmp_path / "a.json", TABLE, [stem])
    assert list(found.stems) == [stem]
    masks = found.read(stem, (2, 3))
    assert isinstance(masks, CoarseMasks)
    assert masks.ids == ()


def test_label_pictures_are_told_from_masks_in_one_folder(tmp_path: Path) -> None:
    masks = masks_of("a", background=False)
    npz = formats.format_named("npz")
    assert isinstance(npz, formats.Format)
    npz.write(tmp_path / "a.npz", masks)
    Image.fromarray(np.array([[0, 3, 255]], np.uint8)).save(tmp_path / "b.png")
    found = Predictions.find(tmp_path, TABLE, ["a", "b"])
    assert (set(found.stems), set(found.label_pictures), found.labels_only) == ({"a", "b"}, {"b"}, False)
    labels = found.read("b", (1, 3), RULES)
    assert isinstance(labels, np.ndarray)
    assert labels.tolist() == [[0, 3, 255]]
    read = found.read("a", SIZES["a"], RULES)
    assert isinstance(read, CoarseMasks)
    assert (read.probabilities == npz.read(tmp_path / "a.npz", Naming(table=TABLE)).probabilities).all()


def test_a_sweep_counts_label_pictures_and_masks_alike(tmp_path: Path) -> None:
    folder, truth = tmp_path / "masks", {stem: tmp_path / f"{stem}.png" for stem in SIZES}
    folder.mkdir()
    whole = predictions("npz", folder)
    for stem, path in truth.items():
        Image.fromarray(np.random.default_rng(2).integers(0, 5, SIZES[stem]).astype(np.uint8)).save(path)
    (folder / "a.npz").unlink()
    decided = labels_under(masks_of("a", background=False), TABLE, BackgroundRule("constant", 0.3), ())[0]
    Image.fromarray(decided).save(folder / "a.png")
    mixed = Predictions.find(folder, TABLE, SIZES)
    _, swept, _ = SetFiles(TABLE, mixed, truth, sweep=RULES).evaluate(SIZES, workers=2, done=lambda: None)
    assert (swept.images, swept.decided) == (3, 1)
    for rule, found in zip(RULES, swept.summary()["rules"], strict=True):
        total, _, _ = SetFiles(TABLE, mixed, truth, rule=rule).evaluate(SIZES, workers=1, done=lambda: None)
        assert found["mean_iou"] == total.summary()["figures"]["mean_iou"]
    # All of one kind, none is decided.
    (folder / "a.png").unlink()
    predictions("npz", folder)
    _, swept, _ = SetFiles(TABLE, whole, truth, sweep=RULES).evaluate(SIZES, workers=1, done=lambda: None)
    assert (swept.images, swept.decided) == (3, 0)


def test_images_without_coco_results_show_no_class(tmp_path: Path) -> None:
    file = coco_results(tmp_path)
    content = json.loads(file.read_text("utf-8"))
    sizes = dict(enumerate(SIZES.values()))
    stems = {number: f"{number:012d}" for number in sizes}
    truth = {stem: tmp_path / f"{stem}.png" for stem in stems.values()}
    pictures = {stems[n]: np.random.default_rng(n).integers(0, 5, size).astype(np.uint8) for n, size in sizes.items()}
    for stem, labels in pictures.items():
        Image.fromarray(labels).save(truth[stem])
    file.write_text(json.dumps([one for one in content if one["image_id"] != 1]), encoding="utf-8")
    found = Predictions.find(file, TABLE, truth)
    assert set(found.stems) == set(stems.values())
    assert found.taken_for[0].endswith("; 1 images without results show no class")
    rule = BackgroundRule("constant", 0.25)
    total, swept, failures = SetFiles(TABLE, found, truth, found, rule, RULES).evaluate(
        found.stems, workers=2, done=lambda: None
    )
    assert failures == {}
    expected = SetEvaluation(LabelSpace.of(TABLE))
    for number, stem in stems.items():
        shown: Labels = np.zeros(sizes[1], np.uint8)
        if number != 1:
            shown, _ = labels_under(found.read(stem, sizes[number], (rule,)), TABLE, rule, ())
        expected.add_gain(shown, shown, pictures[stem])
    assert total.summary() == expected.summary()
    assert (swept.images, swept.decided) == (3, 0)
    # Of images that are none of COCO's nothing is known, nor where the file is of others altogether.
    assert set(Predictions.find(file, TABLE, [*truth, "photo"]).stems) == set(truth)
    assert set(Predictions.find(file, TABLE, ["77", "78"]).stems) == {"0", "2"}
    assert Predictions.find(file, TABLE, [stems[0], stems[2]]).taken_for[0].endswith(")")
    with pytest.raises(MaskError, match="000000000001, and the image's size is not known"):
        found.read(stems[1])
