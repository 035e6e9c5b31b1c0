"""g4seg-refine on one image."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.atomic import check_writable
from g4seg_trt.cli.common import DONE, STDOUT, say, write_json
from g4seg_trt.cli.facts import open_refiner, percent, run_facts, say_note, seconds, stages
from g4seg_trt.dataset.labels import DEFAULT_RULE
from g4seg_trt.dataset.measures import ClassFigures, GroundTruth, figures, label_both, mean_iou, read_ground_truth
from g4seg_trt.dataset.names import check_names
from g4seg_trt.errors import ConfigError, OutputError
from g4seg_trt.geometry import load_image
from g4seg_trt.inputs import check_masks
from g4seg_trt.masks import check_probability_path, read_mask, write_label_png, write_probabilities
from g4seg_trt.matches import NEEDED, class_matches, draw_matches
from g4seg_trt.outputs import check_distinct, folder_files
from g4seg_trt.overlay import check_overlay_path, draw_overlay, write_overlay
from g4seg_trt.refinement import Refinement
from g4seg_trt.refiner import engine_directory
from g4seg_trt.timing import Timings
from g4seg_trt.update import BACKGROUND, BackgroundRule


def refine_image(arguments: argparse.Namespace) -> int:
    """Refine the masks of --image and write what was asked for.

    Returns:
        The exit code.

    Raises:
        G4SegError: for whatever the user can mend; nothing is written then.
    """
    start = perf_counter()
    spent = Timings()
    rule = DEFAULT_RULE if arguments.background is None else BackgroundRule.parse(arguments.background)
    files = _mask_files(arguments)
    channel = rule.kind == "channel"
    if channel and BACKGROUND not in files:
        raise ConfigError(f"the background rule channel needs --mask {BACKGROUND}=FILE")
    outputs = _check_outputs(arguments, files, len(files) - channel)
    with spent.stage("read"):
        image, masks, truth = _read(arguments, files, channel)
    with spent.stage("open"):
        refiner, config = open_refiner(arguments)
    with refiner:
        refiner.set_image(image)
        keep = NEEDED if "matches" in outputs else ()
        refinement = refiner.refine(masks, background=rule, config=config, keep=keep)
        facts = run_facts(arguments, refiner, config)
        say_note(refiner)  # not earlier: a refused input gets its one line and no other
    spent.add(refinement.timings)
    background = masks.pop(BACKGROUND) if channel else None
    before, after = label_both(masks, refinement.probabilities, rule, background)
    measured = figures(list(masks), before, after, truth)
    with spent.stage("write"):
        write_probabilities(outputs["probability"], refinement.probabilities)
        if "label" in outputs:
            write_label_png(outputs["label"], after, len(masks))
        if "overlay" in outputs:
            write_overlay(outputs["overlay"], draw_overlay(image, before, after, list(masks)))
        if "matches" in outputs:
            write_overlay(outputs["matches"], draw_matches(image, class_matches(masks, refinement, config)))
    timings = {**spent, "total": perf_counter() - start}
    if arguments.json is not None:
        height, width = image.shape[:2]
        report = {
            "command": "g4seg-refine",
            **facts,
            "image": {"file": arguments.image, "width": width, "height": height},
            "classes": _class_reports(measured, refinement),
            "changed_pixels": int((before != after).sum()),
            "iou": None if truth is None else mean_iou(list(measured.values())),
            "warnings": refinement.warnings,
            "outputs": {name: str(path) for name, path in outputs.items() if name != "json"},
            "timings": seconds(timings),
        }
        write_json(arguments.json, report)
    _tell(arguments, outputs, measured, refinement, timings, image.shape[0] * image.shape[1])
    return DONE


def _mask_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Class name -> mask file; the command has checked that every --mask without --class-name has a "="."""
    if arguments.class_name is not None:
        return {check_names([arguments.class_name], "--class-name")[0]: Path(arguments.mask[0])}
    pairs = [mask.partition("=") for mask in arguments.mask]
    names = check_names([name for name, _, _ in pairs], "--mask")
    return {name: Path(file) for name, (_, _, file) in zip(names, pairs, strict=True)}


def _check_outputs(arguments: argparse.Namespace, files: dict[str, Path], classes: int) -> dict[str, Path]:
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
    check_probability_path(outputs["probability"], classes)
    if "label" in outputs and outputs["label"].suffix.lower() != ".png":
        raise OutputError(f"cannot write {outputs['label']}: a label picture is written as .png")
    for kind, words in (("overlay", "an overlay"), ("matches", "a picture of the matches")):
        if kind in outputs:
            check_overlay_path(outputs[kind], words)
    for path in outputs.values():
        check_writable(path)
    inputs = [Path(arguments.image), *files.values(), *folder_files(engine_directory(arguments.engine))]
    if arguments.ground_truth is not None:
        inputs.append(Path(arguments.ground_truth))
    check_distinct(outputs.values(), inputs)
    return outputs


def _read(
    arguments: argparse.Namespace, files: dict[str, Path], channel: bool
) -> tuple[Bytes, dict[str, Floats], GroundTruth | None]:
    image = load_image(arguments.image)
    size = (image.shape[0], image.shape[1])
    masks = check_masks({name: read_mask(path, name) for name, path in files.items()}, size)
    truth = None
    if arguments.ground_truth is not None:
        names = [name for name in masks if not (channel and name == BACKGROUND)]
        truth = read_ground_truth(Path(arguments.ground_truth), names, size)
    return image, masks, truth


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
