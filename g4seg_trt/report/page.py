"""Writes the report: one HTML file with its style, its script and its pictures inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from g4seg_trt.atomic import atomic_file
from g4seg_trt.report.html import escaped, is_table, pairs, percent, points, shown, table
from g4seg_trt.report.images import image_sections
from g4seg_trt.report.rows import Histogram, ReportRows

MOST_FAILURES = 1000
"""Failures listed; the rest are counted."""

_ASSETS = Path(__file__).parents[1] / "assets" / "report"


def write_report(
    path: Path,
    title: str,
    *,
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
    rows: ReportRows,
    failures: Mapping[str, str],
    timings: Mapping[str, float] | None = None,
) -> None:
    """Write the page, atomically. It needs no network, and no script to be read.

    Args:
        path: where to; ends in .html by custom.
        title: what it is about, one line.
        summary: what to see first, such as counts and mIoU; a list of mappings becomes a table.
        facts: settings, engine and versions; each mapping becomes a part of its own.
        rows: the images.
        failures: image -> what went wrong, one line each.
        timings: stage -> seconds over the run.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_file(path) as file:
        for part in _page(title, summary, facts, rows, failures, timings or {}):
            file.write(part.encode("utf-8"))


def _page(
    title: str,
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
    rows: ReportRows,
    failures: Mapping[str, str],
    timings: Mapping[str, float],
) -> Iterator[str]:
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    yield _head(title, style, script)
    yield f"<body><main><h1>{escaped(title)}</h1>"
    yield _summary(summary)
    yield _histogram(rows)
    yield from image_sections(rows)
    yield _failures(failures)
    yield _timings(timings)
    yield _facts(facts)
    yield f"</main><script>{script}</script></body></html>\n"


def _head(title: str, style: str, script: str) -> str:
    # Nothing but this script may run and nothing is fetched, whatever a class or a file is called.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style></head>\n"
    )


def _summary(summary: Mapping[str, Any]) -> str:
    tiles = "".join(
        f'<div class="tile"><dt>{escaped(str(name))}</dt><dd>{shown(value)}</dd></div>'
        for name, value in summary.items()
        if not is_table(value)
    )
    tables = "".join(table(value, str(name)) for name, value in summary.items() if is_table(value))
    return f'<dl class="tiles">{tiles}</dl>{tables}'


def _histogram(rows: ReportRows) -> str:
    if rows.measured:
        what, counts = "Gain in IoU by image, percentage points", _bars(rows.gains, points)
        note = f"{rows.better:,} better, {rows.same:,} the same, {rows.worse:,} worse"
    else:
        what, counts = "Pixels with another label by image, percent", _bars(rows.changes, percent)
        note = "without a ground truth nothing says whether a change is a gain"
    return f"<section><h2>{what}</h2>{counts}<p>{note}</p></section>"


def _bars(histogram: Histogram, text: Callable[[float], str]) -> str:
    bars = histogram.bars()
    if not bars:
        return "<p>No image was refined.</p>"
    most = max(count for *_, count in bars)
    shapes = "".join(
        f'<rect class="{"worse" if low < 0 else "better"}" x="{place + 0.05:.2f}" y="{100 - 100 * count / most:.2f}" '
        f'width="0.9" height="{100 * count / most:.2f}">'
        f"<title>{text(low)} to {text(high)}: {count:,}</title></rect>"
        for place, (low, high, count) in enumerate(bars)
    )
    low, high = bars[0][0], bars[-1][1]
    zero = f'<span style="left:{-100 * low / (high - low):.2f}%">0</span>' if low < 0 < high else ""
    return (
        f'<div class="histogram"><p class="most">highest bar: {most:,}</p>'
        f'<svg viewBox="0 0 {len(bars)} 100" preserveAspectRatio="none" role="img" aria-label="histogram">'
        f"{shapes}</svg>"
        f'<div class="axis"><span>{text(low)}</span>{zero}<span>{text(high)}</span></div></div>'
    )


def _failures(failures: Mapping[str, str]) -> str:
    if not failures:
        return ""
    items = "".join(
        f'<li><b class="name">{escaped(stem)}</b> {escaped(message)}</li>'
        for stem, message in list(failures.items())[:MOST_FAILURES]
    )
    left = len(failures) - MOST_FAILURES
    more = f"<p>and {left:,} more</p>" if left > 0 else ""
    return f'<section><h2>{len(failures):,} failed</h2><ul class="failures">{items}</ul>{more}</section>'


def _timings(timings: Mapping[str, float]) -> str:
    total = sum(timings.values())
    if total <= 0:
        return ""
    shares = {stage: f"{100 * seconds / total:.1f}" for stage, seconds in timings.items()}
    rows = "".join(
        f'<tr><th>{escaped(stage)}</th><td class="figure">{seconds:,.2f} s</td>'
        f'<td class="figure">{shares[stage]} %</td><td class="bar"><i style="width:{shares[stage]}%"></i></td></tr>'
        for stage, seconds in timings.items()
    )
    return (
        '<section><h2>Time by stage</h2><div class="wide">'
        f'<table class="facts timings"><tbody>{rows}</tbody></table></div></section>'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    parts: dict[str, Mapping[str, Any]] = {"run": plain} if plain else {}
    parts |= {name: value for name, value in facts.items() if isinstance(value, Mapping)}
    return "".join(
        f"<section><details open><summary><h2>{escaped(name.capitalize())}</h2></summary>"
        f'<div class="wide">{pairs(values)}</div></details></section>'
        for name, values in parts.items()
    )
