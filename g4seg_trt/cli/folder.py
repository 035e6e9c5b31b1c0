"""g4seg-refine on a folder: arguments, progress and what is printed. The run itself: g4seg_trt.dataset."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from g4seg_trt.atomic import check_writable
from g4seg_trt.class_table import ClassTable
from g4seg_trt.cli.common import DONE, INTERRUPTED, SOME_FAILED, STDOUT, one_line, say, write_json
from g4seg_trt.cli.facts import open_refiner, percent, run_facts, say_note, seconds, stages
from g4seg_trt.cli.signals import asked_to_end
from g4seg_trt.cli.tally import MOST_IMAGES, Tally
from g4seg_trt.dataset.collected import Collected, write_collected
from g4seg_trt.dataset.folder import OutputFolder, check_output
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.names import check_names, read_classes, read_list
from g4seg_trt.dataset.run import Result, RunOptions, refine_items, run_settings
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import G4SegError, OutputError
from g4seg_trt.outputs import check_distinct, folder_files
from g4seg_trt.refiner import engine_directory
from g4seg_trt.update import BackgroundRule


def refine_folder(arguments: argparse.Namespace) -> int:
    """Refine the masks of --images and write OUTPUT/probability, label, overlay and matches.

    Returns:
        The exit code: SOME_FAILED if an image could not be done, INTERRUPTED if the run was asked to end.

    Raises:
        G4SegError: for what concerns all images; nothing is written then, unless it is the disk or a network that
            fails: what was finished stays, and is told.
    """
    start = perf_counter()
    rule = None if arguments.background is None else BackgroundRule.parse(arguments.background)
    table = _table(arguments)
    whole = _source(arguments, table)
    source = whole.part(arguments.shard, arguments.limit)
    layout = Layout(
        Path(arguments.output), arguments.overlay is not None, arguments.matches is not None, whole.keeps_names
    )
    check_output(layout, _inputs(arguments, whole), resume=arguments.resume, shard=arguments.shard)
    _check_report(arguments, whole, layout)
    tally = Tally({} if arguments.json is not None and len(source) <= MOST_IMAGES else None)
    with tally.timings.stage("open"):
        refiner, config = open_refiner(arguments)
    stopped_by: G4SegError | None = None
    with refiner:
        facts = run_facts(arguments, refiner, config)
        settings = run_settings(refiner.fingerprint(), config, rule, table)
        with (
            OutputFolder.open(layout, settings, resume=arguments.resume, shard=arguments.shard) as folder,
            asked_to_end() as asked,
        ):
            say_note(refiner)
            _say_changes(folder.records.before, settings)
            options = RunOptions(config, rule, stopped=asked)
            try:
                with closing(refine_items(refiner, source, settings, options, folder)) as results:
                    _follow(results, source, tally)
                if not asked():
                    _say_collected(write_collected(source, layout, tally.failures))
            except G4SegError as error:
                stopped_by = error
            interrupted = asked()
    tally.timings["total"] = perf_counter() - start
    _tell(arguments, layout, len(source), tally)
    if stopped_by is not None:
        stopped_by = type(stopped_by)(f"{stopped_by}; {tally.done} images are done, go on with --resume")
    if arguments.json is not None:
        try:
            write_json(arguments.json, _report(arguments, facts, source, layout, tally))
        except OutputError as error:  # on the same full disk
            raise stopped_by or error from error
    if stopped_by is not None:
        raise stopped_by
    if interrupted:
        say(f"g4seg-refine: interrupted: {tally.done} of {len(source)} images are done, go on with --resume")
        return INTERRUPTED
    return SOME_FAILED if tally.failures else DONE


def _table(arguments: argparse.Namespace) -> ClassTable | None:
    if arguments.class_table is not None:
        return ClassTable.read(Path(arguments.class_table))
    return None if arguments.dataset is None else ClassTable.of_dataset(arguments.dataset)


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
    yield from folder_files(engine_directory(arguments.engine))
    yield from source.files()


def _check_report(arguments: argparse.Namespace, source: DatasetSource, layout: Layout) -> None:
    """Check that --json is a place of its own; raises OutputError."""
    if arguments.json in (None, STDOUT):
        return
    path = Path(arguments.json)
    check_writable(path)
    if path.parent.resolve() in {folder.resolve() for folder in (*layout.all_folders(), layout.records)}:
        raise OutputError(f"cannot write {path}: {path.parent} is for what belongs to the images; choose another name")
    if path.exists():  # only what is there can be an input
        check_distinct([path], _inputs(arguments, source))


def _follow(results: Iterator[Result], source: DatasetSource, tally: Tally) -> None:
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
            counts = {"skipped": tally.skipped, "failed": len(tally.failures)}
            bar.set_postfix({word: count for word, count in counts.items() if count}, refresh=False)
            bar.update()


def _say_changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """What differs from the run before, whose images are then done again."""
    if before is None:
        return
    changes = [
        f"{name} {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if changes:
        say(f"settings changed ({'; '.join(changes)}): images done with others are done again")


def _say_collected(collected: Collected | None) -> None:
    """Whose masks are in the file of all images as they came."""
    if collected is not None and collected.unrefined:
        first, number = collected.unrefined[0], len(collected.unrefined)
        say(f"warning: {collected.path} has the masks of {number} images as they came (first: {first}): not refined")


def _shown(value: object) -> str:
    """A setting for people; hashes shortened."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _report(
    arguments: argparse.Namespace, facts: dict[str, Any], source: DatasetSource, layout: Layout, tally: Tally
) -> dict[str, Any]:
    return {
        "command": "g4seg-refine",
        **facts,
        "output": arguments.output,
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


def _tell(arguments: argparse.Namespace, layout: Layout, count: int, tally: Tally) -> None:
    """Results on stdout, which --json - has for itself; remarks and failures on stderr."""
    for warning in tally.warnings:
        say(f"warning: {warning}")
    if tally.more_warnings:
        say(f"warning: {tally.more_warnings} more, see {layout.records}")
    if tally.softened:
        say(f"softened before the update: {tally.softened} masks")
    if tally.redone:
        say(f"done again: {', '.join(f'{number} for another {what}' for what, number in tally.redone.items())}")
    if len(tally.formats) > 1:
        say(f"masks: {', '.join(f'{number} {name}' for name, number in tally.formats.items())}")
    if arguments.json != STDOUT:
        failed = len(tally.failures)
        print(f"{count} images: {tally.refined} refined, {tally.skipped} skipped (done before), {failed} failed")
        if arguments.ground_truth is not None:
            mean = tally.iou.to_mapping()
            print(
                f"mean IoU of {mean['masks']} masks: {percent(mean['before'])} before, "
                f"{percent(mean['after'])} after, {mean['made_worse']} made worse"
            )
        for folder in layout.all_folders():
            if folder.is_dir():
                print(f"{folder.name}: {folder}")
        parts = {name: spent for name, spent in tally.timings.items() if name != "total"}
        print(f"{tally.timings['total']:.2f} s: {stages(parts)}")
    for stem, message in tally.failures.items():
        say(f"failed: {stem}: {message}")
