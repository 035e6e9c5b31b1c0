"""Class tables: the ids and names of the data sets, and what a table of one's own may hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine.manifest import read_manifest
from g4seg_trt.class_table import DATASETS, ClassTable
from g4seg_trt.errors import ClassNameError, InputError
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import EMBEDDED

VOC = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]

# From the lists of mmsegmentation (Context), SCLIP (COCO) and SceneParse150: names joined by line feeds, SHA-256.
LISTS = {
    "context60": "cd808465f06a16169edc25580073f0eda347e64f06cc1c2e24acd0b237f6497d",
    "context59": "cd808465f06a16169edc25580073f0eda347e64f06cc1c2e24acd0b237f6497d",
    "coco-object": "d7654b26101572841ed1cd80aa03aa60e35f1b8acb4aea6906c4066886f16e07",
    "ade20k": "ffd47f2fcbad6c484a3e320702ff1278dae14e78d443d81987142210b70c5032",
}


@pytest.mark.parametrize(
    ("dataset", "count", "background"),
    [
        ("voc12", 20, True),
        ("context60", 59, True),
        ("context59", 59, False),
        ("coco-object", 80, True),
        ("ade20k", 150, False),
    ],
)
def test_every_data_set_has_its_ids(dataset: str, count: int, background: bool) -> None:
    table = ClassTable.of_dataset(dataset)
    assert table.dataset == dataset
    assert table.background is background
    assert [entry.id for entry in table.classes] == list(range(1, count + 1))


def test_there_is_a_table_for_each_data_set_and_none_for_others() -> None:
    assert [ClassTable.of_dataset(dataset).dataset for dataset in DATASETS] == list(DATASETS)
    with pytest.raises(ClassNameError, match=r"^no class table for the data set 'voc': there are voc12, .*ade20k; "):
        ClassTable.of_dataset("voc")


def test_names_of_voc() -> None:
    assert [entry.name for entry in ClassTable.of_dataset("voc12").classes] == VOC


@pytest.mark.parametrize("dataset", LISTS)
def test_names_are_those_of_the_published_lists(dataset: str) -> None:
    names = [entry.name for entry in ClassTable.of_dataset(dataset).classes]
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == LISTS[dataset]


def test_names_of_context_are_in_alphabetical_order_and_hold_those_of_voc() -> None:
    names = [entry.name for entry in ClassTable.of_dataset("context59").classes]
    assert names == sorted(names)
    assert set(VOC) - set(names) == {"diningtable"}
    assert ClassTable.of_dataset("context60").classes == ClassTable.of_dataset("context59").classes


def test_categories_of_coco_leave_out_the_ten_that_were_never_annotated() -> None:
    table = ClassTable.of_dataset("coco-object")
    categories = [entry.category for entry in table.classes]
    assert categories == [number for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
    for category, number, name in ((1, 1, "person"), (13, 12, "stop sign"), (72, 63, "tv"), (90, 80, "toothbrush")):
        found = table.category(category, "x.json")
        assert (found.id, found.name) == (number, name)


@pytest.mark.parametrize(
    ("dataset", "number", "name", "prompt"),
    [
        ("voc12", 1, "aeroplane", "airplane"),
        ("voc12", 11, "diningtable", "dining table"),
        ("voc12", 15, "person", "person"),
        ("voc12", 16, "pottedplant", "potted plant"),
        ("voc12", 20, "tvmonitor", "tv monitor"),
        ("context60", 4, "bedclothes", "bed clothes"),
        ("context59", 55, "tvmonitor", "tv monitor"),
        ("ade20k", 8, "bed", "bed"),
        ("ade20k", 90, "television", "television"),
        ("ade20k", 139, "ashcan", "trash can"),
    ],
)
def test_prompts_are_words_as_people_write_them(dataset: str, number: int, name: str, prompt: str) -> None:
    entry = ClassTable.of_dataset(dataset).entry(number, "x.png")
    assert (entry.id, entry.name, entry.prompt, entry.category) == (number, name, prompt, None)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_prompt_fits_a_tokenizer_and_is_there_once(dataset: str) -> None:
    directory = EMBEDDED["tiny"]
    encoder = PromptEncoder.of_engine(directory, read_manifest(directory))
    table = ClassTable.of_dataset(dataset)
    seen = set()
    for entry in table.classes:
        prompt = encoder.encode(entry.prompt)
        assert prompt.class_name == entry.prompt
        assert prompt.token_mask.sum() >= 1
        seen.add(tuple(prompt.input_ids))
        assert not set(entry.prompt) & set(",;_/()")
    assert len(seen) == len(table.classes)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_class_is_found_by_either_of_its_names(dataset: str) -> None:
    table = ClassTable.of_dataset(dataset)
    for entry in table.classes:
        for name in (entry.name, entry.prompt, entry.prompt.upper(), entry.name.replace(" ", "_"), f" {entry.name} "):
            assert table.named(name, "x") == entry
        assert table.entry(entry.id, "x") == entry


def test_what_mmsegmentation_calls_a_television_is_found(tmp_path: Path) -> None:
    television = ClassTable.of_dataset("ade20k").entry(90, "x")
    assert (television.name, television.prompt) == ("television", "television")
    for name in ("television receiver", "Television_Receiver", "television"):
        assert ClassTable.of_dataset("ade20k").named(name, "x") == television
    path = tmp_path / "classes.json"
    path.write_text('[{"id": 1, "name": "cat", "aliases": ["moggy"]}, {"id": 2, "name": "dog"}]')
    assert ClassTable.read(path).named("moggy", "x").id == 1
    for entries, message in (
        ('[{"id": 1, "name": "cat", "aliases": ["dog"]}, {"id": 2, "name": "dog"}]', "alias 'dog' is also a name"),
        (
            '[{"id": 1, "name": "cat", "aliases": ["a"]}, {"id": 2, "name": "b", "aliases": ["a"]}]',
            "entry 2: the alias",
        ),
        ('[{"id": 1, "name": "cat", "aliases": "a"}]', "entry 1: aliases 'a', expected a list of names"),
    ):
        path.write_text(entries)
        with pytest.raises(ClassNameError, match=message):
            ClassTable.read(path)


def test_what_is_not_in_the_table_is_refused_with_the_file_and_what_there_is() -> None:
    table = ClassTable.of_dataset("coco-object")
    with pytest.raises(ClassNameError, match=r"^a/x\.npy: class id 81 is not in .* coco-object, .* 1 to 80$"):
        table.entry(81, "a/x.npy")
    with pytest.raises(ClassNameError, match=r"^x: class id 0 is not"):
        table.entry(0, "x")
    with pytest.raises(ClassNameError, match=r"^x: category id 12 .* 1 to 11, 13 to 25, 27 to 28, .* 67, 70, .*90$"):
        table.category(12, "x")
    with pytest.raises(ClassNameError, match=r"^x: class 'tooth brsh' .* did you mean 'toothbrush'\?$"):
        table.named("tooth brsh", "x")
    with pytest.raises(ClassNameError, match=r"^x: class '\\ud800' is not in the class table coco-object$"):
        table.named("\ud800", "x")
    with pytest.raises(ClassNameError, match=r"voc12, which has no COCO categories$"):
        ClassTable.of_dataset("voc12").category(1, "x")


def written(folder: Path, content: Any) -> Path:
    path = folder / "classes"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(table: ClassTable) -> list[tuple[int, str, str]]:
    return [(entry.id, entry.name, entry.prompt) for entry in table.classes]


@pytest.mark.parametrize(
    "content",
    [
        "cat\ntraffic_light\ncafé: coffee house\n",
        "# pets\r\nbackground\r\n\r\n  cat  \r\ntraffic_light\r\ncafé\tcoffee  house",
        "\ufeffBackground\ncat: cat\ntraffic_light\ncafé:\tcoffee house\n",
        [
            {"id": 3, "name": "café", "prompt": " coffee house "},
            {"id": 1, "name": "cat"},
            {"id": 2, "name": "traffic_light"},
        ],
    ],
)
def test_a_table_of_ones_own(tmp_path: Path, content: Any) -> None:
    table = ClassTable.read(written(tmp_path, content))
    expected = [(1, "cat", "cat"), (2, "traffic_light", "traffic light"), (3, "café", "coffee house")]
    assert rows(table) == expected
    assert table.background
    assert table.dataset == str(tmp_path / "classes")


def test_json_says_whether_0_is_background_and_knows_categories(tmp_path: Path) -> None:
    classes = [{"id": 7, "name": "cat", "category": 17}, {"id": 300, "name": "dog", "category": 18, "prompt": None}]
    table = ClassTable.read(written(tmp_path, {"background": False, "classes": classes, "source": "mine"}))
    assert not table.background
    assert table.category(18, "x").id == 300
    with pytest.raises(ClassNameError, match="whose ids are 7, 300"):
        table.entry(8, "x")


def test_255_is_an_id_beside_larger_ones(tmp_path: Path) -> None:
    table = ClassTable.read(written(tmp_path, "\n".join(f"c{n}" for n in range(1, 301))))
    assert [entry.id for entry in table.classes] == list(range(1, 301))
    assert table.entry(255, "x").name == "c255"
    table = ClassTable.read(written(tmp_path, [{"id": 65534, "name": "cat"}, {"id": 255, "name": "dog"}]))
    assert [entry.id for entry in table.classes] == [255, 65534]


def test_a_colon_inside_a_word_belongs_to_the_name(tmp_path: Path) -> None:
    assert rows(ClassTable.read(written(tmp_path, "a:b\nc:d: e: f\n"))) == [(1, "a:b", "a:b"), (2, "c:d", "e: f")]


def test_names_come_before_prompts_and_both_before_other_spellings(tmp_path: Path) -> None:
    table = ClassTable.read(written(tmp_path, "monitor: lizard\ntv: monitor\nhot dog\nHotdog\nhot_dog: sausage\n"))
    assert table.named("monitor", "x").id == 1
    assert table.named("lizard", "x").id == 1
    assert [table.named(name, "x").id for name in ("hot dog", "Hotdog", "hot_dog")] == [3, 4, 5]
    with pytest.raises(ClassNameError, match=r"^x: class 'HOTDOG' could be 'hot dog', 'Hotdog', 'hot_dog' of"):
        table.named("HOTDOG", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no class"),
        ("# only a comment\n\nbackground\n", "has no class"),
        ([], "has no class"),
        ("cat\n\ncat\n", r", line 3: the name 'cat' is also that of line 1"),
        ("cat: pet\ndog: pet\n", r", line 2: the prompt 'pet' is also that of line 1"),
        ("traffic_light\ntraffic light: lamp\nx: traffic light", r", line 3: the prompt 'traffic light' .* line 1"),
        ("cat\nbackground\n", r", line 2: background has the id 0"),
        ("cat\n: dog\n", r", line 2: class name '' is empty"),
        ("cat:\n", r", line 1: class name '' is empty"),
        (b"cat\n\xff\xfe", "cannot be read: it is not UTF-8 text"),
        ('[\n{"id": 1,\n"name": cat}]', r", line 3: the class table is not JSON: Expecting value"),
        ("[" * 100_000, "the class table is not JSON"),
        ('[{"id": ' + "1" * 5000 + "}]", "the class table is not JSON"),
        ({"background": 1, "classes": []}, '"background" is 1, expected true or false'),
        ({"background": True}, 'has no list "classes"'),
        ({"classes": {"1": "cat"}}, 'has no list "classes"'),
        ({"1": "cat"}, r"unknown key '1', a class table has background, classes, source"),
        (["cat"], r", entry 1: 'cat' is no class"),
        ([{"id": 1, "name": "cat"}, {"name": "dog"}], r', entry 2: the class has no "id"'),
        ([{"id": 1}], r', entry 1: the class has no "name"'),
        ([{"id": 1, "name": "cat", "colour": 3}], r", entry 1: unknown key 'colour'"),
        ([{"id": 0, "name": "background"}], r", entry 1: id 0 is not a whole number from 1 to 65534"),
        ([{"id": True, "name": "cat"}], r", entry 1: id True is not"),
        ([{"id": 1.0, "name": "cat"}], r", entry 1: id 1.0 is not"),
        ('[{"id": NaN, "name": "cat"}]', r", entry 1: id nan is not"),
        ([{"id": 65535, "name": "cat"}], r", entry 1: id 65535 is not"),
        ([{"id": 255, "name": "cat"}], r", entry 1: id 255 stands for pixels that are ignored"),
        ("\n".join(f"c{n}" for n in range(1, 256)), r", line 255: id 255 stands for pixels that are ignored"),
        ([{"id": 1, "name": "cat", "category": -1}], r", entry 1: category -1 is not"),
        ([{"id": 1, "name": "cat", "category": [1]}], r", entry 1: category \[1\] is not"),
        ([{"id": 1, "name": 5}], r", entry 1: class name 5 is a int"),
        ([{"id": 1, "name": "cat", "prompt": " "}], r", entry 1: class name ' ' is empty"),
        ('[{"id": 1, "name": "\\ud800"}]', r", entry 1: class name .* not valid Unicode"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], r", entry 2: the id 1 is also that of entry 1"),
        (
            [{"id": 1, "name": "a", "category": 4}, {"id": 2, "name": "b", "category": 4}],
            r", entry 2: the category 4 is also that of entry 1",
        ),
    ],
)
def test_a_bad_table_is_one_clear_line(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        ClassTable.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "null"])
def test_a_table_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = {"missing": tmp_path / "none", "folder": tmp_path, "null": tmp_path / "a\0b"}[kind]
    with pytest.raises(InputError, match="the class table cannot be read"):
        ClassTable.read(path)


names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda name: name and not name.startswith(("#", "[", "{", "\ufeff")) and name.casefold() != "background")
    .filter(lambda name: ": " not in name and not name.endswith(":")),
    min_size=1,
    max_size=8,
    unique_by=lambda name: " ".join(name.replace("_", " ").split()),
)


@settings(deadline=None)
@given(names)
def test_text_and_json_say_the_same(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("classes")
    try:
        of_json = ClassTable.read(written(folder, [{"id": i, "name": name} for i, name in enumerate(names, start=1)]))
    except ClassNameError as error:
        assert "is empty" in str(error)  # nothing but underscores
        return
    assert ClassTable.read(written(folder, "\n".join(names))) == of_json
    for number, name in enumerate(names, start=1):
        assert of_json.named(name, "x").id == of_json.entry(number, "x").id == number


def test_asking_for_the_data_sets_loads_nothing_heavy() -> None:
    program = "import sys, g4seg_trt.class_table; print(sorted({'numpy', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
