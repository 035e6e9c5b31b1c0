"""Records: what counts of a file that was cut anywhere, of several files, and of lines taken back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.dataset.record import Key, Record, Records, has_runs, latest_settings
from g4seg_trt.errors import OutputError

STEMS = ("a", "b c", "übung", "\udce9")


def begun(folder: Path, name: str, settings: dict[str, object], apart: tuple[str, ...] = ()) -> Records:
    records = Records(folder, name, apart)
    records.begin(settings)
    return records


def record(stem: str, content: str = "0", **details: object) -> Record:
    return Record(stem, Key(f"{stem}.png", content, "m", "s", "e"), {"label": (f"label/{stem}.png", 7)}, details)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(STEMS), st.sampled_from("xyz")),
        st.tuples(st.just("withdraw"), st.sampled_from(STEMS), st.just("")),
        st.tuples(st.just("reopen"), st.just(""), st.just("")),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps, cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_says_what_its_whole_lines_say(steps: list[tuple[str, str, str]], cut: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        records = begun(folder, "all", {})
        expected: list[tuple[int, dict[str, str]]] = [(records.path.stat().st_size, {})]
        for step, stem, content in steps:
            known = dict(expected[-1][1])
            if step == "reopen":
                records.close()
                records = begun(folder, "all", {})
            elif step == "add":
                records.add(record(stem, content))
                known[stem] = content
            else:
                records.withdraw(stem)
                known.pop(stem, None)
            expected.append((records.path.stat().st_size, known))
        records.close()
        data = records.path.read_bytes()
        cut %= len(data) + 1
        records.path.write_bytes(data[:cut])
        wanted = next((known for size, known in reversed(expected) if size <= cut), {})
        with begun(folder, "all", {}) as again:
            found = {stem: again.find(stem) for stem in STEMS}
            assert len(again) == len(wanted)
        assert {stem: one.key.image_sha256 for stem, one in found.items() if one is not None} == wanted
        # A torn line does not run into the next one.
        assert all(json.loads(line) for line in again.path.read_bytes().splitlines())


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    one = Record(
        "\udce9",
        Key("\udce9.png", "1", "2", "3", "4"),
        {"label": ("label/x.png", 3), "matches": None},
        {"classes": {"cat": {"iou_after": 0.5}}, "warnings": ["ü"]},
    )
    with begun(tmp_path, "all", {"beta": 0.5}) as records:
        records.add(one)
        assert records.find("\udce9") is None, "what was there when it was opened"
        assert records.before is None
    with begun(tmp_path, "1-of-2", {}) as records:
        assert records.find("\udce9") == one
        assert records.before == {"beta": 0.5}


def test_the_later_run_counts_whatever_its_file(tmp_path: Path) -> None:
    for name, content in (("all", "1"), ("1-of-2", "2"), ("all", "3")):
        with begun(tmp_path, name, {}) as records:
            records.add(record("a", content))
    with begun(tmp_path, "2-of-2", {}) as records:
        assert records.find("a") == record("a", "3")
        records.withdraw("a")
    with begun(tmp_path, "all", {}) as records:
        assert records.find("a") is None


def test_foreign_lines_are_left_alone(tmp_path: Path) -> None:
    lines = ["{", "[]", "3", '"run"', '{"stem": 3}', '{"run": "x"}', "null", "\0\xff", '{"stem": "a", "key": {}}']
    (tmp_path / "all.jsonl").write_text("\n".join(lines), "latin-1")
    assert not has_runs(tmp_path)
    with begun(tmp_path, "all", {}) as records:
        assert records.find("a") is None
        records.add(record("b"))
    with begun(tmp_path, "all", {}) as records:
        assert records.find("b") == record("b")


def test_a_record_that_was_taken_back_last_is_told_from_none(tmp_path: Path) -> None:
    with begun(tmp_path, "all", {}) as records:
        for stem in "abc":
            records.add(record(stem))
        records.withdraw("a")
        records.withdraw("b")
        records.add(record("b", "new"))
        assert not records.was_withdrawn("a"), "it is about what was there before"
    with begun(tmp_path, "1-of-2", {}) as records:
        assert [stem for stem in "abcd" if records.was_withdrawn(stem)] == ["a"]
        records.add(record("a"))
    with begun(tmp_path, "all", {}) as records:
        assert not any(records.was_withdrawn(stem) for stem in "abcd"), "whoever did it"


def test_what_differs_is_said_in_words() -> None:
    one = Key("a.png", "1", "2", "3", "4")
    assert one.differing(one) == ()
    assert one.differing(Key("a.png", "9", "2", "9", "4")) == ("image", "settings")
    assert one.differing(Key("b.png", "1", "9", "3", "9")) == ("name of the image", "masks", "engine")


@pytest.mark.parametrize(
    "name", ["../mine", "/etc/mine", "label/../mine", "label/..", "masks/a.png", "label/a/b", "a.png"]
)
def test_a_record_of_files_elsewhere_is_none(tmp_path: Path, name: str) -> None:
    line = {"stem": "a", "key": asdict(record("a").key), "outputs": {"label": [name, 3]}}
    (tmp_path / "all.jsonl").write_text(json.dumps({"run": 1, "settings": {}}) + "\n" + json.dumps(line) + "\n")
    with begun(tmp_path, "all", {}) as records:
        assert records.find("a") is None


def test_outputs_are_looked_for_with_their_bytes(tmp_path: Path) -> None:
    one = Record(
        "a", Key("", "", "", "", ""), {"label": ("label/a.png", 3), "matches": None, "masks": ("masks/a.npy", 1)}
    )
    assert not one.has(tmp_path, ("label",))
    for name, data in (("label/a.png", b"abc"), ("masks/a.npy", b"x")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    assert one.has(tmp_path, ("label", "matches"))
    assert not one.has(tmp_path, ("label", "overlay"))
    (tmp_path / "label/a.png").write_bytes(b"ab")
    assert not one.has(tmp_path, ("label",))
    (tmp_path / "label/a.png").write_bytes(b"abc")
    (tmp_path / "masks/a.npy").unlink()
    assert not one.has(tmp_path, ("label",)), "what was written in the format that came in counts too"


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").mkdir()
    with pytest.raises(OutputError, match="cannot use the records"):
        begun(tmp_path, "all", {})


def test_runs_that_do_other_images_are_told_apart(tmp_path: Path) -> None:
    for name, beta in (("all", 1), ("1-of-2", 2), ("2-of-2", 3), ("10-of-12", 4), ("1-of-2", 5)):
        with begun(tmp_path, name, {"beta": beta}) as records:
            records.add(record(name))
    with (tmp_path / "2-of-2.jsonl").open("ab") as file:
        file.write(b'{"run"}\n{"run": 9}\n{"run": 9, "settings": {"beta": 9}}')  # damaged, and half-written
    assert latest_settings(tmp_path, "*-of-2") == {"1-of-2": {"beta": 5}, "2-of-2": {"beta": 3}}
    assert latest_settings(tmp_path / "none", "*") == {}
    found = [Records(tmp_path, "2-of-2", apart=apart) for apart in ((), ("1-of-2",), ("1-of-2", "10-of-12"))]
    assert [one.before for one in found] == [{"beta": 5}, {"beta": 4}, {"beta": 3}]
    assert all(one.find("1-of-2") == record("1-of-2") for one in found), "their records count"
    assert not (tmp_path / "new.jsonl").exists()
    for one in (*found, Records(tmp_path, "new")):
        one.close()
    assert not (tmp_path / "new.jsonl").exists(), "nothing is written before a run begins"


def test_the_bytes_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    one = Record("a", Key("", "", "", "", ""), {"masks": ("masks/a", 5)})
    folder = tmp_path / "masks" / "a"
    assert not one.has(tmp_path, ())
    folder.mkdir(parents=True)
    (folder / "cat.png").write_bytes(b"abc")
    assert not one.has(tmp_path, ())
    (folder / "dog.npy").write_bytes(b"de")
    (folder / ".hidden").write_bytes(b"left by a file manager")
    assert one.has(tmp_path, ())
    (folder / "dog.npy").unlink()
    assert not one.has(tmp_path, ())
