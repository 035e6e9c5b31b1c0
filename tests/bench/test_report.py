"""Reports and README tables from a record with everything in it, and from records that are not what they should be."""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from g4seg_bench import readme
from g4seg_bench.latency_record import read_latency_record
from g4seg_bench.plots import PLOTS
from g4seg_bench.report import add_report_arguments, markdown, run_report
from g4seg_bench.report_html import page
from g4seg_bench.tables import all_tables, seconds
from g4seg_engine.errors import G4SegError, MissingExtraError

STAGES = {
    "text": 0.28,
    "vae_encoder": 5.67,
    "unet": 4.42,
    "vae_decoder": 11.87,
    "image_encoder": 2.27,
    "correspondence": 0.012,
    "rest": 0.014,
}


def _side(times: float, role: str, backend: str, precision: str) -> dict[str, Any]:
    stages = {**STAGES, "total": sum(STAGES.values())}
    shares = (("min", 0.9), ("p20", 0.95), ("median", 1.0), ("p80", 1.1))
    return {
        "backend": backend,
        "compute_precision": precision,
        "device": "cpu",
        "role": role,
        "runs": [{stage: times * seconds for stage, seconds in stages.items()}],
        "stages": {
            stage: {name: times * seconds * share for name, share in shares} for stage, seconds in stages.items()
        },
        "masks_per_second": 1 / (times * stages["total"]),
        "peak_mb": 7612.3 * times,
        "device_mb": None,
        "floors": {"unet": 3.21, "total": 18.0, "rest": None},
        "shares": {"unet": 0.726, "total": 0.75, "rest": None},
        "cold_start": {
            kind: {"ready": [3.0 * (i + 1)], "mask": [40.0 + i, 42.0 + i]} for i, kind in enumerate(("first", "second"))
        },
        "difference": None,
    }


def latency_record() -> dict[str, Any]:
    """Two engines and a baseline."""
    sides = {
        "openvino bf16": _side(0.5, "engine", "openvino", "bf16"),
        "onnxruntime": _side(1.0, "engine", "onnxruntime", "fp32"),
        "eager": _side(1.5, "baseline", "torch", "fp32"),
    }
    sides["eager"]["cold_start"] = sides["eager"]["floors"] = sides["eager"]["shares"] = None
    return {
        "benchmark": "latency",
        "schema": 3,
        "environment": {"date": "2026-01-02T03:04:05Z", "processor": "Some CPU", "memory_mb": 8000, "gpu": None},
        "engine": {
            "model": "random:sd21-base",
            "manifest_sha256": "ab" * 32,
            "precision": "fp32",
            "square": 512,
            "form": "folded",
            "vae": None,
        },
        "settings": {"classes": 1, "batch_size": 1, "threads": 2, "warmup": 1, "runs": 3, "config": {"beta": 0.8}},
        "ceilings": {"gflops": {"fp32": 181.2, "bf16": 393.1}, "copy_gb_s": 24.5, "notes": ["fp16 left out: slow"]},
        "work": {
            "unet": {
                "convolution": 3.8e11,
                "product": 2.6e11,
                "attention": 1.27e11,
                "weight_bytes": 3_566_227_736,
                "activation_bytes": 1_782_678_016,
            }
        },
        "sides": sides,
        "ratios": {
            "openvino bf16": {"baseline": "eager", "pairs": [3.0, 2.9, 3.2], "median": 3.0, "min": 2.9, "max": 3.2},
            "onnxruntime": {"baseline": "eager", "pairs": [1.5, 1.4, 1.51], "median": 1.5, "min": 1.4, "max": 1.51},
        },
        "safe": True,
        "unsafe_reason": None,
        "noise": {"openvino bf16": 0.031, "onnxruntime": 0.02, "eager": 0.04},
        "scaling": {
            "classes": [
                {"side": "onnxruntime", "classes": 4, "runs": [83.0, 81.0, 84.5]},
                {"side": "onnxruntime", "classes": 1, "runs": [24.5]},
                {"side": "openvino bf16", "classes": 1, "runs": [12.3]},
            ],
            "batch": [{"side": "onnxruntime", "batch_size": 2, "runs": [45.0]}],
            "threads": [],
            "square": [{"side": "eager", "square": 768, "runs": [99.0]}],
            "slopes": {"classes": {"onnxruntime": 19.5, "openvino bf16": None}},
        },
    }


def report(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_report_arguments(parser)
    return run_report(parser.parse_args(list(map(str, arguments))))


def save(path: Path, record: Any) -> Path:
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


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


README = """# Title

<!-- table: latency from results/latency.json -->
| old |
<!-- end table -->
text
<!-- table: scaling from results/latency.json -->
<!-- end table -->
<!-- table: cold-start from results/latency.json -->
<!-- end table -->

  <!-- table: accuracy from results/accuracy.json -->
<!-- end table -->
<!-- table: vae-layouts from results/layouts.json -->
<!-- end table -->
<!-- table: int8 from results/int8.json -->
<!-- end table -->
last line"""

ACCURACY: dict[str, Any] = {
    "benchmark": "accuracy",
    "eager": {"gain": 1.5, "gain_error": 0.3},
    "sides": {
        "openvino:bf16": {
            "labels_percent": 99.9512,
            "matches_percent": 94.26,
            "gain": 1.46,
            "gain_difference": -0.04,
            "gain_difference_error": 0.06,
            "accurate": True,
        }
    },
}
LAYOUTS: dict[str, Any] = {
    "benchmark": "vae layouts",
    "networks": {
        name: {
            "eager": {"median": 2.0, "ratio": 1.0, "difference": 0.0},
            "openvino": {"median": 0.5, "ratio": 4.0, "difference": 1.2e-2},
        }
        for name in ("vae_encoder", "vae_decoder")
    },
}
INT8: dict[str, Any] = {
    "benchmark": "int8",
    "networks": {
        "unet": {"seconds": {"fp32": 4.0, "int8": 1.25}, "relative_error": {"int8": 0.0228}, "unsafe": "it spreads"}
    },
    "masks": {"per network": {"unet": {"labels_percent": 99.912}}},
}


@pytest.fixture
def readme_file(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    save(tmp_path / "results" / "latency.json", latency_record())
    for name, record in (("accuracy", ACCURACY), ("layouts", LAYOUTS), ("int8", INT8)):
        save(tmp_path / "results" / f"{name}.json", record)
    file = tmp_path / "README.md"
    file.write_text(README, encoding="utf-8")
    return file


def test_the_readme_s_tables_are_made_from_records(readme_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main(["--file", str(readme_file), "--check"]) == 1
    said = capsys.readouterr().err
    for name in readme.TABLES:
        assert f"README.md: the table {name} from results/" in said
    assert readme_file.read_text(encoding="utf-8") == README, "a check writes nothing"

    assert readme.main(["--file", str(readme_file)]) == 0
    text = readme_file.read_text(encoding="utf-8")
    rows = cells(text)
    assert ["old"] not in rows
    assert ["VAE decode", "5.93", "11.9", "17.8"] in rows
    assert ["batch size, s for each mask: 2", "", "45.0", ""] in rows
    assert ["openvino bf16", "first start", "3.00", "41.0 (40.0 to 42.0)"] in rows
    assert ["openvino:bf16", "99.951", "94.3", "+1.46", "-0.04 ± 0.06", "yes"] in rows
    assert ["openvino", "0.50", "4.00", "1e-02", "0.50", "4.00", "1e-02"] in rows
    assert ["unet (unsafe to compare)", "int8", "1.25", "2.3e-02", "99.91"] in rows
    kept = [line for line in text.splitlines() if not line.startswith("|")]
    assert kept == [line for line in README.splitlines() if not line.startswith("|")]
    assert not text.endswith("\n"), "nothing outside the tables changes"
    capsys.readouterr()
    assert readme.main(["--file", str(readme_file), "--check"]) == 0
    assert capsys.readouterr().err == ""


def test_a_check_names_the_table_that_differs(readme_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main(["--file", str(readme_file)]) == 0
    text = readme_file.read_text(encoding="utf-8")
    readme_file.write_text(text.replace("99.951", "99.999"), encoding="utf-8")
    capsys.readouterr()
    assert readme.main(["--file", str(readme_file), "--check"]) == 1
    said = capsys.readouterr().err
    assert "the table accuracy from results/accuracy.json differs from its record" in said
    assert "latency" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: speed from a.json -->\n<!-- end table -->", "no table 'speed', expected latency, scaling"),
        ("<!-- table: latency from none.json -->\n<!-- end table -->", "none.json cannot be read"),
        ("<!-- table: latency from ../a.json -->\n<!-- end table -->", "lies outside the repository"),
        ("<!-- table: accuracy from results/latency.json -->\n<!-- end table -->", "none of the benchmark accuracy"),
        ("<!-- table: latency from a.json -->\n| a |", "is not closed"),
        ("<!-- table: latency from a.json -->\n" * 2 + "<!-- end table -->", "is not closed"),
        ("text\n<!-- end table -->", "has no partner"),
        ("<!-- table: latency -->\n<!-- end table -->", "has no partner"),
    ],
)
def test_bad_markers_change_nothing(
    readme_file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme_file.write_text(text, encoding="utf-8")
    assert readme.main(["--file", str(readme_file)]) == 1
    assert said in capsys.readouterr().err
    assert readme_file.read_text(encoding="utf-8") == text


def test_records_without_the_figures_of_a_table(readme_file: Path) -> None:
    bare = latency_record() | {"scaling": None}
    for side in bare["sides"].values():
        side["cold_start"] = None
    file = save(readme_file.parent / "results" / "latency.json", bare)
    with pytest.raises(G4SegError, match="has no scaling"):
        readme.scaling(file)
    with pytest.raises(G4SegError, match="has no cold starts"):
        readme.cold_start(file)
    broken: dict[str, Any]
    for broken in ({"sides": 3}, {"sides": {"a": {}}}, {"sides": {"a": None}}):
        save(file, ACCURACY | broken)
        with pytest.raises(G4SegError, match="a figure is missing or none"):
            readme.accuracy(file)


def test_the_project_s_readme_agrees_with_its_records(tmp_path: Path) -> None:
    """On a copy; it may have no table yet."""
    root = Path(readme.__file__).parents[2]
    shutil.copytree(root / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    shutil.copy(root / "README.md", tmp_path)
    assert readme.main(["--file", str(tmp_path / "README.md"), "--check"]) == 0
