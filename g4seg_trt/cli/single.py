"""g4seg-refine on one image."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.atomic import check_writable
from g4seg_trt.class_table import ClassTable
from g4seg_trt.cli.common import DONE, STDOUT, say, write_json
from g4seg_trt.cli.facts import (
    open_refiner,
    plain_facts,
    run_facts,
    say_note,
    seconds,
    stages,
)
from g4seg_trt.cli.options import class_table
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.job import Job
from g4seg_trt.dataset.mask_files import MaskFile, MaskSource, only, open_masks
from g4seg_trt.dataset.measures import ClassFigures, mean_iou
from g4seg_trt.dataset.named_files import NamedFiles
from g4seg_trt.dataset.names import check_names
from g4seg_trt.dataset.plan import Plan
from g4seg_trt.dataset.source import Item
from g4seg_trt.dataset.untouched import untouched
from g4seg_trt.dataset.writing import Work, write_label
from g4seg_trt.errors import ConfigError, OutputError
from g4seg_trt.evaluate.text import percent
from g4seg_trt.inputs import check_masks
from g4seg_trt.listing import composed
from g4seg_trt.masks import PROBABILITY_SUFFIXES, check_probability_path, write_probabilities
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.detect import detect
from g4seg_trt.masks.formats import CollectionFormat
from g4seg_trt.matches import NEEDED, class_matches, draw_matches
from g4seg_trt.outputs import check_distinct, folder_files
from g4seg_trt.overlay import check_overlay_path, draw_overlay, write_overlay
from g4seg_trt.postprocess import parse_post
from g4seg_trt.refinement import Refinement
from g4seg_trt.refiner import engine_directory
from g4seg_trt.timing import Timings
from g4seg_trt.update import BACKGROUND, BackgroundRule

_USUAL = frozenset({"png", "index-png", "npy", "npz", "class-folder"})
"""Formats that nobody has to be told of who gives a mask with its class name."""


def refine_image(arguments: argparse.Namespace) -> int:
    """Refine the masks of --image and write what was asked for.

    Returns:
        The exit code.

    Raises:
        G4SegError: for whatever the user can mend; nothing is written then.
    """
    start = perf_counter()
    spent = Timings()
    rule = None if arguments.background is None else BackgroundRule.parse(arguments.background)
    post = None if arguments.post is None else parse_post(arguments.post)
    table = class_table(arguments)
    files = _mask_files(arguments)
    outputs = _check_outputs(arguments, files)
    source = _source(arguments, files, table)
    image_file = Path(arguments.image)
    truth = None if arguments.ground_truth is None else Path(arguments.ground_truth)
    item = Item(image_file.stem, arguments.image, image_file, source, truth)
    job = Job(item, Plan("", "", RefineConfig(), rule, table, None, post), None)
    with spent.stage("read"):
        image, masks, rule = job.load()
        if rule.kind == "channel" and BACKGROUND not in masks:
            there = f", which {files} does not hold" if isinstance(files, Path) else ""
            raise ConfigError(
                f"the background rule channel needs a mask of the {BACKGROUND}{there}: give --mask NAME=FILE for each "
                f"class and --mask {BACKGROUND}=FILE, or choose another --background"
            )
        masks = check_masks(masks, (image.shape[0], image.shape[1]))
    _check_form(outputs["probability"], source, len(masks) - (rule.kind == "channel"))
    if arguments.no_refine:
        refinement, config, facts = untouched((image, masks, rule)), RefineConfig(), plain_facts(arguments)
    else:
        refinement, config, facts = _refine(arguments, spent, image, masks, rule)
    _say_formats(arguments, source)
    work = job.work(job.completed(refinement))
    spent.add(work.refinement.timings)
    with spent.stage("write"):
        _write(outputs, work, source, config, table)
    timings = {**spent, "total": perf_counter() - start}
    if arguments.json is not None:
        height, width = image.shape[:2]
        report = {
            "command": "g4seg-refine",
            **facts,
            "background": str(rule),
            "image": {"file": arguments.image, "width": width, "height": height},
            "classes": _class_reports(work.figures, work.refinement),
            "changed_pixels": work.changed_pixels,
            "iou": None if truth is None else mean_iou(list(work.figures.values())),
            "warnings": work.refinement.warnings,
            "outputs": {name: str(path) for name, path in outputs.items() if name != "json"},
            "timings": seconds(timings),
        }
        write_json(arguments.json, report)
    _tell(arguments, outputs, work.figures, work.refinement, timings, image.shape[0] * image.shape[1])
    return DONE


def _refine(
    arguments: argparse.Namespace, spent: Timings, image: Bytes, masks: dict[str, Floats], rule: BackgroundRule
) -> tuple[Refinement, RefineConfig, dict[str, Any]]:
    """The refinement, its settings, and what the report says about the run."""
    with spent.stage("open"):
        refiner, config = open_refiner(arguments)
    with refiner:
        refiner.set_image(image)
        keep = () if arguments.matches is None else NEEDED
        refinement = refiner.refine(masks, background=rule, config=config, keep=keep)
        facts = run_facts(arguments, refiner, config)
        say_note(refiner)  # not earlier: a refused input gets its one line and no other
    return refinement, config, facts


def _mask_files(arguments: argparse.Namespace) -> dict[str, Path] | Path:
    """Class name -> mask file, or the one file that --class-name or its content says the classes of."""
    if len(arguments.mask) == 1 and (arguments.class_name is not None or "=" not in arguments.mask[0]):
        return Path(arguments.mask[0])
    pairs = [mask.partition("=") for mask in arguments.mask]
    names = check_names([name for name, _, _ in pairs], "--mask")
    return {name: Path(file) for name, (_, _, file) in zip(names, pairs, strict=True)}


def _source(arguments: argparse.Namespace, files: dict[str, Path] | Path, table: ClassTable | None) -> MaskSource:
    if not isinstance(files, Path):
        return NamedFiles(files, table)
    names = None if arguments.class_name is None else check_names([arguments.class_name], "--class-name")
    naming = Naming(names, table)
    if isinstance(detect(files, arguments.format, naming).format, CollectionFormat):
        whole = open_masks(files, arguments.format, naming)
        return whole.source(
            only(whole.candidates(composed(Path(arguments.image).stem)), whole.missing(), "mask"), naming
        )
    return MaskFile(files, arguments.format, naming)


def _check_outputs(arguments: argparse.Namespace, files: dict[str, Path] | Path) -> dict[str, Path]:
    """The outputs by kind, each checked for its format, its folder and against the inputs."""
    asked = {
        "probability": arguments.output,
        "label": arguments.label,
        "overlay": arguments.overlay,
        "matches": arguments.matches,
    }
    if arguments.json != STDOUT:
        asked["json"] = arguments.json
    outputs = {kind: Path(path) for kind, path in asked.items() if path is not None}
    if "label" in outputs and outputs["label"].suffix.lower() != ".png":
        raise OutputError(f"cannot write {outputs['label']}: a label picture is written as .png")
    for kind, words in (("overlay", "an overlay"), ("matches", "a picture of the matches")):
        if kind in outputs:
            check_overlay_path(outputs[kind], words)
    for path in outputs.values():
        check_writable(path)
    inputs = [Path(arguments.image), *([files] if isinstance(files, Path) else files.values())]
    inputs += [Path(path) for path in (arguments.ground_truth, arguments.class_table) if path is not None]
    inputs += [file for path in inputs for file in folder_files(path)]
    if arguments.engine is not None:
        inputs += folder_files(engine_directory(arguments.engine))
    check_distinct(outputs.values(), inputs)
    return outputs


def _comes_back(path: Path, source: MaskSource) -> bool:
    """Whether the probabilities are written as the mask came: where the suffix is its own and not .png or .npz."""
    back, suffix = source.back(), path.suffix.lower()
    return back is not None and suffix == back.suffix and suffix not in PROBABILITY_SUFFIXES


def _check_form(path: Path, source: MaskSource, classes: int) -> None:
    """Check that the probabilities can be written under this name; raises OutputError."""
    if _comes_back(path, source):
        return
    try:
        check_probability_path(path, classes)
    except OutputError as error:
        back = source.back()
        if back is None or {path.suffix.lower(), back.suffix} & {*PROBABILITY_SUFFIXES}:
            raise
        what = "a folder (no suffix)" if back.is_folder else back.suffix
        raise OutputError(f"{error}, or as {what} as the mask came") from error


def _say_formats(arguments: argparse.Namespace, source: MaskSource) -> None:
    """What the mask was taken for, where the user might have meant another format."""
    name, evidence = source.taken_for()
    if name and (name not in _USUAL or arguments.class_name is None):
        say(f"masks: {evidence}")


def _write(
    outputs: dict[str, Path], work: Work, source: MaskSource, config: RefineConfig, table: ClassTable | None
) -> None:
    names = work.masks.names
    if _comes_back(outputs["probability"], source):
        source.write(outputs["probability"], work.refined_masks)
    else:
        write_probabilities(outputs["probability"], work.refinement.probabilities)
    if "label" in outputs:
        write_label(outputs["label"], work.masks, work.ids, table)
    if "overlay" in outputs:
        write_overlay(outputs["overlay"], draw_overlay(work.image, work.before, work.after, names))
    if "matches" in outputs:
        given = dict(zip(names, work.masks.probabilities, strict=True))
        write_overlay(outputs["matches"], draw_matches(work.image, class_matches(given, work.refinement, config)))


def _class_reports(measured: dict[str, ClassFigures], refinement: Refinement) -> dict[str, Any]:
    return {name: {**one.to_mapping(), "softened": refinement.softened[name]} for name, one in measured.items()}


def _tell(
    arguments: argparse.Namespace,
    outputs: dict[str, Path],
    measured: dict[str, ClassFigures],
    refinement: Refinement,
    timings: dict[str, float],
    pixels: int,
) -> None:
    """Results on stdout, which --json - has for itself; remarks on stderr."""
    for warning in refinement.warnings:
        say(f"warning: {warning}")
    softened = {name: share for name, share in refinement.softened.items() if share}
    if softened:
        shares = ", ".join(f"{name} (sigma {share:g} of the longer side)" for name, share in softened.items())
        say(f"softened before the update: {shares}")
    if arguments.json == STDOUT:
        return
    for name, one in measured.items():
        print(f"{name}: {one.area_before} -> {one.area_after} of {pixels} pixels, {one.changed_pixels} changed")
        if arguments.ground_truth is not None:
            print(f"{name}: IoU {percent(one.iou_before)} before, {percent(one.iou_after)} after")
    if arguments.ground_truth is not None and len(measured) > 1:
        mean = mean_iou(list(measured.values()))
        print(f"mean of {mean['masks']}: IoU {percent(mean['before'])} before, {percent(mean['after'])} after")
    for kind, path in outputs.items():
        print(f"{kind}: {path}")
    print(f"{timings['total']:.2f} s: {stages({k: v for k, v in timings.items() if k != 'total'})}")
