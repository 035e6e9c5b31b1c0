"""Which format a file is taken for: each as itself, never silently as another."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ConfigError, InputError, MaskError
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.detect import detect
from g4seg_trt.masks.formats import FORMATS, CollectionFormat, Format, format_named
from g4seg_trt.masks.png import label_colours
from g4seg_trt.masks.png_kind import png_kind
from tests.masks.dict_files import TABLE, makes_folder, maps, save_raw

Array = npt.NDArray[Any]

# Of pycocotools itself, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SOFT = np.linspace(0, 255, 96).astype(np.uint8).reshape(8, 12)
LABELS = (np.arange(96).reshape(8, 12) // 12).astype(np.uint8)
CLASS = Naming(("class 3",), TABLE)
SET = Naming(None, TABLE)
RUNS = {"size": [8, 12], "counts": [6, 90]}


def save_palette(path: Path) -> None:
    picture = Image.fromarray(LABELS)
    picture.putpalette(label_colours(256).tobytes())
    picture.save(path)


def save_folder(path: Path) -> None:
    path.mkdir()
    Image.fromarray(SOFT).save(path / "class3.png")


def save_dict(**values: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, values, allow_pickle=True)  # type: ignore[arg-type]


def save_psa(path: Path, offset: int = 0) -> None:
    one = maps(2, 8, 12)
    one /= one.sum(axis=0) if offset else one.max(axis=(1, 2), keepdims=True)
    np.save(path, {key: value for key, value in enumerate(one)}, allow_pickle=True)  # type: ignore[arg-type]  # noqa: C416


def save_mat(path: Path) -> None:
    pytest.importorskip("scipy.io").savemat(path, {"2": maps(1, 8, 12)[0] * 255}, do_compression=True)


def save_predictions(path: Path) -> None:
    logits = torch.from_numpy(maps(21, 8, 12)).softmax(0)
    entry = {"img_path": "cat.jpg", "seg_logits": {"data": logits}, "pred_sem_seg": {"data": logits.argmax(0)[None]}}
    path.write_bytes(pickle.dumps([entry]))


def save_json(content: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(content))


RESULTS = [{"image_id": 1, "category_id": 3, "segmentation": RUNS, "score": 0.5}]
INSTANCES = {
    "images": [{"id": 1, "file_name": "cat.jpg", "height": 8, "width": 12}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": RUNS}],
    "categories": [{"id": 3, "name": "class3"}],
}

# Format -> file name, what saves it, what is known about its classes, a part of the evidence.
FILES: dict[str, tuple[str, Callable[[Path], Any], Naming, str]] = {
    "png": ("cat.png", Image.fromarray(SOFT).save, CLASS, "96 grey levels from 0 to 255"),
    "index-png": ("cat.png", save_palette, SET, "a palette of colours"),
    "npy": ("cat.npy", lambda path: np.save(path, maps(1, 8, 12)[0]), CLASS, "an array [8, 12] of float32"),
    "array": ("cat.npy", lambda path: np.save(path, maps(20, 8, 12)), SET, "an array [20, 8, 12] of float32"),
    "npz": ("cat.npz", lambda path: np.savez(path, class3=maps(1, 8, 12)[0]), SET, "named arrays (class3)"),
    "class-folder": ("cat", save_folder, SET, "a file for each class (class3)"),
    "clip-es": (
        "cat.npy",
        save_dict(keys=np.array([2]), attn_highres=maps(1, 8, 12).astype(np.float16)),
        SET,
        "a dict with keys and attn_highres",
    ),
    "irn": (
        "cat.npy",
        save_dict(keys=torch.tensor([2]), cam=torch.zeros(1, 2, 3), high_res=maps(1, 8, 12)),
        SET,
        "a dict with keys, cam, high_res",
    ),
    "psa": ("cat.npy", save_psa, SET, "counted from 0"),
    "psa-crf": ("cat.npy", lambda path: save_psa(path, 1), SET, "sum to 1"),
    "diffsegmenter": ("cat.mat", save_mat, SET, "class indices"),
    "mmseg": ("all.pkl", save_predictions, SET, "img_path, seg_logits, pred_sem_seg"),
    "coco-results": ("all.json", save_json(RESULTS), SET, "a JSON list of results"),
    "coco-instances": ("all.json", save_json(INSTANCES), SET, "a JSON object with images and annotations and cat"),
}


def saved(folder: Path, name: str) -> tuple[Path, Naming]:
    file, save, naming, _ = FILES[name]
    save(folder / file)
    return folder / file, naming


def test_every_format_has_a_file_here_and_says_what_it_is() -> None:
    assert list(FILES) == list(FORMATS)
    for name, one in FORMATS.items():
        assert one.name == name
        assert one.description
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in one.suffixes)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_taken_for_what_it_is(tmp_path: Path, name: str) -> None:
    path, naming = saved(tmp_path, name)
    for asked in (None, name):
        detected = detect(path, asked, naming)
        assert detected.format is FORMATS[name]
        assert detected.evidence.startswith(f"{path.name}: {name} (")
        assert FILES[name][3] in detected.evidence
    one = detected.format
    if isinstance(one, Format):
        masks = one.read(path, naming)
        assert masks.size == (8, 12)
        out = tmp_path / "out"
        out.mkdir()
        one.write(out / path.name, masks)
        again = detect(out / path.name, None, naming)
        assert again.format is one
        assert (one.read(out / path.name, naming).probabilities == masks.probabilities).all()


@pytest.mark.parametrize("name", FILES)
def test_no_other_format_recognises_it(tmp_path: Path, name: str) -> None:
    path, _ = saved(tmp_path, name)
    assert [one for one in FORMATS if FORMATS[one].recognise(path) is not None] == [name]


@pytest.mark.parametrize("asked", FILES)
@pytest.mark.parametrize("name", FILES)
def test_asking_for_another_format_is_an_error_where_the_file_tells(tmp_path: Path, name: str, asked: str) -> None:
    path, naming = saved(tmp_path, name)
    if asked == name:
        return
    if {asked, name} == {"psa", "psa-crf"}:  # the same layout, the user knows better
        assert detect(path, asked, naming).format is FORMATS[asked]
        return
    with pytest.raises(MaskError, match=f"asked for as {asked}, but it is {name} ") as caught:
        detect(path, asked, naming)
    assert "\n" not in str(caught.value)


def test_collections_pair_their_stems_with_the_images() -> None:
    for name, stem, key in (
        ("coco-results", "COCO_val2014_000000000139", "139"),
        ("coco-instances", "COCO_val2014_000000000139", "COCO_val2014_000000000139"),
        ("mmseg", "2007_000032", "2007_000032"),
    ):
        one = FORMATS[name]
        assert isinstance(one, CollectionFormat)
        assert one.key_of(stem) == key


@pytest.mark.parametrize("name", ["coco-results", "coco-instances", "mmseg"])
def test_collections_are_opened_read_and_written_alike(tmp_path: Path, name: str) -> None:
    if name.startswith("coco"):
        pytest.importorskip("pycocotools")
    path, naming = saved(tmp_path, name)
    if name == "coco-results":
        naming = Naming(None, ClassTable.of_dataset("coco-object"))
    one = FORMATS[name]
    assert isinstance(one, CollectionFormat)
    collection = one.open(path, naming)
    assert collection.remark is None
    (stem,) = collection.stems()
    masks = collection.read(stem)
    assert masks.size == (8, 12)
    one.write(tmp_path / f"out{path.suffix}", [(stem, masks)], collection)
    again = one.open(tmp_path / f"out{path.suffix}", naming)
    assert again.stems() == (stem,)
    assert again.read(stem).ids == masks.ids
    assert detect(tmp_path / f"out{path.suffix}", None, naming).format is one


def grey(path: Path, values: list[int], dtype: type[Any] = np.uint8) -> Path:
    Image.fromarray(np.array([values], dtype)).save(path)
    return path


NOTHING, NAMED, TABLED, BOTH = Naming(), Naming(("cat",)), SET, CLASS
ADE = Naming(None, ClassTable.of_dataset("ade20k"))


@pytest.mark.parametrize(
    ("values", "namings", "name"),
    [
        # Black and white is one class, unless nobody says which.
        ([0, 255], (NOTHING, NAMED, BOTH), "png"),
        ([0, 255], (TABLED, ADE), "index-png"),
        ([0, 0], (NOTHING, NAMED, BOTH), "png"),
        ([0, 0], (TABLED,), "index-png"),
        # Class ids need a table.
        ([0, 1, 2, 255], (TABLED, BOTH, ADE), "index-png"),
        ([0, 1, 2, 255], (NOTHING, NAMED), None),
        ([0, 1], (NOTHING, NAMED), None),
        ([0, 150, 255], (ADE,), "index-png"),
        # Few levels that the table does not have.
        ([0, 21, 255], (NOTHING, NAMED, TABLED, BOTH), None),
        ([0, 128, 255], (NOTHING, NAMED, TABLED, BOTH), None),
        # Larger than any usual id.
        ([0, 183, 255], (NOTHING, NAMED, TABLED, BOTH, ADE), "png"),
        # Many levels.
        (list(range(0, 256, 5)), (NOTHING, NAMED, TABLED, BOTH, ADE), "png"),
        (list(range(151)), (NOTHING, NAMED, TABLED, BOTH), "png"),
        (list(range(151)), (ADE,), None),
        (list(range(41)), (ADE,), None),
        (list(range(40)), (ADE,), "index-png"),
    ],
)
def test_the_rule_for_grey_values(
    tmp_path: Path, values: list[int], namings: tuple[Naming, ...], name: str | None
) -> None:
    path = grey(tmp_path / "m.png", values)
    for naming in namings:
        if name is not None:
            assert detect(path, None, naming).format.name == name
            continue
        with pytest.raises(MaskError, match="--format png or --format index-png") as caught:
            detect(path, None, naming)
        assert ("--dataset" in str(caught.value)) == (naming.table is None)
        for asked in ("png", "index-png"):
            assert detect(path, asked, naming).evidence == f"m.png: {asked} (as asked)"


@pytest.mark.parametrize(
    ("values", "naming", "name"),
    [
        ([0, 65535], NOTHING, "png"),
        ([0, 65535], TABLED, "index-png"),
        ([0, 32768], TABLED, "png"),
        ([0, 4096], NOTHING, "png"),
        ([0, 255], NAMED, None),
        ([0, 300, 2], NOTHING, None),
        ([0, 2, 3, 65535], BOTH, "index-png"),
        ([0, 2, 255], TABLED, "index-png"),
    ],
)
def test_the_rule_for_sixteen_bits(tmp_path: Path, values: list[int], naming: Naming, name: str | None) -> None:
    path = grey(tmp_path / "m.png", values, np.uint16)
    if name is not None:
        assert detect(path, None, naming).format.name == name
        return
    with pytest.raises(MaskError, match="may be a soft mask"):
        detect(path, None, naming)


@pytest.mark.parametrize(("asked", "evident"), [("png", "index-png"), ("index-png", "png")])
def test_a_png_that_tells_is_never_taken_for_the_other(tmp_path: Path, asked: str, evident: str) -> None:
    pictures: dict[str, list[Callable[[Path], Any]]] = {
        "index-png": [save_palette, Image.fromarray(label_colours(256)[LABELS]).save],
        "png": [Image.fromarray(SOFT).save, Image.fromarray(SOFT).convert("RGB").save],
    }
    for save in pictures[evident]:
        save(tmp_path / "m.png")
        for naming in (NOTHING, NAMED, TABLED):
            assert detect(tmp_path / "m.png", None, naming).format.name == evident
            with pytest.raises(MaskError, match=f"asked for as {asked}, but it is {evident}"):
                detect(tmp_path / "m.png", asked, naming)


def test_grey_that_is_vocs_colour_of_a_class_is_so_only_with_a_table(tmp_path: Path) -> None:
    Image.fromarray(label_colours(256)[np.array([[0, 7]])]).save(tmp_path / "bus.png")
    assert detect(tmp_path / "bus.png", None, SET).format.name == "index-png"
    with pytest.raises(MaskError, match="--format"):
        detect(tmp_path / "bus.png")
    assert detect(tmp_path / "bus.png", "png").format.name == "png"


def test_a_palette_of_grey_levels_is_as_grey(tmp_path: Path) -> None:
    picture = Image.fromarray(SOFT).convert("P")
    picture.save(tmp_path / "m.png")
    assert picture.mode == "P"
    assert detect(tmp_path / "m.png", None, NAMED).format.name == "png"


def test_colours_of_no_known_map_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match=r"the colour \(1, 2, 3\)"):
        detect(tmp_path / "m.png", None, SET)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=60),
    st.sampled_from([NOTHING, NAMED, TABLED, BOTH, ADE]),
)
def test_whatever_is_taken_for_class_ids_can_be_read_as_such(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], naming: Naming
) -> None:
    path = grey(tmp_path_factory.getbasetemp() / "any.png", values)
    try:
        kind = png_kind(path, naming)
    except MaskError as error:
        assert "--format" in str(error)
        return
    one = FORMATS[kind.name]
    assert isinstance(one, Format)
    if kind.name == "index-png":
        every = replace(naming, names=None if naming.table is not None else naming.names)
        assert one.read(path, every).ids == tuple(sorted(set(values) - {0, 255}))
    elif naming.names is not None and max(values) != 1:
        assert (one.read(path, naming).probabilities[0, 0] == np.array(values, np.float32) / np.float32(255)).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tif", b"", r"no mask format has the suffix '\.tif', allowed: \.png, \.npy, \.npz, \.mat, \.pkl"),
        ("m", b"", "no mask format has the suffix ''"),
        ("m.npy", b"nonsense", r"of no known format .*; looked for npy: one class.*; clip-es: .*; psa-crf: "),
        ("m.npz", b"nonsense", r"of no known format \(not a \.npz archive.*; looked for npz"),
        ("m.json", b"{}", "of no known format; looked for coco-results: .*; coco-instances"),
        ("m.pkl", b"nonsense", "of no known format; looked for mmseg"),
        ("m.mat", b"nonsense", "of no known format; looked for diffsegmenter"),
        ("m.png", b"nonsense", "not a picture"),
    ],
)
def test_files_of_no_format_say_what_was_looked_for(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MaskError, match=message) as caught:
        detect(tmp_path / name, None, SET)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    for one in FORMATS.values():
        assert one.recognise(tmp_path / name) is None


def test_missing_files_loops_and_empty_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    for name in ("missing.npy", "loop.npy"):
        for asked in (None, "npy"):
            with pytest.raises(MaskError, match="no such file"):
                detect(tmp_path / name, asked)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MaskError, match=r"of no known format \(holds no mask .*\); looked for class-folder"):
        detect(tmp_path / "folder.png")


def test_an_array_of_another_number_of_axes_is_of_no_format(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((1, 2, 3, 4)))
    with pytest.raises(MaskError, match="of no known format; looked for npy"):
        detect(tmp_path / "m.npy")


def test_a_malicious_pickle_is_told_to_be_one_and_never_runs(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    save_raw(tmp_path / "m.npy", pickle.dumps({"keys": makes_folder(trap), "attn_highres": 1}))
    with pytest.raises(MaskError, match="eval"):
        detect(tmp_path / "m.npy")
    for one in FORMATS.values():
        one.recognise(tmp_path / "m.npy")
        if isinstance(one, Format):
            with pytest.raises(InputError):
                one.read(tmp_path / "m.npy", SET)
    assert not trap.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_that_may_not_be_read_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((2, 2)))
    (tmp_path / "m.npy").chmod(0)
    with pytest.raises(MaskError, match="Permission"):
        detect(tmp_path / "m.npy")


def test_an_unknown_name_lists_the_formats() -> None:
    with pytest.raises(ConfigError, match="no mask format is called 'tiff', allowed: png, index-png, npy, array"):
        format_named("tiff")
