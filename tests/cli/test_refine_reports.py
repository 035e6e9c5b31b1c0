"""The page and the JSON of a folder run: written whoever reads stdout, one for each shard, and saying what of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def facts_of(page: str) -> dict[str, str]:
    """The names and values of the tables at the end of a page."""
    return dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", page))


@pytest.mark.parametrize("target", ["file", "-"])
def test_page_and_json_are_there_when_nobody_reads_on(toy_engine: Path, folder: Folder, target: str) -> None:
    report = folder.root / "r.json" if target == "file" else target
    arguments = folder.arguments(toy_engine, "--class-name", "disc", "--report", "--json", report)
    program = "import sys; from g4seg_trt.cli.refine import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` that has seen enough
    try:
        done = subprocess.run(
            [sys.executable, "-u", "-c", program, *map(str, arguments)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (folder.output / "report.html").read_text("utf-8").count('alt="changed"') == 4
    if target == "file":
        assert read(folder.root / "r.json")["refined"] == 4


def test_every_shard_has_a_page_of_its_own_that_says_so(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    (folder.root / "list.txt").write_text("\n".join(reversed(folder.stems)), "utf-8")
    more = ("--classes", folder.root / "classes.json", "--list", folder.root / "list.txt", "--limit", 9, "--report")
    for shard in ("1/2", "2/2"):
        done = refine_here(
            *folder.arguments(toy_engine, *more, "--shard", shard, "--json", folder.root / f"{shard[0]}.json")
        )
        assert done.code == 0, done.err
    assert not (folder.output / "report.html").exists()
    for number in (1, 2):
        page = (folder.output / f"report-{number}-of-2.html").read_text("utf-8")
        stems = list(reversed(folder.stems))[number - 1 :: 2]
        assert {stem for stem in folder.stems if f'<b class="name">{stem}</b>' in page} == set(stems)
        facts = facts_of(page)
        assert (facts["shard"], facts["limit"]) == (f"{number}/2", "9")
        assert facts["list"] == str(folder.root / "list.txt")
        report = read(folder.root / f"{number}.json")
        assert (report["inputs"]["shard"], report["inputs"]["limit"]) == (f"{number}/2", 9)
        assert report["inputs"]["list"] == str(folder.root / "list.txt")
        assert report["inputs"]["classes"] == str(folder.root / "classes.json")
        assert report["inputs"]["images"] == str(folder.images)
        assert sorted(report["images"]) == sorted(stems)
    chosen = folder.root / "page.html"
    again = refine_here(*folder.arguments(toy_engine, *more, chosen, "--shard", "1/2", "--resume"))
    assert again.code == 0, again.err
    assert chosen.exists()


def test_the_data_set_and_the_background_rules_are_said(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    more = ("--class-name", "sheep", "--dataset", "voc12", "--report", "--resume", "--json", folder.root / "r.json")
    assert refine_here(*folder.arguments(toy_engine, *more)).code == 0
    report = read(folder.root / "r.json")
    assert (report["dataset"], report["class_table"]) == ("voc12", None)
    assert report["background"] == "the masks' own"
    assert {one["background"] for one in report["images"].values()} == {"constant:0.5"}
    facts = facts_of((folder.output / "report.html").read_text("utf-8"))
    assert facts["dataset"] == "voc12"
    assert "shard" not in facts
    assert refine_here(*folder.arguments(toy_engine, *more, "--background", "power:2")).code == 0
    report = read(folder.root / "r.json")
    assert report["background"] == "power:2"
    assert {one["background"] for one in report["images"].values()} == {"power:2"}


@pytest.mark.parametrize("option", ["--report", "--json"])
@pytest.mark.parametrize("name", ["label", "masks", "overlay", "records", "label/page"])
def test_a_report_in_the_place_of_a_folder_is_refused_before_the_run(
    refine_here: Command, toy_engine: Path, folder: Folder, option: str, name: str
) -> None:
    if "/" in name:
        (folder.output / name).parent.mkdir(parents=True)
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", option, folder.output / name))
    assert done.code == 1
    assert done.lines[-1].endswith("is for what belongs to the images; choose another name")
    assert not (folder.output / "probability").exists()


@pytest.mark.parametrize("option", ["--report", "--json"])
def test_a_report_goes_into_a_folder_that_is_made_later_however_it_is_spelt(
    refine_here: Command, toy_engine: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(folder.root)
    inputs = ("--images", "images", "--masks", "masks", "--class-name", "disc", "--output", "new")
    done = refine_here("--engine", toy_engine, *inputs, option, folder.root / "new" / "report.html")
    assert done.code == 0, done.err
    assert (folder.root / "new" / "report.html").exists()


def test_one_precision_of_all_shares_in_a_run(refine_here: Command, toy_engine: Path, folder: Folder) -> None:
    done = refine_here(*folder.arguments(toy_engine, "--class-name", "disc", "--ground-truth", folder.truth))
    assert done.code == 0, done.err
    mean = re.search(r"mean IoU of 4 masks: (\S+) before, (\S+) after", done.out)
    assert mean is not None
    gain = next(line.split() for line in done.out.splitlines() if line.split()[:2] == ["all", "4"])
    assert gain[2:4] == list(mean.groups())
