"""Formats "coco-results" and "coco-instances": masks of all images in one JSON file."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ClassNameError, MaskError, MissingExtraError
from g4seg_trt.masks import coco_instances, coco_results
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.coco import number_of
from g4seg_trt.masks.coco_instances import InstanceCollection
from g4seg_trt.masks.coco_results import ResultCollection
from g4seg_trt.masks.coco_rle import decode, encode

library = pytest.importorskip("pycocotools.mask", reason="needs the extra coco")

Array = npt.NDArray[Any]

# Of the library itself, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TABLE = ClassTable(
    "things",
    (
        ClassEntry(1, "person", "person", 1),
        ClassEntry(12, "stop sign", "stop sign", 13),
        ClassEntry(80, "brush", "brush", 90),
    ),
    background=True,
)
THINGS = Naming(None, TABLE)
SIDES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
BITS = arrays.arrays(np.bool_, SIDES)


def runs_of(mask: Array) -> list[int]:
    """Uncompressed counts: lengths of runs down the columns, the first of zeros."""
    runs, value = [0], False
    for pixel in mask.reshape(-1, order="F"):
        if bool(pixel) != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


def code(mask: Any, compressed: bool = True) -> dict[str, Any]:
    mask = np.array(mask, np.uint8)
    if not compressed:
        return {"size": list(mask.shape), "counts": runs_of(mask)}
    coded = library.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": coded["counts"].decode()}


def result(image: Any, category: Any, mask: Any, score: Any = 1.0, compressed: bool = True) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": code(mask, compressed), "score": score}


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@settings(deadline=None, max_examples=80)
@given(BITS, st.booleans())
def test_codes_are_decoded_as_pycocotools_does_and_encoded_again(mask: Array, compressed: bool) -> None:
    decoded = decode(code(mask, compressed), None, "m")
    assert decoded.dtype == np.bool_
    assert (decoded == mask).all()
    assert encode(decoded) == code(mask)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), st.integers(1, 5), st.integers(1, 5))
def test_any_text_is_decoded_exactly_or_refused(text: str, height: int, width: int) -> None:
    try:
        mask = decode({"size": [height, width], "counts": text}, None, "m")
    except MaskError as error:
        assert "\n" not in str(error)
        return
    assert mask.shape == (height, width)
    # Codes may hold empty runs, which pycocotools does not write.
    assert (decode(encode(mask), None, "m") == mask).all()
    assert library.area({"size": [height, width], "counts": text.encode()}) == mask.sum()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 4], "counts": ""}, "counts '' are no run-length code"),
        ({"size": [3, 4], "counts": "5"}, "counts add up to 5 pixels, its size 4x3 has 12"),
        ({"size": [3, 4], "counts": "5o"}, "no run-length code, or cut off"),
        ({"size": [3, 4], "counts": "5é"}, "no run-length code"),
        ({"size": [3, 4], "counts": "oooooooo0"}, "no run-length code"),
        ({"size": [3, 4], "counts": "5O8"}, "a run of -1 pixels"),
        ({"size": [3, 4], "counts": [2, 3]}, "add up to 5 pixels"),
        ({"size": [3, 4], "counts": [20, -8]}, "counts are"),
        ({"size": [3, 4], "counts": [2.5, 9.5]}, "counts are"),
        ({"size": [3, 4]}, "counts are None"),
        ({"size": [3], "counts": [3]}, r"size is \[3\]"),
        ({"size": [3, 0], "counts": [0]}, r"size is \[3, 0\]"),
        ({"size": "3x4", "counts": [12]}, "size is '3x4'"),
        ({"size": [10**4000, 3], "counts": [12]}, r"size is \[1000.*000, 3\], expected \[height, width\]"),
        ({"counts": [12]}, "size is None"),
        ({"size": [100_000, 100_000], "counts": [10**10]}, "100000x100000 pixels are more than Pillow's limit"),
        (None, "expected a segmentation"),
        ("text", "expected a segmentation"),
    ],
)
def test_malformed_codes_are_refused_with_their_fault(tmp_path: Path, segmentation: Any, message: str) -> None:
    entry = {"image_id": 7, "category_id": 1, "score": 0.5, "segmentation": segmentation}
    collection = ResultCollection.open(save(tmp_path / "r.json", [entry]), THINGS)
    with pytest.raises(MaskError, match=message if isinstance(segmentation, dict) else "run-length code") as caught:
        collection.read("7")
    assert "r.json, image 7" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(MaskError, match=message):
        decode(segmentation, None, "m")


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([], "has no polygon"),
        ([[0, 0, 3, 0, 3]], "has 5 numbers"),
        ([[0, 0, 3, 0]], "has 4 numbers"),
        ([[0, 0, 3, 0, 3, "3"]], "expected a list of numbers"),
        ([0, 0, 3, 0, 3, 3], "a polygon is 0, expected a list"),
        ([[0, 0, float("nan"), 0, 3, 3]], "reaches nan"),
        ([[0, 0, 1e30, 0, 3, 3]], r"reaches 1e\+30, its image is 6x5 pixels"),
        ([[0, 0, 3, -900, 3, 3]], "reaches -900"),
        ([[0, 0, 10**400, 0, 3, 3]], "reaches 1000"),
        ([[-6, -5, 12, 10] * 120_000], r"are \d+ pixels long, allowed: 2000000"),
        ([[-6, -5, 12, 10] * 60_000] * 2, r"are \d+ pixels long, allowed: 2000000"),
    ],
)
def test_malformed_polygons_are_refused(polygons: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message) as caught:
        decode(polygons, (5, 6), "m")
    assert "\n" not in str(caught.value)


def test_polygons_are_filled_together() -> None:
    mask = decode([[0, 0, 2, 0, 2, 2, 0, 2], [4, 3, 6, 3, 6, 5, 4, 5]], (5, 6), "m")
    expected = np.zeros((5, 6), bool)
    expected[0:2, 0:2] = True
    expected[3:5, 4:6] = True
    assert (mask == expected).all()


@pytest.mark.parametrize(
    ("stem", "number"),
    [
        ("139", "139"),
        ("000000000139", "139"),
        ("COCO_val2014_000000000139", "139"),
        ("COCO_train2014_000000000009", "9"),
        ("0", "0"),
        ("000", "0"),
        ("2007_000032", "2007_000032"),
        ("cat", "cat"),
        ("", ""),
    ],
)
def test_stems_stand_for_image_ids(stem: str, number: str) -> None:
    assert number_of(stem) == number


def test_instances_of_a_class_are_joined_by_their_largest_score(tmp_path: Path) -> None:
    path = save(
        tmp_path / "r.json",
        [
            result(139, 13, [[1, 1, 0, 0]], 0.5),
            result(7, 1, [[1, 0]], 0.25),
            result(139, 1, [[0, 0, 0, 1]], 1),
            result(139, 13, [[0, 1, 1, 0]], 0.75, compressed=False),
        ],
    )
    collection = ResultCollection.open(path, THINGS)
    assert collection.stems() == ("139", "7")
    for stem in ("139", "000000000139", "COCO_val2014_000000000139"):
        assert collection.key_of(stem) == "139"
        masks = collection.read(stem)
        assert (masks.ids, masks.names) == ((1, 12), ("person", "stop sign"))
        assert masks.probabilities.tolist() == [[[0, 0, 0, 1]], [[0.5, 0.75, 0.75, 0]]]
        assert masks.rule is None
    with pytest.raises(MaskError, match="has no result for the image 8"):
        collection.read("8")


@st.composite
def detections(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for image in draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=3, unique=True)):
        size = draw(SIDES)
        for category in draw(st.lists(st.sampled_from([1, 13, 90]), min_size=1, max_size=3, unique=True)):
            mask = draw(arrays.arrays(np.bool_, size).filter(lambda bits: bits.any()))
            found.append(result(image, category, mask, draw(st.floats(1e-3, 1)), draw(st.booleans())))
    return found


@settings(deadline=None, max_examples=40)
@given(detections())
def test_one_result_a_class_comes_back_as_it_was(found: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        collection = ResultCollection.open(save(Path(folder) / "r.json", found), THINGS)
        results = [(stem, collection.read(stem)) for stem in collection.stems()]
        coco_results.write_collection(Path(folder) / "out.json", results, collection)
        back = json.loads((Path(folder) / "out.json").read_text())
    expected = [
        {**one, "segmentation": code(decode(one["segmentation"], None, "m"))}
        for one in sorted(
            found, key=lambda one: ([o["image_id"] for o in found].index(one["image_id"]), one["category_id"])
        )
    ]
    assert back == expected


def test_refined_masks_are_cut_at_half_the_score_of_their_class(tmp_path: Path) -> None:
    full = np.ones((1, 4), bool)
    content = [result(1, 1, full, 0.5), result(1, 90, full, 0.9), result(1, 13, full, 0.0), result(2, 1, full, 1.0)]
    collection = ResultCollection.open(save(tmp_path / "r.json", content), THINGS)
    masks = collection.read("1")
    refined = np.array([[[0.24, 0.25, 0.5, 0]], [[0, 0, 0, 0]], [[0.44, 0.46, 0.9, 0]]], np.float32)
    coco_results.write_collection(tmp_path / "out.json", [("1", masks.with_probabilities(refined))], collection)
    back = json.loads((tmp_path / "out.json").read_text())
    assert [(one["image_id"], one["category_id"], one["score"]) for one in back] == [(1, 1, 0.5), (1, 90, 0.9)]
    assert [decode(one["segmentation"], None, "m").tolist() for one in back] == [[[False, True, True, False]]] * 2
    coco_results.write_collection(tmp_path / "none.json", [], collection)
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    truth = save(tmp_path / "truth.json", instances())
    collection = InstanceCollection.open(truth, Naming())
    results = [(stem, collection.read(stem)) for stem in collection.stems()]
    coco_instances.write_collection(tmp_path / "out.json", results, collection)
    coco = COCO(str(tmp_path / "out.json"))
    assert sorted(coco.getImgIds()) == [139, 285]
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert annotation["area"] == mask.sum()
        left, top, width, height = annotation["bbox"]
        box = np.zeros_like(mask)
        box[top : top + height, left : left + width] = 1
        assert mask[box == 0].sum() == 0
        assert mask[top].any()
        assert mask[:, left + width - 1].any()
    detections = ResultCollection.open(save(tmp_path / "r.json", [result(139, 1, np.eye(5, 6))]), THINGS)
    coco_results.write_collection(tmp_path / "r2.json", [("139", detections.read("139"))], detections)
    loaded = coco.loadRes(str(tmp_path / "r2.json"))
    assert (coco.annToMask(loaded.loadAnns(loaded.getAnnIds())[0]) == np.eye(5, 6)).all()


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.5, None, "0.5", True, 10**400])
def test_scores_are_numbers_from_0_to_1(tmp_path: Path, score: Any) -> None:
    collection = ResultCollection.open(save(tmp_path / "r.json", [result(1, 1, [[1]], score)]), THINGS)
    with pytest.raises(MaskError, match=r"image 1: a score is .*expected a number from 0 to 1"):
        collection.read("1")


def test_a_category_outside_the_table_fails_its_image_only(tmp_path: Path) -> None:
    content = [result(1, 1, [[1]]), result(2, 91, [[1]])]
    collection = ResultCollection.open(save(tmp_path / "r.json", content), THINGS)
    assert collection.read("1").ids == (1,)
    with pytest.raises(ClassNameError, match="image 2: category id 91 is not in the class table things"):
        collection.read("2")


def test_sizes_within_an_image_are_one(tmp_path: Path) -> None:
    content = [result(1, 1, np.ones((2, 3))), result(1, 13, np.ones((3, 2)))]
    collection = ResultCollection.open(save(tmp_path / "r.json", content), THINGS)
    with pytest.raises(MaskError, match="image 1: is 2x3 pixels, its image 3x2"):
        collection.read("1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "a dict, expected a list"),
        ([1], "result 0: expected an object"),
        ([{"image_id": "a", "category_id": 1}], "result 0: expected an object with the numbers"),
        ([result(1, 1, [[1]]), {"image_id": 1, "category_id": True}], "result 1: expected"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "boxes alone are no masks"),
    ],
)
def test_other_json_is_no_results_file(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        ResultCollection.open(save(tmp_path / "r.json", content), THINGS)


@pytest.mark.parametrize("content", ["", "[", "nonsense", "[" * 100_000, '[{"score": ' + "1" * 5000 + "}]", "\xff"])
@pytest.mark.parametrize("kind", [ResultCollection, InstanceCollection])
def test_damaged_json_is_told(tmp_path: Path, content: str, kind: Any) -> None:
    (tmp_path / "r.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(MaskError, match="not a JSON file") as caught:
        kind.open(tmp_path / "r.json", THINGS)
    assert "\n" not in str(caught.value)
    with pytest.raises(MaskError, match="no such file"):
        kind.open(tmp_path / "missing.json", THINGS)


def test_results_need_a_table(tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", [result(1, 1, [[1]])])
    with pytest.raises(ClassNameError, match="--dataset coco-object"):
        ResultCollection.open(path, Naming())


def test_the_table_of_coco_has_the_categories(tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", [result(1, category, [[1]]) for category in (90, 13, 1)])
    masks = ResultCollection.open(path, Naming(None, ClassTable.of_dataset("coco-object"))).read("1")
    assert masks.ids == (1, 12, 80)
    assert masks.names == ("person", "stop sign", "toothbrush")


def test_a_digest_changes_with_what_is_said_about_the_image(tmp_path: Path) -> None:
    first = [result(1, 1, [[1, 0]]), result(2, 1, [[1, 0]])]
    second = [result(2, 1, [[1, 0]], 0.5), dict(reversed(list(result(1, 1, [[1, 0]]).items())))]
    before = ResultCollection.open(save(tmp_path / "a.json", first), THINGS)
    after = ResultCollection.open(save(tmp_path / "b.json", second), THINGS)
    assert before.digest("1") == after.digest("000000000001")
    assert before.digest("2") != after.digest("2")
    content = instances()
    whole = InstanceCollection.open(save(tmp_path / "c.json", content), Naming())
    content["annotations"][0]["category_id"] = 5
    other = InstanceCollection.open(save(tmp_path / "d.json", content), Naming())
    assert whole.digest("000000000139") != other.digest("000000000139")
    assert whole.digest("b") == other.digest("b")


def instances() -> dict[str, Any]:
    square = [[1.0, 1.0, 4.0, 1.0, 4.0, 4.0, 1.0, 4.0]]
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 139, "file_name": "val2017/000000000139.jpg", "height": 5, "width": 6},
            {"id": 285, "file_name": "b.jpg", "height": 4, "width": 4, "license": 1},
        ],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 13, "segmentation": square, "area": 9, "iscrowd": 0},
            {"id": 2, "image_id": 139, "category_id": 5, "segmentation": code(np.eye(5, 6), False), "iscrowd": 1},
            {"id": 3, "image_id": 139, "category_id": 13, "segmentation": code(np.eye(5, 6)), "iscrowd": 0},
        ],
        "categories": [{"id": 13, "name": "stop sign"}, {"id": 5, "name": "person"}, {"id": 99, "name": "brush"}],
    }


def test_instances_are_read_by_the_files_own_categories(tmp_path: Path) -> None:
    path = save(tmp_path / "i.json", instances())
    square = np.zeros((5, 6))
    square[1:4, 1:4] = 1
    expected = [np.eye(5, 6).tolist(), np.maximum(square, np.eye(5, 6)).tolist()]
    for naming, ids in ((Naming(), (1, 2)), (THINGS, (1, 12))):
        collection = InstanceCollection.open(path, naming)
        assert collection.stems() == ("000000000139", "b")
        masks = collection.read("000000000139")
        assert (masks.ids, masks.names) == (ids, ("person", "stop sign"))
        assert masks.probabilities.tolist() == expected
        empty = collection.read("b")
        assert (empty.ids, empty.size) == ((), (4, 4))
        with pytest.raises(MaskError, match="has no image 285"):
            collection.read("285")


def test_instances_are_written_back_one_a_class(tmp_path: Path) -> None:
    collection = InstanceCollection.open(save(tmp_path / "i.json", instances()), THINGS)
    masks = collection.read("000000000139")
    refined = masks.probabilities.copy()
    refined[0] = 0.49
    results = [("b", collection.read("b")), ("000000000139", masks.with_probabilities(refined))]
    coco_instances.write_collection(tmp_path / "out.json", results, collection)
    back = json.loads((tmp_path / "out.json").read_text())
    assert [image["id"] for image in back["images"]] == [285, 139]
    assert back["images"][0]["license"] == 1
    assert back["info"] == {"year": 2017}
    assert back["categories"] == instances()["categories"]
    (one,) = back["annotations"]
    assert (one["id"], one["image_id"], one["category_id"], one["iscrowd"]) == (1, 139, 13, 0)
    assert (decode(one["segmentation"], (5, 6), "m") == (refined[1] >= 0.5)).all()


BREAKS: dict[str, tuple[str, Any, str]] = {
    "images are no list": ("images", {}, "expected an object with the lists"),
    "an image without a size": (
        "images",
        [{"id": 1, "file_name": "a.jpg"}],
        r"images\[0\]: height is None, expected a whole number",
    ),
    "two images of one id": ("images", [instances()["images"][0]] * 2, "two images have the id 139"),
    "two images of one stem": (
        "images",
        [instances()["images"][0], {**instances()["images"][1], "file_name": "x/000000000139.png"}],
        "two images are called 000000000139",
    ),
    "an image without pixels": ("images", [{**instances()["images"][0], "width": 0}], "is 0x5 pixels"),
    "an annotation of no image": (
        "annotations",
        [{**instances()["annotations"][0], "image_id": 4}],
        "annotation 1: the file has no image 4",
    ),
    "an annotation of no category": (
        "annotations",
        [{**instances()["annotations"][0], "category_id": 4}],
        "annotation 1: the file has no category 4",
    ),
    "an annotation without an image": ("annotations", [{"id": 1}], r"annotations\[0\]: image_id is None"),
    "annotations that are none": ("annotations", [None], r"annotations\[0\]: image_id is None"),
    "two categories of one id": ("categories", [{"id": 13, "name": "a"}, {"id": 13, "name": "b"}], "the id 13"),
    "two categories of one name": ("categories", [{"id": 13, "name": "a"}, {"id": 5, "name": "a"}], "called 'a'"),
    "a category without a name": ("categories", [{"id": 13}], r"categories\[0\]: name is None, expected text"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_instances_that_contradict_themselves_are_refused(tmp_path: Path, name: str) -> None:
    part, value, message = BREAKS[name]
    path = save(tmp_path / "i.json", {**instances(), part: value})
    with pytest.raises(MaskError, match=message) as caught:
        InstanceCollection.open(path, Naming())
    assert "i.json" in str(caught.value)


def test_an_annotation_of_another_size_or_without_a_mask_fails_its_image_only(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][2]["segmentation"] = code(np.ones((6, 5)))
    collection = InstanceCollection.open(save(tmp_path / "i.json", content), Naming())
    with pytest.raises(MaskError, match="image 000000000139, annotation 3: is 5x6 pixels, its image 6x5"):
        collection.read("000000000139")
    assert collection.read("b").ids == ()
    del content["annotations"][2]["segmentation"]
    collection = InstanceCollection.open(save(tmp_path / "i.json", content), Naming())
    with pytest.raises(MaskError, match="annotation 3: expected a segmentation"):
        collection.read("000000000139")


def test_a_category_that_the_table_does_not_have_fails_its_image(tmp_path: Path) -> None:
    content = instances()
    content["categories"][0]["name"] = "zebra crossing"
    collection = InstanceCollection.open(save(tmp_path / "i.json", content), THINGS)
    with pytest.raises(ClassNameError, match="'zebra crossing' is not in the class table things"):
        collection.read("000000000139")


def test_without_pycocotools_the_pip_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    collection = ResultCollection.open(save(tmp_path / "r.json", [result(1, 1, [[1]])]), THINGS)
    with pytest.raises(MissingExtraError, match=r"pycocotools is not installed: pip install 'g4seg-trt\[coco\]'"):
        collection.read("1")


def test_text_that_no_code_has_is_refused() -> None:
    for counts in ("\ud800", "é", "\u0660", "猫0"):
        with pytest.raises(MaskError, match=r"an image: counts .* are no run-length code"):
            decode({"size": [4, 4], "counts": counts}, None, "an image")


def test_only_the_classes_asked_for_are_refined_and_the_others_stay(tmp_path: Path) -> None:
    mask = np.eye(5, 6)
    content = [result(1, 1, mask), result(1, 13, mask, 0.5), result(1, 90, mask), result(2, 1, mask)]
    path = save(tmp_path / "r.json", content)
    collection = ResultCollection.open(path, Naming(("brush", "person"), TABLE))
    masks = collection.read("1")
    assert masks.names == ("brush", "person")
    assert collection.read("1", Naming(("stop sign",))).ids == (12,)
    with pytest.raises(MaskError, match="no class 'brush', it holds person"):
        collection.read("2")
    with pytest.raises(MaskError, match="the masks are 6x5 pixels, the image is 5x5"):
        collection.read("1", Naming(size=(5, 5)))
    refined = masks.with_probabilities(np.zeros_like(masks.probabilities))
    coco_results.write_collection(tmp_path / "out.json", [("1", refined)], collection)
    assert json.loads((tmp_path / "out.json").read_text()) == [content[1]]

    whole = instances()
    collection_2 = InstanceCollection.open(save(tmp_path / "i.json", whole), THINGS)
    stem = next(one for one in collection_2.stems() if len(collection_2.read(one).names) > 1)
    first, second, *_ = collection_2.read(stem).names
    one = collection_2.read(stem, Naming((second,)))
    assert one.names == (second,)
    coco_instances.write_collection(
        tmp_path / "out.json", [(stem, one.with_probabilities(np.zeros_like(one.probabilities)))], collection_2
    )
    again = InstanceCollection.open(tmp_path / "out.json", THINGS).read(stem)
    assert first in again.names
    assert second not in again.names
    before = collection_2.read(stem)
    assert (again.probabilities[again.names.index(first)] == before.probabilities[0]).all()
    with pytest.raises(MaskError, match="no class 'brush', it holds"):
        collection_2.read(stem, Naming(("brush",)))
