"""Lists of images: every line finds its image, whatever dots, spaces and Unicode its name holds."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import InputError
from g4seg_trt.evaluate.predictions import files_by_stem, is_png
from g4seg_trt.listing import composed, images_of_list

WORDS = st.text(st.sampled_from(["a", "b", "1", "_", "-", ".", "ü", "é", "한", "ﬁ"]), min_size=1, max_size=5)
STEMS = (
    st.lists(WORDS, min_size=1, max_size=3)
    .map(lambda words: composed(" ".join(words)))
    .filter(lambda stem: not stem.startswith("."))  # which is hidden
)
Form = Literal["NFC", "NFD"]
FORMS: st.SearchStrategy[Form] = st.sampled_from(["NFC", "NFD"])
SUFFIXES = st.sampled_from([".jpg", ".PNG", ".webp"])


@settings(deadline=None)
@given(st.sets(STEMS, min_size=1, max_size=8), FORMS, SUFFIXES, st.sampled_from(["", "/data/x y/", "v.1\\my set\\"]))
def test_every_line_finds_its_image(stems: set[str], form: Form, suffix: str, folder: str) -> None:
    order = sorted(stems)
    for whole in (False, True):
        names = [f"{stem}{suffix}" if whole else stem for stem in order]
        # A name alone may be a stem as a whole, also one that ends like a file.
        lines = {unicodedata.normalize(form, folder + name): stem for name, stem in zip(names, order, strict=True)}
        assert list(images_of_list(lines, stems)) == list(lines.values())
        assert images_of_list(lines, stems) == {stem: line for line, stem in lines.items()}


@settings(deadline=None)
@given(
    st.sets(STEMS.filter(lambda stem: " " not in stem), min_size=1, max_size=8),
    FORMS,
    st.randoms(use_true_random=False),
)
def test_what_follows_the_image_is_left_aside(stems: set[str], form: Form, chance: Random) -> None:
    order = sorted(stems)
    labels = list(order)
    chance.shuffle(labels)
    lines = [f"/images/{stem}.jpg /labels/{label}.png" for stem, label in zip(order, labels, strict=True)]
    assert list(images_of_list((unicodedata.normalize(form, line) for line in lines), stems)) == order
    assert list(images_of_list((f"{stem} 0 14" for stem in order), stems)) == order


@pytest.mark.parametrize(
    ("line", "known", "stem"),
    [
        ("2007_000032", ["2007_000032"], "2007_000032"),
        ("2007_000032 -1", ["2007_000032"], "2007_000032"),
        ("b c", ["b", "b c"], "b c"),
        ("b c", ["b"], "b"),
        ("b.c", ["b", "b.c"], "b.c"),
        ("b.png", ["b", "b.png"], "b.png"),
        ("x/b.png", ["b", "b.png"], "b"),
        ("x/b.png", ["b.png"], "b.png"),
        ("x/b.c", ["b", "b.c"], "b.c"),
        ("x/b.c", ["b"], "b"),
        ("b.c 0 14", ["b", "b.c"], "b.c"),
        ("my photos/b.jpg", ["b", "my"], "b"),
        ("photos/b c.jpg", ["b", "b c", "c"], "b c"),
        ("img/b.jpg lab/c.png", ["b", "c"], "b"),
        ("img/b.jpg lab/c.png", ["c"], "c"),
        ("img\\b.jpg lab\\c.png", ["b", "c"], "b"),
        ("C:\\img\\b c.JPG", ["b c"], "b c"),
        ("img/a\\b.jpg", ["b", "a\\b"], "a\\b"),
        ("b\n", ["b"], "b"),
        ("cafe\N{COMBINING ACUTE ACCENT}.jpg", ["caf\N{LATIN SMALL LETTER E WITH ACUTE}"], "café"),
        ("gone 1", ["b"], "gone 1"),
    ],
)
def test_readings_by_hand(line: str, known: list[str], stem: str) -> None:
    assert images_of_list([line, "", " \t"], known) == {stem: line}


def test_an_image_twice_is_an_error() -> None:
    with pytest.raises(InputError, match=r"the list of images has 'a' twice: as 'a' and as 'x/a\.jpg 1'"):
        images_of_list(["b", "a", "x/a.jpg 1"], ["a", "b"])


def test_both_commands_read_a_list_alike(tmp_path: Path) -> None:
    stems = ["a.b", "c d", "e", "cafe\N{COMBINING ACUTE ACCENT}"]
    for stem in stems:
        Image.new("L", (2, 2)).save(tmp_path / f"{stem}.png")
    lines = ["x\\caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", "p/a.b.jpg q/e.png", "c d", "e 3"]
    wanted = ["café", "a.b", "c d", "e"]
    source = DatasetSource.from_folders(tmp_path, tmp_path, names=lines)
    assert [item.stem for item in source] == wanted
    assert list(images_of_list(lines, files_by_stem(tmp_path, is_png, "pictures"))) == wanted
    with pytest.raises(InputError, match=r"has 'x/gone\.jpg'.* holds no image of that stem"):
        DatasetSource.from_folders(tmp_path, tmp_path, names=["e", "x/gone.jpg"])
