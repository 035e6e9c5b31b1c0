"""The README's tables, made from records: ``python -m g4seg_bench.readme [--check]``.

A table stands between two lines, and what is between them is replaced:

    <!-- table: latency from benchmarks/results/latency.json -->
    <!-- end table -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from g4seg_bench.latency_record import read_latency_record
from g4seg_bench.record import read_json
from g4seg_bench.tables import Table, cold_start_table, median_table, scaling_table
from g4seg_engine.errors import G4SegError
from g4seg_export.tiny.scenes import KINDS
from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.cli.common import DONE, USER_ERROR, new_parser, run, say

ROOT = Path(__file__).parents[2]
END = "<!-- end table -->"
_START = re.compile(r"<!-- table: (?P<name>.+?) from (?P<file>.+?) -->")


def latency(path: Path) -> Table:
    """Median seconds: stages as rows, sides as columns, then masks a second, ratio and peak memory."""
    return median_table(read_latency_record(path))


def scaling(path: Path) -> Table:
    """Seconds as classes, batch size, threads and square grow."""
    record = read_latency_record(path)
    if not record.scaling:
        raise G4SegError(f"record {path} has no scaling: measure again with more than one value")
    return scaling_table(record)


def cold_start(path: Path) -> Table:
    """Seconds until ready and until the first mask."""
    table = cold_start_table(read_latency_record(path))
    if not table.rows:
        raise G4SegError(f"record {path} has no cold starts: measure again with them")
    return table


def accuracy(path: Path) -> Table:
    """Agreement with float32 PyTorch and gain."""

    def row(name: str, side: Mapping[str, Any]) -> tuple[str, ...]:
        difference = f"{side['gain_difference']:+.2f} ± {side['gain_difference_error']:.2f}"
        shares = (f"{side[key]:.{digits}f}" for key, digits in (("labels_percent", 3), ("matches_percent", 1)))
        return (name, *shares, f"{side['gain']:+.2f}", difference, "yes" if side["accurate"] else "no")

    with _fields(path, "accuracy") as data:
        head = (
            "backend",
            "same label, % of pixels",
            "same match, %",
            "gain, points",
            "against eager's",
            "accurate enough",
        )
        eager = ("eager, fp32", "", "", f"{data['eager']['gain']:+.2f}", "", "")
        return Table("Accuracy", head, (eager, *(row(*side) for side in data["sides"].items())))


def vae_layouts(path: Path) -> Table:
    """Seconds of both halves of the autoencoder, every way to run them."""
    with _fields(path, "vae layouts") as data:
        networks: Mapping[str, Mapping[str, Any]] = data["networks"]
        columns = ("s", "times as fast", "relative difference")
        head = ("", *(f"{name.replace('_', ' ')}, {what}" for name in networks for what in columns))
        rows = [
            (name, *(text for one in networks.values() for text in _layout(one[name])))
            for name in next(iter(networks.values()))
        ]
        return Table("Autoencoder", head, tuple(rows))


def _layout(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{one['median']:.2f}", f"{one['ratio']:.2f}", f"{one['difference']:.0e}" if one["difference"] else "")


def int8(path: Path) -> Table:
    """Seconds and error of each network by form, and what its masks have in common with float32's."""
    with _fields(path, "int8") as data:
        masks: Mapping[str, Any] = (data["masks"] or {}).get("per network", {})
        rows = []
        for network, one in data["networks"].items():
            doubt = "" if one["unsafe"] is None else " (unsafe to compare)"
            for form, seconds in one["seconds"].items():
                error = one["relative_error"].get(form)
                mask = masks.get(network) if form == "int8" else None
                rows.append(
                    (
                        network.replace("_", " ") + doubt,
                        form,
                        f"{seconds:.3g}",
                        "" if error is None else f"{error:.1e}",
                        "" if mask is None else f"{mask['labels_percent']:.2f}",
                    )
                )
        return Table("int8", ("network", "form", "s", "relative error", "same label, % of pixels"), tuple(rows))


def baselines(path: Path) -> Table:
    """Mean IoU of every way, its gain on all scenes and by their kind, and the share of masks made worse."""
    with _fields(path, "baselines") as data:
        methods: Mapping[str, Mapping[str, Mapping[str, float]]] = data["methods"]
        kinds = [kind for kind in KINDS if kind in methods["coarse"]]
        rows = [("coarse", f"{methods['coarse']['all']['after']:.1f}", *[""] * (2 + len(kinds)))]
        for name in filter("coarse".__ne__, methods):
            one = methods[name]["all"]
            gains = (
                f"{one['gain']:+.2f} ± {one['gain_error']:.2f}",
                *(f"{methods[name][kind]['gain']:+.2f}" for kind in kinds),
            )
            rows.append((name, f"{one['after']:.1f}", *gains, f"{one['worse_percent']:.0f} %"))
        return Table("Baselines", ("", "mean IoU", "gain, points", *kinds, "made worse"), tuple(rows))


def folder(path: Path) -> Table:
    """Images a second of a folder run at each batch size, and how many times as many as one by one."""
    with _fields(path, "folder") as data:
        sizes: Mapping[str, Mapping[str, Any]] = data["sizes"]
        batch_sizes = list(next(iter(sizes.values()))["folder"])
        head = ("side, pixels", "one by one, images/s", *(f"folder, batch size {number}" for number in batch_sizes))
        rows = []
        for size, found in sizes.items():
            speeds = (
                f"{data['count'] / one['median']['total']:.1f} ({one['ratio']:.2f} times)"
                for one in (found["folder"][number] for number in batch_sizes)
            )
            rows.append((size, f"{data['count'] / found['single']['median']['total']:.1f}", *speeds))
        return Table("Folders", head, tuple(rows))


def ray_scaling(path: Path) -> Table:
    """Images a second of workers and processes, and how they compute."""
    with _fields(path, "ray-scaling") as data:
        rows = [
            (
                name,
                f"{side['median']['images_per_s']:.1f}",
                f"{side['median']['compute_ms']:.0f}",
                f"{100 * side['median']['computing_share']:.0f} %",
            )
            for name, side in data["sides"].items()
        ]
        return Table(
            "Ray", ("", "images/s", "compute of an image, ms", "share of the time that they compute"), tuple(rows)
        )


@contextmanager
def _fields(path: Path, benchmark: str) -> Iterator[Mapping[str, Any]]:
    """A benchmark's record; one line if the block does not find in it what it looks for."""
    data = read_json(path)
    if data.get("benchmark") != benchmark:
        raise G4SegError(f"record {path} is none of the benchmark {benchmark}: measure again")
    try:
        yield data
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise G4SegError(f"record {path}: a figure is missing or none ({error!r}); measure again") from error


TABLES: Mapping[str, Callable[[Path], Table]] = {
    "latency": latency,
    "scaling": scaling,
    "cold-start": cold_start,
    "accuracy": accuracy,
    "vae-layouts": vae_layouts,
    "int8": int8,
    "baselines": baselines,
    "folder": folder,
    "ray-scaling": ray_scaling,
}
"""Name in the marker -> what makes the table from the record's path."""


def rewritten(text: str, root: Path) -> tuple[str, list[str]]:
    """The text with every table made anew.

    Args:
        text: Markdown with markers.
        root: the folder that the markers' paths start from.

    Returns:
        The new text, and the markers of the tables that were different.

    Raises:
        G4SegError: if a marker is not closed, names no table or a file outside `root`, or a record cannot be used.
    """
    lines: list[str] = []
    changed: list[str] = []
    rest = text.split("\n")
    while rest:
        line = rest.pop(0)
        lines.append(line)
        marker = _START.fullmatch(line.strip())
        if marker is None:
            if line.strip() == END or line.strip().startswith("<!-- table:"):
                raise G4SegError(
                    f"{line.strip()!r} has no partner: write <!-- table: NAME from FILE --> and then {END}"
                )
            continue
        old = _until_end(rest, line.strip())
        new = _table(marker["name"], marker["file"], root).markdown().split("\n")
        if old != new:
            changed.append(f"{marker['name']} from {marker['file']}")
        lines += [*new, END]
    return "\n".join(lines), changed


def _until_end(rest: list[str], marker: str) -> list[str]:
    """Take the lines up to the end of a table off the rest, and the end itself."""
    for number, line in enumerate(rest):
        if line.strip() == END:
            old = rest[:number]
            del rest[: number + 1]
            return old
        if _START.fullmatch(line.strip()):
            break
    raise G4SegError(f"{marker!r} is not closed: write {END} behind it")


def _table(name: str, file: str, root: Path) -> Table:
    if name not in TABLES:
        raise G4SegError(f"there is no table {name!r}, expected {', '.join(TABLES)}")
    path = root / file
    if not path.resolve().is_relative_to(root.resolve()):
        raise G4SegError(f"table {name}: {file} lies outside the repository")
    return TABLES[name](path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.readme", "Make the README's tables from the records.")
    add = parser.add_argument
    add("--check", action="store_true", help="write nothing; exit 1 if a table differs from its record")
    add("--file", type=Path, default=ROOT / "README.md", help="default: the repository's README.md")
    return parser


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    path: Path = options.file
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise G4SegError(f"{path} cannot be read: {reason(error)}") from error
    new, changed = rewritten(text, path.parent)
    for name in changed:
        say(f"{path.name}: the table {name} {'differs from its record' if options.check else 'was made again'}")
    if options.check:
        if changed:
            say(f"{path.name}: run {parser.prog} to make its tables again")
        return USER_ERROR if changed else DONE
    if changed:
        with atomic_file(path) as file:
            file.write(new.encode("utf-8"))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
