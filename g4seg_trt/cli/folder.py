"""g4seg-refine on a folder: arguments, progress and what is printed. The run itself: g4seg_trt.dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from g4seg_trt.atomic import check_writable
from g4seg_trt.class_table import ClassTable
from g4seg_trt.cli.common import DONE, INTERRUPTED, SOME_FAILED, STDOUT, one_line, say, write_json
from g4seg_trt.cli.facts import (
    folder_inputs,
    open_pool,
    open_refiner,
    plain_facts,
    run_facts,
    say_note,
    seconds,
    stages,
)
from g4seg_trt.cli.options import class_table
from g4seg_trt.cli.page import Page, summary_of
from g4seg_trt.cli.signals import asked_to_end
from g4seg_trt.cli.tally import MOST_IMAGES, Tally
from g4seg_trt.cluster.refiner import RayRefiner
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.collected import Collected, collected_file, collected_files, write_collected
from g4seg_trt.dataset.folder import OutputFolder, check_output
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.names import check_names, read_classes, read_list
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import make_plan, refine_items
from g4seg_trt.dataset.settings import RunOptions, differences, run_settings
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.dataset.untouched import Untouched
from g4seg_trt.errors import G4SegError, OutputError, some
from g4seg_trt.evaluate import NamedEvaluation, comparison_lines, report_lines
from g4seg_trt.evaluate.named import RESULT
from g4seg_trt.evaluate.text import percent, without_objects
from g4seg_trt.outputs import check_distinct, folder_files
from g4seg_trt.postprocess import parse_post
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.update import BackgroundRule

_SHOWN_WARNINGS = 20
"""About single images on the terminal; the records have them all."""


def refine_folder(arguments: argparse.Namespace) -> int:
    """Refine the masks of --images and write OUTPUT/probability, label, masks, overlay and matches.

    Returns:
        The exit code: SOME_FAILED if an image could not be done, INTERRUPTED if the run was asked to end.

    Raises:
        G4SegError: for what concerns all images; nothing is written then, unless it is the disk or a network that
            fails: what was finished stays, and is told.
    """
    start = perf_counter()
    rule = None if arguments.background is None else BackgroundRule.parse(arguments.background)
    table = class_table(arguments)
    post, compare = (None if name is None else parse_post(name) for name in (arguments.post, arguments.compare))
    whole = _source(arguments, table)
    source = whole.part(arguments.shard, arguments.limit)
    layout = Layout(
        Path(arguments.output), arguments.overlay is not None, arguments.matches is not None, whole.keeps_names
    )
    check_output(layout, _inputs(arguments, whole), resume=arguments.resume, shard=arguments.shard)
    page = _page(arguments, source, layout, rule)
    _check_reports(arguments, whole, layout, page)
    tally = Tally(
        {} if arguments.json is not None and len(source) <= MOST_IMAGES else None,
        {entry.stem: place for place, entry in enumerate(source.entries)},
        evaluation=NamedEvaluation(table),
    )
    with tally.timings.stage("open"), redirect_stdout(sys.stderr):
        refiner, config = _opened(arguments)
    stopped_by: G4SegError | None = None
    with redirect_stdout(sys.stderr), refiner:  # Ray tells of its workers on stdout, also when it ends
        facts = _facts(arguments, refiner, config)
        settings = run_settings(refiner.fingerprint(), config, rule, table, post)
        with (
            OutputFolder.open(layout, settings, resume=arguments.resume, shard=arguments.shard) as folder,
            asked_to_end() as asked,
        ):
            if not isinstance(refiner, Untouched):
                say_note(refiner)
            _say_changes(folder, settings, whole=len(source) == len(whole))
            options = RunOptions(config or RefineConfig(), rule, stopped=asked, post=post, compare=compare)
            collected, there = None, collected_files(layout)
            try:
                refine = refiner.refine_items if isinstance(refiner, RayRefiner) else partial(refine_items, refiner)
                with closing(refine(source, settings, options, folder)) as results:
                    _follow(results, source, tally, page)
                if not asked():
                    plan = make_plan(source, settings, options, layout)
                    collected = write_collected(source, plan, folder.records, tally.lost)
            except G4SegError as error:
                stopped_by = error
            _say_collected(collected, [path for path in there if not path.exists()], collected_file(source, layout))
            interrupted = asked()
    tally.timings["total"] = perf_counter() - start
    tally.sort()
    evaluation, compared = _evaluated(arguments, tally)
    if arguments.ground_truth is not None:
        tally.remarks += _truth_remarks(source, tally, evaluation)
    if stopped_by is not None:
        stopped_by = type(stopped_by)(f"{stopped_by}; {tally.done} images are done, go on with --resume")
    report = _report(arguments, facts, source, layout, tally)
    report |= {"evaluation": evaluation, "compared": compared}
    try:  # before anything is printed: whoever reads that may leave early
        if page is not None:
            summary = summary_of(_counts(arguments, source, tally), evaluation, compared)
            _write_page(page, arguments, facts, tally, summary)
        if arguments.json not in (None, STDOUT):
            write_json(arguments.json, report)
    except OutputError as error:
        stopped_by = stopped_by or error  # of the same full disk
    _tell(arguments, layout, len(source), tally, [*_set_lines(evaluation), *_compared_lines(compared)])
    if arguments.json == STDOUT:
        write_json(STDOUT, report)
    if stopped_by is not None:
        raise stopped_by
    if interrupted:
        say(f"g4seg-refine: interrupted: {tally.done} of {len(source)} images are done, go on with --resume")
        return INTERRUPTED
    return SOME_FAILED if tally.failures else DONE


def _source(arguments: argparse.Namespace, table: ClassTable | None) -> DatasetSource:
    name = check_names([arguments.class_name], "--class-name")[0] if arguments.class_name is not None else None
    return DatasetSource.from_folders(
        arguments.images,
        arguments.masks,
        class_name=name,
        classes=read_classes(Path(arguments.classes)) if arguments.classes is not None else None,
        truth=arguments.ground_truth,
        names=read_list(Path(arguments.list)) if arguments.list is not None else None,
        table=table,
        format=arguments.format,
    )


def _inputs(arguments: argparse.Namespace, source: DatasetSource) -> Iterator[Path]:
    """Every file that the run reads."""
    yield from (Path(path) for path in (arguments.classes, arguments.list, arguments.class_table) if path is not None)
    if arguments.engine is not None:
        yield from folder_files(engine_directory(arguments.engine))
    yield from source.files()


def _page(
    arguments: argparse.Namespace, source: DatasetSource, layout: Layout, rule: BackgroundRule | None
) -> Page | None:
    if arguments.report is None:
        return None
    if arguments.report is not True:
        return Page(Path(arguments.report), source, layout, rule)
    part = "" if arguments.shard is None else "-{}-of-{}".format(*arguments.shard)
    return Page(layout.root / f"report{part}.html", source, layout, rule)


def _check_reports(arguments: argparse.Namespace, source: DatasetSource, layout: Layout, page: Page | None) -> None:
    """Check that --json and --report are places of their own; raises OutputError."""
    paths = [] if arguments.json in (None, STDOUT) else [Path(arguments.json)]
    if page is not None:
        paths.append(page.path)
    folders = {folder.resolve(): folder for folder in (*layout.all_folders(), layout.records)}
    for path in paths:
        if path.parent.resolve() != layout.root.resolve() or layout.root.exists():  # it is made later
            check_writable(path)
        taken = folders.get(path.resolve()) or folders.get(path.parent.resolve())
        if taken is not None:
            raise OutputError(f"cannot write {path}: {taken} is for what belongs to the images; choose another name")
    there = any(path.exists() for path in paths)  # only what is there can be an input
    check_distinct(paths, _inputs(arguments, source) if there else [])


def _follow(results: Iterator[Result], source: DatasetSource, tally: Tally, page: Page | None) -> None:
    """Count results in, with a progress bar, and say of each format of masks what it was recognised by."""
    terminal = sys.stderr.isatty()
    with tqdm(
        total=len(source),
        desc="refine",
        unit="image",
        file=sys.stderr,
        mininterval=0.1 if terminal else 10.0,  # a log file gets a line now and then
    ) as bar:
        for result in results:
            name, evidence = result.taken_for
            if name and name not in tally.formats:
                bar.write(one_line(f"masks: {evidence}"), file=sys.stderr)
            tally.add(result, source.images)
            if page is not None:
                page.add(result)
            counts = {"skipped": tally.skipped, "failed": len(tally.failures)}
            bar.set_postfix({word: count for word, count in counts.items() if count}, refresh=False)
            bar.update()


def _say_changes(folder: OutputFolder, now: Mapping[str, Any], *, whole: bool) -> None:
    """What differs from the run before, whose images are then done again, and from those of the other shards."""
    before = folder.records.before
    if before is not None and (changes := differences(before, now)):
        rest = "" if whole else "; those that this run leaves out stay as they are"
        say(f"settings changed ({changes}): images done with others are done again{rest}")
    if folder.beside:
        changes = differences(next(iter(folder.beside.values())), now)
        say(
            f"warning: results of other shards ({some(folder.beside)}) are still of other settings ({changes}): run "
            "those again with --resume and the settings of this one"
        )


def _say_collected(collected: Collected | None, removed: Iterable[Path], own: Path | None) -> None:
    """Whose masks are in the file of all images as they came, or that there is none any more, or none of that name."""
    for path in removed:
        again = ": --resume with neither --shard nor --limit writes it again" if path == own else ""
        say(f"warning: {path} was of results that have changed and is removed{again}")
    if collected is not None and collected.unrefined:
        first, number = collected.unrefined[0], len(collected.unrefined)
        say(f"warning: {collected.path} has the masks of {number} images as they came (first: {first}): not refined")


def _opened(arguments: argparse.Namespace) -> tuple[Refiner | RayRefiner | Untouched, RefineConfig | None]:
    if arguments.no_refine:
        return Untouched(), None
    return open_refiner(arguments) if arguments.ray is None else open_pool(arguments)


def _facts(
    arguments: argparse.Namespace, refiner: Refiner | RayRefiner | Untouched, config: RefineConfig | None
) -> dict[str, Any]:
    if config is None or isinstance(refiner, Untouched):
        return plain_facts(arguments)
    pool = {"ray": {"address": arguments.ray, **asdict(refiner.room)}} if isinstance(refiner, RayRefiner) else {}
    return {**run_facts(arguments, refiner, config), **pool}


def _evaluated(arguments: argparse.Namespace, tally: Tally) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """The figures of the set, and those of each row of a comparison; None and empty where there are none."""
    evaluation = tally.evaluation.summary()
    if evaluation is None or arguments.compare is None:
        return evaluation, {}
    # Where nothing is refined, half of the rows would say the same again.
    rows = [row for row in tally.evaluation.rows if not (arguments.no_refine and row.startswith(RESULT))]
    return evaluation, {row: one for row in rows if (one := tally.evaluation.summary(row)) is not None}


def _truth_remarks(source: DatasetSource, tally: Tally, evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    """What the figures leave out, and whether they mean anything."""
    if evaluation is not None and (problem := without_objects(evaluation)):
        yield problem
    if without := source.without_truth:
        yield f"{len(without)} images have no ground truth in {source.truth}: not evaluated ({some(without)})"
    if missing := tally.evaluation.missing:
        yield f"no figures of the set: {missing}"


def _set_lines(evaluation: Mapping[str, Any] | None) -> list[str]:
    return [] if evaluation is None else report_lines(evaluation)


def _compared_lines(compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return comparison_lines(compared) if compared else []


def _counts(arguments: argparse.Namespace, source: DatasetSource, tally: Tally) -> dict[str, int]:
    counts = {"images": len(source), _done_word(arguments): tally.refined, "done before": tally.skipped}
    return {**counts, "failed": len(tally.failures)}


def _done_word(arguments: argparse.Namespace) -> str:
    return "processed" if arguments.no_refine else "refined"


def _write_page(
    page: Page, arguments: argparse.Namespace, facts: Mapping[str, Any], tally: Tally, summary: Mapping[str, Any]
) -> None:
    spent = {name: value for name, value in tally.timings.items() if name != "total"}
    inputs = {name.replace("_", " "): value for name, value in folder_inputs(arguments).items() if value is not None}
    told = {**inputs, "output": arguments.output, **facts}
    page.write(f"g4seg-refine: {arguments.images}", summary, told, tally.failures, spent)


def _report(
    arguments: argparse.Namespace, facts: dict[str, Any], source: DatasetSource, layout: Layout, tally: Tally
) -> dict[str, Any]:
    return {
        "command": "g4seg-refine",
        **facts,
        "output": arguments.output,
        "inputs": folder_inputs(arguments),
        "records": str(layout.records),
        "count": len(source),
        "refined": tally.refined,
        "skipped": tally.skipped,
        "redone": dict(tally.redone),
        "masks": dict(tally.formats),
        "iou": tally.iou.to_mapping() if arguments.ground_truth is not None else None,
        "images": tally.images,
        "failures": tally.failures,
        "warnings": tally.warnings,
        "timings": seconds(tally.timings),
    }


def _tell(arguments: argparse.Namespace, layout: Layout, count: int, tally: Tally, figures: list[str]) -> None:
    """Results on stdout, which --json - has for itself; remarks and failures on stderr."""
    shown = len(tally.remarks) + _SHOWN_WARNINGS
    for warning in tally.warnings[:shown]:
        say(f"warning: {warning}")
    if more := tally.more_warnings + len(tally.warnings[shown:]):
        say(f"warning: {more} more, see {layout.records}")
    if tally.softened:
        say(f"softened before the update: {tally.softened} masks")
    if tally.redone:
        say(f"done again: {', '.join(f'{number} for another {what}' for what, number in tally.redone.items())}")
    if len(tally.formats) > 1:
        say(f"masks: {', '.join(f'{number} {name}' for name, number in tally.formats.items())}")
    if arguments.json != STDOUT:
        failed = len(tally.failures)
        done = f"{tally.refined} {_done_word(arguments)}, {tally.skipped} skipped (done before)"
        print(f"{count} images: {done}, {failed} failed")
        if arguments.ground_truth is not None:
            mean = tally.iou.to_mapping()
            print(
                f"mean IoU of {mean['masks']} masks: {percent(mean['before'])} before, "
                f"{percent(mean['after'])} after, {mean['made_worse']} made worse"
            )
            print("\n".join(figures))
        for folder in layout.all_folders():
            if folder.is_dir():
                print(f"{folder.name}: {folder}")
        parts = {name: spent for name, spent in tally.timings.items() if name != "total"}
        print(f"{tally.timings['total']:.2f} s: {stages(parts)}")
    for stem, message in tally.failures.items():
        say(f"failed: {stem}: {message}")
