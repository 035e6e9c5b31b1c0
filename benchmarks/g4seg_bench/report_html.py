"""The latency report as one HTML page that needs no other file and no network: plots are inside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape as escape_html

from g4seg_bench.latency_record import LatencyRecord
from g4seg_bench.plots import Plot, all_plots
from g4seg_bench.tables import Table, all_tables, headline, overview_table
from g4seg_trt.cli.common import one_line

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; border-top: 2px solid #ddd; padding-top: 1rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td { overflow-wrap: break-word; }
.facts td { text-align: left; }
tr:hover td { background: #f4f7fa; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-weight: 600; }
.unsafe { border: 2px solid #b00020; background: #fdecee; padding: .6rem 1rem; border-radius: 4px; }
"""
# Nothing may be loaded from anywhere, whatever a record holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(records: Sequence[LatencyRecord]) -> str:
    """The page.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>g4seg-trt: latency</title><style>{_STYLE}</style></head><body>",
            "<h1>g4seg-trt: latency</h1>",
            *(_overview(records) if len(records) > 1 else ()),
            *(line for number, record in enumerate(records) for line in _section(number, record)),
            "</body></html>",
            "",
        ]
    )


def _overview(records: Sequence[LatencyRecord]) -> Iterator[str]:
    yield _table(overview_table(records))
    links = (f'<li><a href="#record{i}">{escaped(record.file)}</a></li>' for i, record in enumerate(records))
    yield f"<ul>{''.join(links)}</ul>"


def _section(number: int, record: LatencyRecord) -> Iterator[str]:
    yield f'<section id="record{number}"><h2>{escaped(record.file)}</h2>'
    yield f"<p>{escaped(headline(record))}</p>"
    if record.unsafe is not None:
        yield f'<p class="unsafe"><strong>Unsafe to compare</strong>: {escaped(record.unsafe)}</p>'
    # The first table is the answer; the plots explain it, the other tables are for looking things up.
    first, *others = all_tables(record)
    yield _table(first)
    yield from map(_figure, all_plots(record))
    for table in others:
        yield _table(table, facts=table is others[-1])
    yield "</section>"


def _figure(plot: Plot) -> str:
    # As an image, so that the names inside one SVG do not meet those of another, and nothing in it can run.
    data = b64encode(plot.svg).decode("ascii")
    title = escaped(plot.title)
    return (
        f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _table(table: Table, *, facts: bool = False) -> str:
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    kind = ' class="facts"' if facts else ""
    return (
        f'<h3>{escaped(table.title)}</h3><div class="table"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def escaped(text: str) -> str:
    """Text that HTML shows as it is, on one line."""
    return escape_html(one_line(text))
