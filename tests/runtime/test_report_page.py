"""The page of a report: nothing in it runs or leads outside, and a browser shows it as meant."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.errors import OutputError
from g4seg_trt.report import ReportRow, ReportRows, draw_pictures, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = (
    "\"><img src=x onerror=alert(1)></td>&amp;'`\ud800\udcff\x00\x1b\u202e\u732b"
    '<script>document.title="broken"</script>'
)
NASTY_SHOWN = re.sub("[\ud800\udcff\x00\x1b\u202e]", "\ufffd", NASTY)


class Page(html.parser.HTMLParser):
    """What a page holds: its tags with their attributes, and the names of its images in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.names: list[str] = []
        self._inside = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "name":
            self._inside = True
            self.names.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "b"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.names[-1] += data


@pytest.fixture(scope="module")
def example() -> Callable[[Path], Path]:
    """example(folder) -> a page of 30 images, some of them without a ground truth or pictures."""

    def make(folder: Path) -> Path:
        rng = np.random.default_rng(2)
        rows = ReportRows(most_rows=30, extremes=5, spread=5)
        for number in range(30):
            height, width = int(rng.integers(40, 90)), int(rng.integers(40, 300))
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            before, after, truth = (rng.integers(0, 3, (height, width), np.uint8) for _ in range(3))
            gain = None if number == 7 else (number * 7 % 30 - 12) / 100
            stem = NASTY if number == 3 else f"image{number}"
            before_after = (None, None) if gain is None else (0.5, 0.5 + gain)
            one = ReportRow(stem, ("cat", NASTY), number / 30, *before_after)
            one = replace(one, seconds=0.5, warnings=(NASTY,) if number % 9 == 0 else ())
            labels = (before, after, None if gain is None else truth)
            rows.add(one, lambda image=image, labels=labels: draw_pictures(image, *labels))  # type: ignore[misc]
        path = folder / "report.html"
        write_report(
            path,
            f"A run of {NASTY}",
            summary={"images": 30, "mIoU": 0.61234, NASTY: NASTY, "strata": [{"initial IoU": "0-40", NASTY: 3}]},
            facts={"command": NASTY, "settings": {"beta": 0.8, NASTY: NASTY, "long": "x" * 300}, "versions": {}},
            rows=rows,
            failures={NASTY: NASTY, "lost": "lost.png: cannot be read"},
            timings={"unet": 12.0, NASTY: 4.0},
        )
        return path

    return make


def test_the_page_is_one_file_and_everything_in_it_is_escaped(tmp_path: Path, example: Callable[[Path], Path]) -> None:
    content = example(tmp_path).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = Page(content)
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on")}
        assert attributes.get("href") is None
        assert tag in ("img", "meta") or "src" not in attributes
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
            assert attributes["alt"] in ("before", "after", "changed", "ground truth")
    assert page.names.count(NASTY_SHOWN) >= 2
    assert "http" not in re.sub(r"base64,[^\"]*", "", content).replace("http-equiv", "")
    assert content.count("<h1>") == 1


def test_pages_without_images_or_without_a_ground_truth(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "Nothing", summary={}, facts={}, rows=ReportRows(), failures={})
    content = path.read_text(encoding="utf-8")
    assert "No image was refined." in content
    assert "<table" not in content
    rows = ReportRows(most_rows=3, extremes=1, spread=1)
    for number in range(5):
        rows.add(ReportRow(f"image{number}", (), number / 10), lambda: None)
    failures = {f"lost{number}": "cannot be read" for number in range(1500)}
    write_report(path, "Some", summary={}, facts={}, rows=rows, failures=failures)
    content = path.read_text(encoding="utf-8")
    assert "IoU" not in content
    assert "of 5 images: those that changed most, and others drawn evenly" in content
    assert Page(content).names[0] == "image4"
    assert content.count("cannot be read") == 1000
    assert "1,500 failed" in content
    assert "and 500 more" in content


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    path = tmp_path / "report.html"
    path.write_text("the last one")
    with pytest.raises(RuntimeError, match="no text"):
        write_report(path, "A run", summary={}, facts={"a": Broken()}, rows=ReportRows(), failures={})
    assert path.read_text() == "the last one"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match="does not exist"):
        write_report(tmp_path / "no" / "report.html", "A run", summary={}, facts={}, rows=ReportRows(), failures={})


FINDINGS = """
addEventListener("load", () => {
  const images = Array.from(document.images);
  const button = document.querySelector('th[data-key="after"] button');
  const order = () =>
    Array.from(document.querySelectorAll("#images tbody tr:not([hidden]) .name"), (one) => one.textContent);
  const result = {
    title: document.title,
    images: images.length,
    broken: images.filter((image) => !image.complete || !image.naturalWidth).length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    errors: window.failed,
  };
  button.click();
  result.up = order();
  result.fragment = location.hash;
  button.click();
  result.down = order();
  result.sorted = button.parentElement.ariaSort;
  const tools = document.getElementById("tools");
  tools.find.value = "IMAGE1";
  tools.find.dispatchEvent(new Event("input", { bubbles: true }));
  result.found = order();
  result.output = tools.querySelector("output").textContent;
  parent.postMessage(JSON.stringify(result), "*");
});
"""

OUTER = """
<!DOCTYPE html><style>:root { color-scheme: light dark } iframe { border: 0 }</style><body>
<script>addEventListener("message", (message) => { document.body.dataset.found = message.data; });</script>
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """browser(page, fragment, *flags) -> the page's DOM as HTML; fails on anything that the console says."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path")
    profile = tmp_path_factory.mktemp("profile")

    def show(page: Path, fragment: str = "", *flags: str) -> str:
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom",
            *flags, f"{page.as_uri()}#{fragment}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return show


def table_names(dom: str) -> list[str]:
    """Names of the rows of the table that are visible, in order."""
    body = dom[dom.index('<table id="images">') :]
    rows = re.findall(r"<tr data-.*?</tr>", body[: body.index("</table>")], flags=re.DOTALL)
    return [Page(one).names[0] for one in rows if 'hidden=""' not in one[: one.index(">")]]


def by_gain() -> list[str]:
    gains = {NASTY_SHOWN if number == 3 else f"image{number}": number * 7 % 30 for number in range(30) if number != 7}
    return sorted(gains, key=gains.__getitem__)


def test_the_address_chooses_order_and_rows(
    tmp_path: Path, example: Callable[[Path], Path], browser: Callable[..., str]
) -> None:
    page = example(tmp_path)
    dom = browser(page, "sort=-gain")
    assert table_names(dom) == [*reversed(by_gain()), "image7"], "what has no gain comes last"
    assert "30 of 30 rows" in dom
    dom = browser(page, "sort=name&show=worst&find=IMAGE1")
    assert table_names(dom) == sorted(
        (name for name in by_gain()[:5] if "image1" in name), key=lambda name: int(name.removeprefix("image"))
    )
    assert "<title>A run of " in dom, "no name ran as a script"


@pytest.mark.parametrize(("width", "scheme", "ground"), [(1200, 1, "rgb(255, 255, 255)"), (340, 0, "rgb(20, 23, 27)")])
def test_the_page_in_a_browser(
    tmp_path: Path,
    example: Callable[[Path], Path],
    browser: Callable[..., str],
    width: int,
    scheme: int,
    ground: str,
) -> None:
    page = example(tmp_path)
    content = page.read_text(encoding="utf-8")
    # The page allows its own script only; to look at it from inside, that is lifted here.
    content = re.sub(
        r"<meta http-equiv[^>]*>", "<script>failed = []; onerror = (e) => failed.push(e)</script>", content
    )
    page.write_text(content.replace("</body>", f"<script>{FINDINGS}</script></body>"), encoding="utf-8")
    # In a frame, because a window has a least width.
    outer = tmp_path / "outer.html"
    outer.write_text(f"{OUTER}<iframe src='report.html' width={width} height=900></iframe>", encoding="utf-8")
    dom = browser(outer, "", "--window-size=1300,900", f"--blink-settings=preferredColorScheme={scheme}")
    body = next(attributes for tag, attributes in Page(dom).tags if tag == "body")
    found: dict[str, Any] = json.loads(body["data-found"] or "")
    assert found["errors"] == []
    assert found["title"].startswith("A run of")
    assert found["images"] >= 40
    assert found["broken"] == 0
    assert found["width"] == width
    assert found["wide"] <= 0, "nothing sticks out to the side"
    assert found["ground"] == ground
    assert found["up"] == [*by_gain(), "image7"]
    assert found["fragment"] == "#sort=after"
    assert found["down"] == [*reversed(by_gain()), "image7"]
    assert found["sorted"] == "descending"
    assert found["found"] == [name for name in found["down"] if "image1" in name]
    assert found["output"] == f"{len(found['found'])} of 30 rows"


def test_a_screenshot_shows_the_pictures(
    tmp_path: Path, example: Callable[[Path], Path], browser: Callable[..., str]
) -> None:
    shot = tmp_path / "shot.png"
    browser(example(tmp_path), "", "--window-size=800,2400", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(np.int64)
    colourful = (pixels.max(axis=-1) - pixels.min(axis=-1)) > 60
    assert colourful.mean() > 0.05


def test_pictures_inside_the_page_are_those_that_were_drawn(tmp_path: Path) -> None:
    rows = ReportRows()
    image = np.zeros((20, 30, 3), np.uint8)
    labels = np.ones((20, 30), np.uint8)
    pictures = draw_pictures(image, labels, labels)
    rows.add(ReportRow("one", ("cat",), 0.0), lambda: pictures)
    write_report(tmp_path / "report.html", "One", summary={}, facts={}, rows=rows, failures={})
    sources = [
        attributes["src"] for tag, attributes in Page((tmp_path / "report.html").read_text()).tags if tag == "img"
    ]
    contents = [base64.b64decode(str(source).partition(",")[2]) for source in sources]
    assert contents == [pictures.before, pictures.after, pictures.changed]
