"""g4seg-evaluate: predictions of a data set against its ground truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from g4seg_engine.version import VERSION
from g4seg_trt.atomic import check_writable
from g4seg_trt.class_table import DATASETS, ClassTable
from g4seg_trt.cli.common import DONE, SOME_FAILED, STDOUT, new_parser, run, say, write_json
from g4seg_trt.cli.options import class_table
from g4seg_trt.errors import InputError

if TYPE_CHECKING:
    from g4seg_trt.evaluate.pairs import Pairing, SetFiles
    from g4seg_trt.evaluate.predictions import Predictions

DESCRIPTION = (
    "Evaluate label pictures or probabilities against a ground truth: mean IoU over the set by one confusion matrix, "
    "accuracy at boundaries, and with --coarse what a refinement gained. Files are paired by their stem."
)

CUSTOM = "custom"


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = new_parser("g4seg-evaluate", DESCRIPTION)
    add = parser.add_argument
    add(
        "--predictions",
        metavar="DIR|FILE",
        required=True,
        help="STEM.png, label pictures with the data set's ids (255, in 16 bits 65535: no label), or masks in any "
        "format that g4seg-refine takes; a file that holds those of all images",
    )
    add(
        "--ground-truth",
        metavar="DIR",
        required=True,
        help="STEM.png, label pictures; pixels of the value 255 (in 16 bits 65535) do not count, nor those of 0 in "
        "context59 and ade20k",
    )
    add("--coarse", metavar="DIR|FILE", help="the masks before a refinement, as --predictions: print what was gained")
    add("--dataset", choices=(*DATASETS, CUSTOM), help="whose classes; custom needs --class-table")
    add("--class-table", metavar="FILE", help="classes of one's own: a JSON list of id and name, or a name a line")
    add("--format", metavar="NAME", help="the format of the masks, where their content does not tell")
    add(
        "--background",
        metavar="RULE",
        help="how probabilities become labels: constant:T, power:P, or channel (default: the source's own rule, "
        "else constant:0.5, and none for data sets without background)",
    )
    add(
        "--sweep",
        metavar="KIND:FROM:TO:STEP",
        help="try many background rules, such as constant:0.05:0.60:0.05, and report the best apart; label pictures "
        "among the predictions are the same under all of them",
    )
    add(
        "--mean-over",
        # As in evaluate.confusion, which would load numpy.
        choices=("present", "ground-truth", "all"),
        default="present",
        help="classes of the mean IoU: with a true or predicted pixel (as mmsegmentation and IRN), with a true pixel "
        "(as CLIP-ES), or all, absent ones as 0 (default: %(default)s)",
    )
    add(
        "--list",
        metavar="FILE",
        help="evaluate the images that this file names, a stem or a path a line, such as a split",
    )
    add(
        "--ground-truth-suffix",
        metavar="TEXT",
        default="",
        help="what the stems of the ground truth end in, such as _instanceTrainIds",
    )
    add(
        "--allow-missing",
        action="store_true",
        help="leave out images without prediction, ground truth or coarse masks; else they are an error",
    )
    add("--workers", type=int, metavar="N", help="threads (default: one for each CPU)")
    add("--json", metavar="FILE|-", help="the same as a report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run(build_parser(), execute, argv)


def execute(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Evaluate the set; SOME_FAILED if an image could not be read or counted."""
    if arguments.class_table is not None and arguments.dataset not in (None, CUSTOM):
        parser.error(f"--class-table goes with --dataset {CUSTOM}: {arguments.dataset} has a table of its own")
    if arguments.workers is not None and arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: expected 1 or more")
    has_table = arguments.class_table is not None or arguments.dataset not in (None, CUSTOM)
    table = class_table(arguments) if has_table else None
    if table is None:
        parser.error("give --dataset, or --class-table for classes of your own")
    if arguments.json not in (None, STDOUT):
        check_writable(Path(arguments.json))
    # Imported here: numpy and Pillow would delay --help and --version.
    from g4seg_trt.evaluate.text import report_lines

    start = perf_counter()
    files = _files(arguments, table)
    pairing = _pair(arguments, files)
    taken_for = [line for one in (files.predictions, files.coarse) if one is not None for line in one.taken_for]
    for line in dict.fromkeys(taken_for):
        say(f"taken for: {line}")
    summary, failures = _evaluate(arguments, files, pairing)
    warnings = [*_unruled(arguments, files, pairing), *_warnings(files, summary)]
    report = {
        "command": "g4seg-evaluate",
        "version": VERSION,
        "predictions": arguments.predictions,
        "ground_truth": arguments.ground_truth,
        "coarse_masks": arguments.coarse,
        "taken_for": taken_for,
        "background": arguments.background,
        **summary,
        "missing": pairing.missing,
        "failures": failures,
        "warnings": warnings,
        "seconds": round(perf_counter() - start, 3),
    }
    if arguments.json is not None:
        write_json(arguments.json, report)
    for line in (*pairing.missing_lines(), *warnings):
        say(f"warning: {line}")
    if arguments.json != STDOUT:
        print("\n".join(report_lines(summary)), flush=True)
    for stem, message in failures.items():
        say(f"failed: {stem}: {message}")
    return SOME_FAILED if failures else DONE


def _files(arguments: argparse.Namespace, table: ClassTable) -> SetFiles:
    from g4seg_trt.evaluate.pairs import SetFiles
    from g4seg_trt.evaluate.predictions import Predictions, files_by_stem, is_png
    from g4seg_trt.evaluate.sweep import parse_sweep
    from g4seg_trt.update import BackgroundRule

    rule = None if arguments.background is None else BackgroundRule.parse(arguments.background)
    sweep = () if arguments.sweep is None else parse_sweep(arguments.sweep)
    truth = files_by_stem(
        Path(arguments.ground_truth), is_png, "ground truth pictures", ending=arguments.ground_truth_suffix
    )
    predictions = Predictions.find(Path(arguments.predictions), table, truth, arguments.format)
    coarse = None
    if arguments.coarse is not None:
        coarse = Predictions.find(Path(arguments.coarse), table, truth, arguments.format)
    for option, sets in _ruled(arguments, predictions, coarse):
        if all(one.labels_only for one in sets):
            raise InputError(
                f"{option}: {sets[0].where} holds label pictures, which are decided already; "
                f"give the probabilities, or leave {option.split()[0]} away"
            )
    return SetFiles(table, predictions, truth, coarse, rule, sweep)


def _ruled(
    arguments: argparse.Namespace, predictions: Predictions, coarse: Predictions | None
) -> list[tuple[str, list[Predictions]]]:
    """The options that say how probabilities become labels, as they were given, each with what it is for."""
    everything = [one for one in (predictions, coarse) if one is not None]
    options = (("--sweep", arguments.sweep, [predictions]), ("--background", arguments.background, everything))
    return [(f"{name} {given}", sets) for name, given, sets in options if given is not None]


def _pair(arguments: argparse.Namespace, files: SetFiles) -> Pairing:
    from g4seg_trt.dataset.names import read_list
    from g4seg_trt.evaluate.pairs import Pairing
    from g4seg_trt.listing import images_of_list

    sides: dict[str, Collection[str]] = {"prediction": files.predictions.stems, "ground truth": files.truth}
    if files.coarse is not None:
        sides["coarse masks"] = files.coarse.stems
    wanted = None
    if arguments.list is not None:
        wanted = images_of_list(read_list(Path(arguments.list)), {stem for stems in sides.values() for stem in stems})
    pairing = Pairing.of(sides, wanted)
    if not arguments.allow_missing:
        pairing.check_complete("give --list with the images that are meant, or --allow-missing to leave these out")
    return pairing


def _evaluate(
    arguments: argparse.Namespace, files: SetFiles, pairing: Pairing
) -> tuple[dict[str, Any], dict[str, str]]:
    """The summary with the sweep, and the failures by stem."""
    from tqdm import tqdm

    from g4seg_engine.processor import usable_cpus

    terminal = sys.stderr.isatty()
    with tqdm(
        total=len(pairing.stems),
        desc="evaluate",
        unit="image",
        file=sys.stderr,
        mininterval=0.1 if terminal else 10.0,  # a log file gets a line now and then
    ) as bar:
        total, sweep, failures = files.evaluate(
            pairing.stems, workers=arguments.workers or usable_cpus(), done=bar.update
        )
    summary = total.summary(arguments.mean_over)
    return {**summary, "sweep": sweep.summary(arguments.mean_over) if sweep.rules else None}, failures


def _unruled(arguments: argparse.Namespace, files: SetFiles, pairing: Pairing) -> list[str]:
    """Which images an option says nothing about, where it is for others of the same folder."""
    lines = []
    for option, sets in _ruled(arguments, files.predictions, files.coarse):
        for one in sets:
            count = sum(stem in one.label_pictures for stem in pairing.stems)
            if count and not one.labels_only:
                lines.append(
                    f"{option} changes nothing in {count} of {len(pairing.stems)} images: {one.where} has label "
                    "pictures of them, which are decided already"
                )
    return lines


def _warnings(files: SetFiles, summary: dict[str, Any]) -> list[str]:
    """What makes figures meaningless without being an error in any one file."""
    from g4seg_trt.evaluate.text import without_objects

    figures = summary["figures"]
    if problem := without_objects(summary):
        return [problem]
    objects = [one for one in figures["classes"] if one["id"] != 0]
    labelled = any(one["predicted_pixels"] for one in objects)
    if files.predictions.labels_only and figures["unlabelled_pixels"] and not labelled:
        return [
            f"{files.predictions.where} has no pixel of any class, only 255, which means no label: label pictures "
            "hold the data set's ids; pictures of 0 and 255 are masks of one class (--format png, with a table of it)"
        ]
    return []
