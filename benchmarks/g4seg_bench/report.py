"""``g4seg-bench report RECORD...``: records of the latency benchmark as Markdown and as one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from g4seg_bench.latency_record import LatencyRecord, read_latency_record
from g4seg_bench.report_html import page
from g4seg_bench.tables import Table, all_tables, escaped, headline, overview_table
from g4seg_engine.errors import G4SegError
from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.cli.common import DONE

MARKDOWN, HTML = "markdown", "html"
FORMATS = (MARKDOWN, HTML)
FILES = {MARKDOWN: "report.md", HTML: "report.html"}
UNSAFE = "Unsafe to compare"


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run_report` reads."""
    add = parser.add_argument
    add("records", nargs="+", type=Path, metavar="RECORD", help="JSON files that g4seg-bench wrote")
    add("--output", type=Path, metavar="DIR", help=f"write {' and '.join(FILES.values())} into this folder")
    add(
        "--format",
        choices=FORMATS,
        help="only this one; without --output, markdown is printed (default: with --output both)",
    )


def run_report(arguments: argparse.Namespace) -> int:
    """Make the report that the arguments ask for; returns the exit code.

    Raises:
        G4SegError: if a record cannot be used, or HTML is wanted and there is no folder for it.
        MissingExtraError: if HTML is wanted and matplotlib is not installed.
        OutputError: if a file cannot be written.
    """
    folder: Path | None = arguments.output
    if folder is None and arguments.format == HTML:
        raise G4SegError("--format html needs --output DIR, the folder that report.html is written into")
    records = [read_latency_record(path) for path in arguments.records]
    if folder is None:
        print(markdown(records), end="")
        return DONE
    makers = {MARKDOWN: markdown, HTML: page}
    chosen = FORMATS if arguments.format is None else (arguments.format,)
    # Everything is made before anything is written.
    made = {FILES[kind]: makers[kind](records) for kind in chosen}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise G4SegError(f"cannot make the folder {folder}: {reason(error)}") from error
    for name, text in made.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        print(folder / name)
    return DONE


def markdown(records: Sequence[LatencyRecord]) -> str:
    """The report as Markdown."""
    blocks = ["# Latency"]
    if len(records) > 1:
        blocks += _titled(overview_table(records))
    for record in records:
        blocks += [f"## {escaped(record.file)}", escaped(headline(record))]
        if record.unsafe is not None:
            blocks.append(f"**{UNSAFE}**: {escaped(record.unsafe)}")
        for table in all_tables(record):
            blocks += _titled(table)
    return "\n\n".join(blocks) + "\n"


def _titled(table: Table) -> list[str]:
    return [f"### {escaped(table.title)}", table.markdown()]
