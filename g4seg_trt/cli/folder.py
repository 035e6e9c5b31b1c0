"""g4seg-refine on a folder: resumable; a bad file is reported at the end and the others are done."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from g4seg_trt.atomic import check_writable
from g4seg_trt.cli.common import DONE, SOME_FAILED, STDOUT, say, write_json
from g4seg_trt.cli.facts import open_refiner, percent, run_facts, say_note, seconds, stages
from g4seg_trt.cli.jobs import Job, Layout
from g4seg_trt.cli.measures import ClassFigures, mean_iou
from g4seg_trt.cli.outputs import check_distinct, check_folder, folder_files, make_folders
from g4seg_trt.cli.pairing import Item, check_names, input_files, pair, read_classes
from g4seg_trt.cli.record import REMEDY, RunRecord
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import G4SegError, OutputError
from g4seg_trt.matches import NEEDED
from g4seg_trt.refinement import Refinement
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.timing import Timings
from g4seg_trt.update import BackgroundRule

_WRITES_WAITING = 4
"""Refined images that may wait for the disk; more would only fill the memory."""


@dataclass
class _Tally:
    """What became of the images, by stem."""

    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    figures: list[ClassFigures] = field(default_factory=list)
    softened: int = 0
    skipped: int = 0
    timings: Timings = field(default_factory=Timings)

    def refined(self, item: Item, measured: dict[str, ClassFigures], refinement: Refinement) -> None:
        self._add(item, measured, skipped=False)
        report = self.images[item.stem]
        for name, share in refinement.softened.items():
            report["classes"][name]["softened"] = share
            self.softened += share > 0
        report["timings"] = seconds(refinement.timings)
        report["warnings"] = refinement.warnings
        self.warnings += [f"{item.stem}: {warning}" for warning in refinement.warnings]
        self.timings.add(refinement.timings)

    def skip(self, item: Item, measured: dict[str, ClassFigures]) -> None:
        self.skipped += 1
        self._add(item, measured, skipped=True)

    def _add(self, item: Item, measured: dict[str, ClassFigures], *, skipped: bool) -> None:
        self.figures += measured.values()
        classes = {name: one.to_mapping() for name, one in measured.items()}
        self.images[item.stem] = {"image": str(item.image), "skipped": skipped, "classes": classes}


def refine_folder(arguments: argparse.Namespace) -> int:
    """Refine the masks of --images and write OUTPUT/probability, label, overlay and matches.

    Images whose outputs are all there are skipped. With --ground-truth they still count in the means. OUTPUT/run.json
    tells what the outputs were made with: a run with other settings is refused, an image with other classes redone.

    Returns:
        The exit code: SOME_FAILED if an image could not be done.

    Raises:
        G4SegError: for what concerns all images; nothing is written then, unless it is the disk that fails.
    """
    start = perf_counter()
    rule = BackgroundRule.parse(arguments.background)
    layout = Layout(Path(arguments.output), arguments.overlay is not None, arguments.matches is not None)
    items = _find(arguments, layout)
    jobs = [Job(item, layout, rule) for item in items]
    tally = _Tally()
    with tally.timings.stage("open"):
        refiner, config = open_refiner(arguments)
    with refiner:
        facts = run_facts(arguments, refiner, config)
        _claim(layout, _settings(facts, rule), jobs)
        say_note(refiner)
        todo = [job for job in jobs if not layout.is_done(job.item.stem)]
        _skip([job for job in jobs if layout.is_done(job.item.stem)], tally, arguments.ground_truth is not None)
        _refine(refiner, config, rule, todo, tally, keep=NEEDED if layout.matches else ())
    tally.timings["total"] = perf_counter() - start
    if arguments.json is not None:
        write_json(arguments.json, _report(arguments, facts, items, tally))
    _tell(arguments, layout, items, tally)
    return SOME_FAILED if tally.failures else DONE


def _find(arguments: argparse.Namespace, layout: Layout) -> list[Item]:
    """The images with their masks, once it is certain that no output would overwrite an input."""
    for folder in [layout.root, *(layout.folders() if layout.root.is_dir() else [])]:
        check_folder(folder)
    name = check_names([arguments.class_name], "--class-name")[0] if arguments.class_name is not None else None
    images, masks = Path(arguments.images), Path(arguments.masks)
    truth = Path(arguments.ground_truth) if arguments.ground_truth is not None else None
    classes = read_classes(Path(arguments.classes)) if arguments.classes is not None else None
    items = pair(images, masks, class_name=name, classes=classes, truth=truth)
    inputs = input_files(images, masks, truth, layout.all_folders())
    inputs += folder_files(engine_directory(arguments.engine))
    outputs = [layout.record, *(path for item in items for path in layout.possible(item.stem))]
    if arguments.classes is not None:
        inputs.append(Path(arguments.classes))
    if arguments.json not in (None, STDOUT):
        outputs.append(Path(arguments.json))
        check_writable(outputs[-1])
    check_distinct(outputs, inputs)
    return items


def _settings(facts: dict[str, Any], rule: BackgroundRule) -> dict[str, Any]:
    """What the results depend on beside the images, their masks and their classes."""
    return {
        "version": facts["version"],
        "engine manifest sha256": facts["engine"]["manifest_sha256"],
        "backend": facts["backend"],
        "compute precision": facts["compute_precision"],
        "background": str(rule),
        **facts["config"],
    }


def _claim(layout: Layout, settings: dict[str, Any], jobs: Sequence[Job]) -> None:
    """Make the output folders and their record, unless they hold results of a run with other settings.

    Files of images whose classes are not those recorded are removed first: should the run end early, the record
    never vouches for them.

    Raises:
        OutputError: if the output folder belongs to another run or cannot be written.
    """
    record = RunRecord.read(layout.record)
    if record is not None:
        record.check_same(settings, layout.root)
    elif layout.has_results():
        raise OutputError(f"{layout.root} holds results and no {layout.record.name} to go on from: {REMEDY}")
    make_folders(layout.folders())
    before = record.classes if record is not None else {}
    now = {job.item.stem: names for job in jobs if (names := job.classes()) is not None}
    for stem, names in now.items():
        if before.get(stem) != names:
            layout.remove(stem)
    RunRecord(settings, {**before, **now}).write(layout.record)


def _skip(done: Sequence[Job], tally: _Tally, measure: bool) -> None:
    for job in done:
        try:
            tally.skip(job.item, job.measure_done() if measure else {})
        except G4SegError as error:
            tally.failures[job.item.stem] = str(error)


def _refine(
    refiner: Refiner,
    config: RefineConfig,
    rule: BackgroundRule,
    todo: Sequence[Job],
    tally: _Tally,
    *,
    keep: Sequence[str],
) -> None:
    """Refine what is to do: reading runs ahead in a thread of the Refiner, writing follows in another."""
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=len(todo),
        desc="refine",
        unit="image",
        file=sys.stderr,
        disable=not todo,
        mininterval=0.1 if terminal else 10.0,  # a log file gets a line now and then
    )
    written: deque[tuple[Job, Refinement, Future[tuple[dict[str, ClassFigures], float]]]] = deque()

    def settle() -> None:
        job, refinement, future = written.popleft()
        measured, spent = future.result()
        tally.timings.add({"write": spent})
        tally.refined(job.item, measured, refinement)
        bar.update()

    with bar, ThreadPoolExecutor(max_workers=1, thread_name_prefix="g4seg-write") as writer:
        loads = ((job, job.load) for job in todo)
        for job, outcome in refiner.refine_many(loads, background=rule, config=config, keep=keep):
            if isinstance(outcome, G4SegError):
                job.drop()
                tally.failures[job.item.stem] = str(outcome)
                bar.update()
                continue
            written.append((job, outcome, writer.submit(_timed_finish, job, outcome, config)))
            if len(written) > _WRITES_WAITING:
                settle()
        while written:
            settle()


def _timed_finish(job: Job, refinement: Refinement, config: RefineConfig) -> tuple[dict[str, ClassFigures], float]:
    start = perf_counter()
    return job.finish(refinement, config), perf_counter() - start


def _report(
    arguments: argparse.Namespace, facts: dict[str, Any], items: Sequence[Item], tally: _Tally
) -> dict[str, Any]:
    return {
        "command": "g4seg-refine",
        **facts,
        "output": arguments.output,
        "count": len(items),
        "refined": len(tally.images) - tally.skipped,
        "skipped": tally.skipped,
        "iou": mean_iou(tally.figures) if arguments.ground_truth is not None else None,
        "images": tally.images,
        "failures": tally.failures,
        "warnings": tally.warnings,
        "timings": seconds(tally.timings),
    }


def _tell(arguments: argparse.Namespace, layout: Layout, items: Sequence[Item], tally: _Tally) -> None:
    """Results on stdout, which --json - has for itself; remarks and failures on stderr."""
    for warning in tally.warnings:
        say(f"warning: {warning}")
    if tally.softened:
        say(f"softened before the update: {tally.softened} masks")
    if arguments.json != STDOUT:
        refined = len(tally.images) - tally.skipped
        print(
            f"{len(items)} images: {refined} refined, {tally.skipped} skipped (done before), "
            f"{len(tally.failures)} failed"
        )
        if arguments.ground_truth is not None:
            mean = mean_iou(tally.figures)
            print(
                f"mean IoU of {mean['masks']} masks: {percent(mean['before'])} before, "
                f"{percent(mean['after'])} after, {mean['made_worse']} made worse"
            )
        for folder in layout.folders():
            print(f"{folder.name}: {folder}")
        parts = {name: spent for name, spent in tally.timings.items() if name != "total"}
        print(f"{tally.timings['total']:.2f} s: {stages(parts)}")
    for stem, message in tally.failures.items():
        say(f"failed: {stem}: {message}")
