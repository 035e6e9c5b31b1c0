"""Format "mmseg": the predictions of a data set in one pickle."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks import mmseg
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.mmseg import PredictionCollection, write_collection
from g4seg_trt.masks.tensors import MAGIC, VERSION
from g4seg_trt.update import BackgroundRule, label_map
from tests.masks.dict_files import Call, makes_folder
from tests.masks.predictions import NAMING, THREE, dump, entry, probabilities, write

NO_BACKGROUND = replace(THREE, background=False)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_set_is_read_image_by_image(tmp_path: Path, protocol: int) -> None:
    values = {name: probabilities(4, 5, 6 + n, n) for n, name in enumerate(("2007_000032", "b.c"))}
    dump(tmp_path / "a.pkl", [entry(name, one) for name, one in values.items()], protocol)
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    assert found.stems() == ("2007_000032", "b.c")
    assert found.remark is None
    for stem, one in values.items():
        masks = found.read(stem)
        assert masks.ids == (1, 2, 3)
        assert masks.names == ("a", "b", "c")
        assert masks.rule == BackgroundRule("channel", 0.0)
        assert masks.background is not None
        assert (masks.background == one[0]).all()
        assert (masks.probabilities == one[1:]).all()
    assert mmseg.recognise(tmp_path / "a.pkl") == "a pickled list of dicts with img_path, seg_logits, pred_sem_seg"
    with pytest.raises(MaskError, match="nothing about the image 'x'"):
        found.read("x")


def test_classes_without_a_pixel_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    values = probabilities(4, 3, 3)
    values[2] = 0.001
    dump(tmp_path / "a.pkl", [entry("x", values)])
    assert PredictionCollection.open(tmp_path / "a.pkl", NAMING).read("x").names == ("a", "c")
    found = PredictionCollection.open(tmp_path / "a.pkl", Naming(("c", "b"), THREE))
    named = found.read("x")
    assert named.ids == (3, 2)
    assert (named.probabilities == values[[3, 2]]).all()
    assert found.read("x", Naming(("b",))).names == ("b",)  # for this image
    with pytest.raises(MaskError, match="the masks are 3x3 pixels, the image is 4x3"):
        found.read("x", Naming(size=(3, 4)))
    with pytest.raises(ClassNameError, match="zebra"):
        PredictionCollection.open(tmp_path / "a.pkl", Naming(("zebra",), THREE)).read("x")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.floats(0.0, 0.9))
def test_what_is_read_gives_the_labels_of_all_channels_under_any_rule(
    seed: int, height: int, width: int, background: float
) -> None:
    table = ClassTable("nine", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in range(1, 10)), background=True)
    rng = np.random.default_rng(seed)
    values = (rng.random((10, height, width)) * rng.choice([0, 0.01, 0.3, 1], (10, 1, 1))).astype(np.float32)
    values[0] = background
    rules = [BackgroundRule("constant", t) for t in (1e-6, 0.05, 0.3, 0.6)]
    rules += [BackgroundRule("power", p) for p in (0.5, 1, 4, 100)] + [mmseg.RULE]
    with tempfile.TemporaryDirectory() as folder:
        dump(Path(folder) / "a.pkl", [entry("x", values)])
        found = PredictionCollection.open(Path(folder) / "a.pkl", Naming(table=table))
        for rule in rules:
            expected = np.where(values[1:].max(axis=0) > 0, values[1:].argmax(axis=0) + 1, 0)
            threshold: Any = {"constant": rule.value, "channel": background}.get(
                rule.kind, (np.float32(1) - values[1:].max(axis=0)) ** np.float32(rule.value)
            )
            expected[values[1:].max(axis=0) < np.float32(threshold)] = 0
            for naming in (None, Naming(rules=(rule,)), Naming(rules=(mmseg.RULE, rule))):
                masks = found.read("x", naming)
                labels = np.zeros((height, width), np.int64)
                if masks.ids:
                    labels = np.array((0, *masks.ids))[label_map(masks.probabilities, rule, masks.background)]
                assert (labels == expected).all()
            # And no class too many where the rule is known.
            assert set(found.read("x", Naming(rules=(rule,))).ids) == set(expected.ravel().tolist()) - {0}
        assert found.read("x", Naming(rules=(None,))).ids == found.read("x", Naming(rules=(mmseg.RULE,))).ids


def test_labels_that_are_not_the_argmax_stay_where_nothing_changed(tmp_path: Path) -> None:
    """As SCLIP's: background where no channel reaches its threshold of probability."""
    values = probabilities(4, 5, 6)
    labels = values.argmax(axis=0)
    labels[values.max(axis=0) < 0.45] = 0
    assert (labels != values.argmax(axis=0)).any()
    dump(tmp_path / "a.pkl", [entry("x", values, labels)])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    masks = found.read("x")
    (back,) = write(tmp_path / "b.pkl", found, [("x", masks)])
    assert (back["pred_sem_seg"]["data"][0].numpy() == labels).all()
    refined = masks.probabilities.copy()
    refined[:, 0] = np.array([0.0, 1.0, 0.5], np.float32)[:, None]
    (back,) = write(tmp_path / "b.pkl", found, [("x", masks.with_probabilities(refined))])
    changed = values.argmax(axis=0)[0] != 2
    assert (back["pred_sem_seg"]["data"][0].numpy()[1:] == labels[1:]).all()
    assert (back["pred_sem_seg"]["data"][0].numpy()[0] == np.where(changed, 2, labels[0])).all()


@pytest.mark.parametrize("more", [{}, {"reduce_zero_label": True}])
def test_labels_of_classes_that_were_not_asked_for_stay(tmp_path: Path, more: dict[str, Any]) -> None:
    labels = np.array([[0, 1, 2], [2, 1, 0]])
    dump(tmp_path / "a.pkl", [entry("x", None, labels, **more)])
    found = PredictionCollection.open(tmp_path / "a.pkl", Naming(("b",), THREE))
    masks = found.read("x")
    assert masks.ids == (2,)
    (back,) = write(tmp_path / "b.pkl", found, [("x", masks)])
    assert (back["pred_sem_seg"]["data"][0].numpy() == labels).all()
    with pytest.raises(MaskError, match=r"image y: no class 'c', it holds a"):
        dump(tmp_path / "a.pkl", [entry("y", None, np.array([[0, 1], [1, 0]])[:1, 1:])])
        PredictionCollection.open(tmp_path / "a.pkl", Naming(("c",), THREE)).read("y")


@pytest.mark.parametrize(("table", "channels"), [(THREE, 3), (NO_BACKGROUND, 3)])
def test_without_a_channel_for_the_background_ids_follow_the_channels(
    tmp_path: Path, table: ClassTable, channels: int
) -> None:
    values = probabilities(channels, 4, 4)
    dump(tmp_path / "a.pkl", [entry("x", values)])
    found = PredictionCollection.open(tmp_path / "a.pkl", Naming(table=table))
    masks = found.read("x")
    assert masks.ids == (1, 2, 3)
    assert masks.background is None
    assert masks.rule is None
    assert (masks.probabilities == values).all()
    refined = probabilities(3, 4, 4, 7)
    changed = found.updated(masks.with_probabilities(refined))
    assert (changed["pred_sem_seg"]["data"].array("x")[0] == refined.argmax(axis=0)).all()


@pytest.mark.parametrize(("table", "channels"), [(THREE, 5), (THREE, 2), (NO_BACKGROUND, 4)])
def test_another_number_of_channels_is_refused(tmp_path: Path, table: ClassTable, channels: int) -> None:
    dump(tmp_path / "a.pkl", [entry("x", probabilities(channels, 4, 4))])
    with pytest.raises(MaskError, match=rf"image x: {channels} channels, the class table three has"):
        PredictionCollection.open(tmp_path / "a.pkl", Naming(table=table)).read("x")


def test_a_table_with_gaps_is_refused(tmp_path: Path) -> None:
    table = ClassTable("gaps", (ClassEntry(1, "a", "a"), ClassEntry(9, "b", "b")), background=True)
    dump(tmp_path / "a.pkl", [entry("x", probabilities(3, 4, 4))])
    with pytest.raises(MaskError, match="channels need the class ids 1 to 2, gaps has others"):
        PredictionCollection.open(tmp_path / "a.pkl", Naming(table=table)).read("x")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([torch.float32, torch.float16]))
def test_what_is_read_is_written_back(count: int, height: int, width: int, dtype: torch.dtype) -> None:
    given_entries = [
        entry(f"image{n}", probabilities(4, height, width, n), sample_idx=n, seen={"a": [1, torch.tensor(2.5)]})
        for n in range(count)
    ]
    for one in given_entries:
        one["seg_logits"] = {"data": one["seg_logits"]["data"].to(dtype), "note": "kept"}
        one["pred_sem_seg"]["data"] = one["seg_logits"]["data"].float().argmax(dim=0, keepdim=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pkl"
        dump(path, given_entries)
        found = PredictionCollection.open(path, NAMING)
        results = [(stem, found.read(stem)) for stem in found.stems()]
        written = write(path, found, results)
        again = PredictionCollection.open(path, NAMING)
        for stem, masks in results:
            assert (again.read(stem).probabilities == masks.probabilities).all()
    assert len(written) == count
    for one, back in zip(given_entries, written, strict=True):
        assert list(back) == list(one)
        assert back["seg_logits"]["note"] == "kept"
        for part in ("seg_logits", "pred_sem_seg", "gt_sem_seg"):
            assert back[part]["data"].dtype == one[part]["data"].dtype
            assert torch.equal(back[part]["data"], one[part]["data"])
        assert back["seen"]["a"][1].item() == 2.5
        for key in ("img_path", "ori_shape", "scale_factor", "reduce_zero_label", "flip_direction", "sample_idx"):
            assert back[key] == one[key]
        assert tuple(back["img_shape"]) == (3, 4)


def test_the_evaluation_of_mmseg_reads_what_is_written(tmp_path: Path) -> None:
    values = probabilities(4, 5, 6)
    dump(tmp_path / "a.pkl", [entry("x", values), entry("y", probabilities(4, 2, 2, 1))])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    masks = found.read("x")
    refined = probabilities(3, 5, 6, 9)
    results = [("x", masks.with_probabilities(refined))]
    (back,) = write(tmp_path / "b.pkl", found, results)
    write_collection(tmp_path / "c.pkl", results, found)
    assert (tmp_path / "b.pkl").read_bytes() == (tmp_path / "c.pkl").read_bytes()
    # As IoUMetric.process: torch tensors, compared where the ground truth is not 255.
    prediction = back["pred_sem_seg"]["data"].squeeze()
    truth = back["gt_sem_seg"]["data"].squeeze().to(prediction)
    kept = truth != 255
    merged = np.concatenate([values[:1], refined])
    assert (
        prediction[kept].float().histc(4, 0, 3).tolist() == np.bincount(merged.argmax(axis=0).ravel(), None, 4).tolist()
    )
    assert (back["seg_logits"]["data"].numpy() == merged).all()


def test_another_rule_decides_the_labels(tmp_path: Path) -> None:
    dump(tmp_path / "a.pkl", [entry("x", probabilities(4, 5, 6))])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    masks = found.read("x")
    refined = probabilities(3, 5, 6, 9)
    ruled = replace(masks.with_probabilities(refined), rule=BackgroundRule("constant", 0.4))
    (back,) = write(tmp_path / "b.pkl", found, [("x", ruled)])
    expected = np.where(refined.max(axis=0) >= 0.4, refined.argmax(axis=0) + 1, 0)
    assert (back["pred_sem_seg"]["data"][0].numpy() == expected).all()
    assert {0, 1} <= set(expected.ravel().tolist())


def test_logits_become_probabilities_and_it_is_said(tmp_path: Path) -> None:
    logits = (np.random.default_rng(3).normal(size=(4, 5, 6)) * 5).astype(np.float32)
    inside = np.full((4, 2, 2), 0.25, np.float32)  # in range by chance: a set is of one kind
    inside[0] = 0.5
    dump(tmp_path / "a.pkl", [entry("x", logits), entry("y", inside)])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    assert found.remark == "seg_logits are no probabilities: softmax over the channels"
    for stem, values in (("x", logits), ("y", inside)):
        masks = found.read(stem)
        softmax = torch.from_numpy(values).softmax(dim=0).numpy()
        chosen = list(masks.ids)
        assert np.allclose(masks.probabilities, softmax[chosen], atol=1e-6)
        (back,) = write(tmp_path / "b.pkl", found, [(stem, masks)])
        # Logits again: the same probabilities, the same labels.
        written = back["seg_logits"]["data"]
        assert np.allclose(written.softmax(dim=0).numpy(), softmax, atol=1e-6)
        assert torch.equal(back["pred_sem_seg"]["data"], torch.from_numpy(values).argmax(dim=0, keepdim=True))


@pytest.mark.parametrize(
    ("table", "more", "first"),
    [(THREE, {}, 0), (THREE, {"reduce_zero_label": True}, 1), (NO_BACKGROUND, {}, 1)],
)
def test_labels_alone_give_hard_masks(tmp_path: Path, table: ClassTable, more: dict[str, Any], first: int) -> None:
    labels = np.array([[0, 0, 2], [2, 0, 0]])
    dump(tmp_path / "a.pkl", [entry("x", None, labels, **more)])
    assert mmseg.recognise(tmp_path / "a.pkl") == "a pickled list of dicts with img_path, pred_sem_seg"
    found = PredictionCollection.open(tmp_path / "a.pkl", Naming(table=table))
    masks = found.read("x")
    assert masks.ids == ((2,) if first == 0 else (1, 3))
    assert masks.rule is None
    assert masks.background is None
    for number, one in zip(masks.ids, masks.probabilities, strict=True):
        assert (one == (labels == number - first)).all()
    (back,) = write(tmp_path / "b.pkl", found, [("x", masks)])
    assert (back["pred_sem_seg"]["data"][0].numpy() == labels).all()
    assert back["pred_sem_seg"]["data"].dtype == torch.int64
    refined = np.zeros_like(masks.probabilities)
    refined[0] = 0.9
    (back,) = write(tmp_path / "b.pkl", found, [("x", masks.with_probabilities(refined))])
    assert (back["pred_sem_seg"]["data"] == masks.ids[0] - first).all()


def test_an_image_of_background_only_is_kept(tmp_path: Path) -> None:
    values = np.stack([np.full((2, 3), one, np.float32) for one in (0.7, 0.1, 0.1, 0.1)])
    labels = np.zeros((2, 3), np.int64)
    dump(tmp_path / "a.pkl", [entry("x", values), entry("y", None, labels)])
    found = PredictionCollection.open(tmp_path / "a.pkl", Naming(table=THREE, rules=(None,)))
    results = [(stem, found.read(stem)) for stem in found.stems()]
    for _, masks in results:
        assert masks.ids == ()
        assert masks.size == (2, 3)
    first, second = write(tmp_path / "b.pkl", found, results)
    assert (first["seg_logits"]["data"].numpy() == values).all()
    assert not first["pred_sem_seg"]["data"].any()
    assert not second["pred_sem_seg"]["data"].any()


def test_a_digest_is_of_one_image(tmp_path: Path) -> None:
    first, second = entry("x", probabilities(4, 3, 3)), entry("y", probabilities(4, 3, 3, 1))
    dump(tmp_path / "a.pkl", [first, second])
    digests = [PredictionCollection.open(tmp_path / "a.pkl", NAMING).digest(stem) for stem in "xy"]
    assert digests[0] != digests[1]
    assert all(len(one) == 64 for one in digests)
    whole = tmp_path / "a.pkl"
    again = PredictionCollection.open(whole, NAMING)
    assert [again.digest(stem) for stem in "xy"] == digests
    second["pred_sem_seg"]["data"] = second["pred_sem_seg"]["data"].numpy() + 1
    dump(tmp_path / "b.pkl", [pickle.loads(pickle.dumps(second)), first])
    changed = PredictionCollection.open(tmp_path / "b.pkl", NAMING)
    assert changed.digest("y") != digests[1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "a dict, expected a list"),
        ([], "a list, expected a list with a dict for each image"),
        ([1], r"entry 0: expected a dict with 'img_path'"),
        ([{"img_path": 3}], r"entry 0: expected a dict with 'img_path'"),
        ([{"img_path": "a.jpg"}], "entry 0: neither 'seg_logits' nor 'pred_sem_seg' among 'img_path'"),
        ([{"img_path": "a.jpg", "seg_logits": np.zeros((4, 2, 2))}], "neither 'seg_logits' nor"),
        (
            [entry("x", probabilities(4, 2, 2)), entry("x", probabilities(4, 2, 2)) | {"img_path": "C:\\d\\x.png"}],
            "entry 1: a second image with the stem 'x'",
        ),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, entries: object, message: str) -> None:
    dump(tmp_path / "a.pkl", entries)
    with pytest.raises(MaskError, match=message) as caught:
        PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    assert "a.pkl" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            "seg_logits",
            np.zeros((4, 2), np.float32),
            r"seg_logits float32 \[4, 2\], expected \[classes, height, width\]",
        ),
        ("seg_logits", np.zeros((4, 0, 2), np.float32), r"seg_logits float32 \[4, 0, 2\]"),
        ("seg_logits", np.zeros((4, 2, 2), np.int64), "seg_logits int64"),
        ("seg_logits", np.full((4, 2, 2), np.nan, np.float32), "seg_logits has values that are NaN"),
        ("seg_logits", "text", "a str, expected a numpy array"),
        ("pred_sem_seg", np.zeros((2, 2, 2), np.int64), r"labels int64 \[2, 2, 2\]"),
        ("pred_sem_seg", np.zeros((1, 2, 2)), r"labels float64 \[2, 2\]"),
        ("pred_sem_seg", np.zeros((1, 0, 2), np.int64), r"labels int64 \[0, 2\]"),
    ],
)
def test_what_is_wrong_is_said_with_its_image(tmp_path: Path, part: str, value: object, message: str) -> None:
    first = entry("w", probabilities(4, 2, 2))
    dump(tmp_path / "a.pkl", [first, {"img_path": "x.jpg", part: {"data": value}}])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    with pytest.raises(MaskError, match=f"image x.*{message}"):
        found.read("x")


def test_labels_of_another_size_are_refused_before_anything_is_refined(tmp_path: Path) -> None:
    dump(tmp_path / "a.pkl", [entry("x", probabilities(4, 4, 4), np.zeros((4, 3), np.int64))])
    with pytest.raises(MaskError, match=r"image x: pred_sem_seg \[4, 3\] beside seg_logits \[4, 4, 4\]"):
        PredictionCollection.open(tmp_path / "a.pkl", NAMING).read("x")


@pytest.mark.parametrize("part", ["seg_logits", "pred_sem_seg"])
def test_a_part_without_data_is_refused(tmp_path: Path, part: str) -> None:
    values: list[Any] = [None, {}, np.zeros((4, 2, 2))]
    for value in values:
        dump(tmp_path / "a.pkl", [entry("x", probabilities(4, 4, 4)) | {part: value}])
        with pytest.raises(MaskError, match=f"entry 0: '{part}' without 'data'"):
            PredictionCollection.open(tmp_path / "a.pkl", NAMING)


def test_reduce_zero_label_is_true_or_false(tmp_path: Path) -> None:
    dump(tmp_path / "a.pkl", [entry("x", None, [[0, 1]], reduce_zero_label=np.array([0, 1]))])
    with pytest.raises(MaskError, match="reduce_zero_label is a ndarray, expected True or False"):
        PredictionCollection.open(tmp_path / "a.pkl", NAMING).read("x")


def test_channels_that_were_not_asked_for_stay_bit_for_bit(tmp_path: Path) -> None:
    logits = (np.random.default_rng(3).normal(size=(4, 5, 6)) * 5).astype(np.float32)
    for values in (logits, probabilities(4, 5, 6)):
        dump(tmp_path / "a.pkl", [entry("x", values)])
        found = PredictionCollection.open(tmp_path / "a.pkl", Naming(("b",), THREE))
        masks = found.read("x")
        (back,) = write(tmp_path / "b.pkl", found, [("x", masks.with_probabilities(probabilities(3, 5, 6, 5)[:1]))])
        written = back["seg_logits"]["data"].numpy()
        assert (written[[0, 1, 3]] == values[[0, 1, 3]]).all()
        assert (written[2] != values[2]).any()


def test_values_and_labels_outside_are_refused(tmp_path: Path) -> None:
    out = np.full((4, 2, 2), 0.1, np.float32)
    out[3] = 1.5
    dump(tmp_path / "a.pkl", [entry("w", probabilities(4, 2, 2)), entry("x", out), entry("y", None, [[0, 4]])])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    with pytest.raises(MaskError, match=r"image x, class 'c'.*from 1\.5 to 1\.5"):
        found.read("x")
    with pytest.raises(ClassNameError, match="image y: class id 4 is not in the class table three"):
        found.read("y")
    with pytest.raises(ClassNameError, match="--dataset or --class-table"):
        PredictionCollection.open(tmp_path / "a.pkl", Naming(("a",)))


def test_hostile_sets_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    dump(tmp_path / "a.pkl", [entry("x", probabilities(4, 2, 2), evil=makes_folder(folder))])
    with pytest.raises(MaskError, match=r"wants __builtin__\.eval, which no mask needs: refused"):
        PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    # In a storage that only the writer would pass on.
    storage = MAGIC + VERSION + pickle.dumps({}, 2) + pickle.dumps(makes_folder(folder), 2) + pickle.dumps([], 2)
    loads = Call(torch.storage._load_from_bytes, storage)
    tensor = Call(torch._utils._rebuild_tensor_v2, loads, 0, (1,), (1,), False, {})
    dump(tmp_path / "a.pkl", [entry("x", probabilities(4, 2, 2), evil=tensor)])
    found = PredictionCollection.open(tmp_path / "a.pkl", NAMING)
    masks = found.read("x")
    with pytest.raises(MaskError, match="a torch storage with the pickle opcode TUPLE1"):
        write_collection(tmp_path / "b.pkl", [("x", masks)], found)
    assert not (tmp_path / "b.pkl").exists()
    assert not folder.exists()
    with pytest.raises(Exception):  # noqa: B017 - after the folder torch finds no storage
        pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert folder.is_dir()


def test_other_files_are_not_taken_for_predictions(tmp_path: Path) -> None:
    for name, value in {"dict": {"img_path": 1, "seg_logits": 2}, "list": ["img_path"], "number": 3}.items():
        dump(tmp_path / f"{name}.pkl", value)
        assert mmseg.recognise(tmp_path / f"{name}.pkl") is None
    (tmp_path / "text.pkl").write_text("img_path seg_logits")
    for name in ("text.pkl", "missing.pkl", "a.npy"):
        assert mmseg.recognise(tmp_path / name) is None
