"""Reports from a record with everything in it, and from records that are not what they should be."""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from g4seg_bench.latency_record import read_latency_record
from g4seg_bench.plots import PLOTS
from g4seg_bench.report import add_report_arguments, markdown, run_report
from g4seg_bench.report_html import page
from g4seg_bench.tables import all_tables, seconds
from g4seg_engine.errors import G4SegError, MissingExtraError
from tests.bench.latency_records import cells, latency_record, save


def report(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_report_arguments(parser)
    return run_report(parser.parse_args(list(map(str, arguments))))


class Page(HTMLParser):
    """Tags that are opened and closed properly, what refers to something, and the text."""

    VOID = ("meta", "img", "!doctype")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_markdown_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(save(tmp_path / "one.json", latency_record())) == 0
    printed = capsys.readouterr().out
    rows = cells(printed)
    assert ["stage", "openvino bf16, s", "onnxruntime, s", "eager, s"] in rows
    assert ["UNet", "2.21", "4.42", "6.63"] in rows
    assert ["times faster, pair by pair", "3.00 (2.90 to 3.20)", "1.50 (1.40 to 1.51)", "1"] in rows
    assert ["peak memory, GB", "3.81", "7.61", "11.42"] in rows
    # min, p20, median, p80, TFLOP, GB, floor, share
    assert ["UNet", "3.98", "4.20", "4.42", "4.86", "0.767", "5.35", "3.21", "73 %"] in rows
    assert ["onnxruntime", "eager", "1.50", "1.40", "1.51", "1.50, 1.40, 1.51"] in rows
    assert ["onnxruntime", "second start", "6.00", "42.0 (41.0 to 43.0)"] in rows
    assert ["classes of one image: 4", "", "83.0 (81.0 to 84.5)", ""] in rows
    assert ["classes of one image: slope", "", "19.5", ""] in rows
    assert ["side of the square, pixels: 768", "", "", "99.0"] in rows
    assert ["processor", "Some CPU"] in rows
    assert "the total spreads by 3.1 %" in printed
    assert "512 px, graphs in fp32, folded, 1 class in batches of 1, 2 threads" in printed
    assert "Unsafe" not in printed and "unsafe" not in printed
    assert "Overview" not in printed


def test_files_are_written_and_hold_all_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsafe = latency_record() | {"safe": False, "unsafe_reason": "eager spreads by 12 %"}
    files = [save(tmp_path / "safe.json", latency_record()), save(tmp_path / "doubtful.json", unsafe)]
    out = tmp_path / "new" / "report"
    assert report(*files, "--output", out) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "report.md"), str(out / "report.html")]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "**Unsafe to compare**: eager spreads by 12 %" in text
    assert text.count("times faster, pair by pair (unsafe to compare)") == 1
    html = (out / "report.html").read_text(encoding="utf-8")
    shown = Page(html)
    assert html.count('class="unsafe"') == 1
    assert "Unsafe to compare: eager spreads by 12 %" in shown.text
    overview = [row for row in cells(text) if row[0] in ("safe.json", "doubtful.json")]
    assert [(row[0], row[3], row[-1]) for row in overview[2:4]] == [
        ("safe.json", "eager", "yes"),
        ("doubtful.json", "openvino bf16", "no"),
    ]
    for row in overview:
        assert all(cell in shown.text for cell in row)
    assert shown.links[:2] == ["#record0", "#record1"]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.md"]


def test_only_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "one.json", latency_record())
    with pytest.raises(G4SegError, match="needs --output DIR"):
        report(file, "--format", "html")
    assert report(file, "--format", "html", "--output", tmp_path / "h") == 0
    assert [path.name for path in (tmp_path / "h").iterdir()] == ["report.html"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed: pip install 'g4seg-trt\[bench\]'"):
        report(file, "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists(), "nothing is written if something cannot be made"
    assert report(file, "--format", "markdown", "--output", tmp_path / "m") == 0
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["report.md"]
    assert report(file) == 0
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(G4SegError, match="cannot make the folder"):
        report(file, "--format", "markdown", "--output", tmp_path / "file")


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    record = read_latency_record(save(tmp_path / "one.json", latency_record()))
    text = page([record])
    shown = Page(text)
    assert len(shown.links) == len(PLOTS)
    for link in shown.links:
        kind, _, data = link.partition(",")
        assert kind == "data:image/svg+xml;base64"
        drawing = ElementTree.fromstring(b64decode(data, validate=True))
        assert drawing.tag.endswith("svg")
        for element in drawing.iter():
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith(("#", "data:")), value
                assert "url(" not in value or "url(#" in value
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(shown.tags)
    assert "default-src 'none'" in text
    assert text == page([record]), "the same record gives the same page"


NASTY = "<script>alert('1')</script> & $x_{ | `c` \\ \x1b[31m\n\"quoted\" </svg> <!-- --> é 漢"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_text_of_a_record_is_only_text(tmp_path: Path) -> None:
    record = latency_record()
    record["sides"][NASTY] = record["sides"].pop("onnxruntime") | {"backend": NASTY}
    record["ratios"] = {NASTY: record["ratios"]["onnxruntime"]}
    record["noise"], record["scaling"]["slopes"] = {NASTY: 0.1}, {}
    record["scaling"] |= {"classes": [{"side": NASTY, "classes": 1, "runs": [1.0]}], "batch": []}
    record["environment"] = {NASTY: NASTY, "list": [NASTY], "inner": {NASTY: NASTY}}
    record["engine"] = {"model": NASTY, "vae": {"encoder": NASTY}}
    record |= {"safe": False, "unsafe_reason": NASTY}
    read = read_latency_record(save(tmp_path / "a&b<i>.json", record))
    shown = Page(page([read, read]))
    assert "script" not in shown.tags and "i" not in shown.tags
    assert shown.text.count("<script>alert('1')</script>") >= 10
    assert "\x1b" not in shown.text
    text = markdown([read, read])
    assert "\x1b" not in text
    assert re.search(r"(?<!\\)<script", text) is None
    # A bar that is not escaped would be one column more than the table's head has.
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_a_record_with_nothing_but_one_side(tmp_path: Path) -> None:
    record = latency_record()
    side = record["sides"]["onnxruntime"]
    for key in ("peak_mb", "device_mb", "floors", "shares", "cold_start", "difference"):
        side[key] = None
    record |= {"sides": {"onnxruntime": side}, "ratios": {}, "noise": {}}
    record |= {"scaling": None, "work": None, "ceilings": None}
    read = read_latency_record(save(tmp_path / "one.json", record))
    assert [table.title.partition(":")[0] for table in all_tables(read)] == [
        "Median seconds",
        "onnxruntime",
        "Machine, versions and settings",
    ]
    assert len(Page(page([read])).links) == 1
    assert "times faster" not in markdown([read])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benchmark": "quality"}, "is of benchmark 'quality' and schema 3, expected 'latency' and 3"),
        ({"schema": 1}, "and schema 1, expected"),
        ({"sides": {}}, "sides is empty"),
        ({"sides": []}, r"sides is \[\], expected an object"),
        ({"safe": "yes"}, "safe is 'yes', expected true or false"),
        (
            {"noise": {"nobody": 1.0}},
            "side 'nobody' is named and not among the sides openvino bf16, onnxruntime, eager",
        ),
        ({"noise": {"eager": True}}, r"noise\.eager is True, expected a number"),
        ({"noise": {"eager": 10**400}}, r"noise\.eager is 10*\.\.\., expected a number below"),
        ({"ratios": {"eager": {"pairs": 3}}}, r"ratios\.eager\.pairs is 3, expected a list"),
        ({"scaling": {"classes": [{"side": "eager", "runs": [1]}]}}, r"scaling\.classes\[0\]\.classes is missing"),
        (
            {"scaling": {"classes": [{"side": "eager", "classes": 1, "runs": []}]}},
            r"scaling\.classes\[0\]\.runs is empty",
        ),
        ({"ceilings": {"gflops": {}}}, r"ceilings\.copy_gb_s is missing"),
        ({"work": {"unet": {"convolution": 1}}}, r"work\.unet\.product is missing"),
    ],
)
def test_foreign_and_damaged_records_are_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = save(tmp_path / "bad.json", latency_record() | change)
    with pytest.raises(G4SegError, match=said) as caught:
        report(file)
    assert str(caught.value).startswith(f"record {file} ") or str(caught.value).startswith(f"record {file}: ")
    assert "\n" not in str(caught.value)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where every value of a record stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


PLACES = places(latency_record())[1:]
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, -2.5, 1e17, 10**30, "", "text", [], [1], {}, {"a": 1}, {"a": {"b": []}}]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=ODD, gone=st.booleans())
def test_a_record_with_something_else_anywhere_is_reported_or_refused(
    tmp_path: Path, place: tuple[str | int, ...], value: Any, gone: bool
) -> None:
    record: Any = copy.deepcopy(latency_record())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    if gone:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    file = save(tmp_path / "odd.json", record)
    try:
        read = read_latency_record(file)
    except G4SegError as error:
        assert "\n" not in str(error)
        return
    for table in all_tables(read):
        assert {len(row) for row in table.rows} <= {len(table.head)}
    assert markdown([read, read])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-9, 1e12])
def test_odd_figures_can_be_drawn(tmp_path: Path, factor: float) -> None:
    text = json.dumps(latency_record())
    scaled = json.loads(text, parse_float=lambda number: float(number) * factor)
    assert len(Page(page([read_latency_record(save(tmp_path / "odd.json", scaled))])).links) == len(PLOTS)


def test_seconds_have_three_digits() -> None:
    shown = [seconds(value) for value in (0.0, 5e-5, 0.00123, 0.28, 5.0, 24.56, 99.97, 123.4)]
    assert shown == ["0", "0.000050", "0.00123", "0.280", "5.00", "24.6", "100", "123"]
