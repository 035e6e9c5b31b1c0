"""What g4seg-engine prints: the facts of `diagnosis` as lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from g4seg_engine.records import ArtefactRecord, FileRecord, Manifest
from g4seg_engine.version import VERSION
from g4seg_trt.cli.common import one_line
from g4seg_trt.diagnosis.doctor import Diagnosis
from g4seg_trt.diagnosis.fit import Fit
from g4seg_trt.diagnosis.gpu import Gpus
from g4seg_trt.diagnosis.inspection import Inspection, total_bytes
from g4seg_trt.diagnosis.machine import Machine
from g4seg_trt.diagnosis.trials import Outcome

_SHOWN_FILES = 20


def inspection_lines(engine: str, inspection: Inspection) -> list[str]:
    """An engine directory for people.

    Args:
        engine: as it was given on the command line.
        inspection: what was found there.
    """
    lines = [f"engine: {one_line(engine)}"]
    if inspection.manifest is None:
        return [*lines, *_found_lines(inspection.found)]
    lines += _manifest_lines(inspection.manifest)
    lines += _network_lines(inspection.manifest)
    lines += _artefact_lines(inspection.manifest.artefacts, inspection.fits)
    files = tuple(dict.fromkeys(inspection.manifest.files()))
    lines.append(f"size: {_megabytes(total_bytes(files))} MB in {len(files)} files")
    for backend, size in inspection.cache.items():
        lines.append(f"cache of {backend}, safe to delete: {_megabytes(size)} MB")
    lines.append(f"build command: {inspection.manifest.build_command}")
    if inspection.problem is None:
        hashes = "all hashes agree" if inspection.verified else "so do the hashes of files up to 64 MB"
        lines.append(f"files: all are there, sizes agree, {hashes}")
    return lines


def diagnosis_lines(diagnosis: Diagnosis) -> list[str]:
    """A machine for people, to be pasted into a bug report."""
    lines = [f"g4seg-trt: {VERSION}", *_machine_lines(diagnosis.machine), *_gpu_lines(diagnosis.gpus)]
    if "torch_cuda" in diagnosis.torch.facts:
        lines.append(f"CUDA of torch: {diagnosis.torch.facts['torch_cuda'] or 'none, a build without CUDA'}")
    installed = [f"{name} {version}" for name, version in diagnosis.packages.items() if version is not None]
    missing = [name for name, version in diagnosis.packages.items() if version is None]
    lines.append(f"installed: {', '.join(installed) or 'nothing'}")
    lines.append(f"not installed: {', '.join(missing) or 'nothing'}")
    lines += [f"problem: {problem}" for problem in diagnosis.package_problems]
    lines += [f"{outcome.backend} on {outcome.device}: {_verdict(outcome)}" for outcome in diagnosis.backends]
    lines.append(f"torch on {diagnosis.torch.device} (which the backends there need): {_verdict(diagnosis.torch)}")
    lines.append(f"g4seg-build-engines: {_verdict(diagnosis.export)}")
    return lines


def _verdict(outcome: Outcome) -> str:
    if outcome.works:
        return "works"
    return f"does not work: {one_line('; '.join(filter(None, (outcome.reason, outcome.remedy))))}"


def _machine_lines(machine: Machine) -> Iterator[str]:
    yield f"Python: {machine.python}"
    yield f"platform: {machine.platform}"
    yield f"processor: {machine.cpu}, {machine.usable_cores} of {machine.cores} cores usable"
    memory = "not told" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    limit = machine.memory_limit_bytes
    yield f"memory: {memory}" + ("" if limit is None else f", of which this container gets {limit / 2**30:.1f} GiB")


def _gpu_lines(gpus: Gpus) -> Iterator[str]:
    for index, gpu in enumerate(gpus.devices):
        size = f"{gpu.memory / 2**30:.1f} GiB"
        yield f"GPU {index}: {gpu.name}, compute capability {gpu.compute_capability}, {size}"
    if gpus.problem:
        yield f"GPU: none, {gpus.problem}"
    if gpus.driver or gpus.driver_cuda:
        yield f"NVIDIA driver: {gpus.driver or 'version not told'}, up to CUDA {gpus.driver_cuda or 'unknown'}"


def _found_lines(found: Mapping[str, int]) -> Iterator[str]:
    if not found:
        return
    yield "files in it:"
    yield from _table([(one_line(name), f"{_megabytes(size)} MB") for name, size in [*found.items()][:_SHOWN_FILES]])
    if len(found) > _SHOWN_FILES:
        yield f"  and {len(found) - _SHOWN_FILES} more"


def _manifest_lines(manifest: Manifest) -> Iterator[str]:
    model, dims = manifest.model, manifest.dims
    revision = f", revision {model.revision}" if model.revision else ""
    yield f"model: {model.id}{revision}, licence {model.licence or 'not told'}"
    yield f"built: {manifest.created} by g4seg-trt {manifest.package_version}"
    yield f"prediction type: {manifest.prediction_type}"
    yield f"square: {dims.square} x {dims.square} pixels, grid: {dims.grid} x {dims.grid} positions"
    yield f"mask injection: {manifest.injection.mode}, {manifest.injection.form}"
    yield f"image encoder: {manifest.image_encoder.id}, {manifest.image_encoder.dense_mode}"
    replaced = manifest.autoencoder
    if replaced.encoder or replaced.decoder:
        own = "the model's own"
        yield f"autoencoder: encoder {replaced.encoder or own}, decoder {replaced.decoder or own}"
    yield f"inputs and outputs: {manifest.io_dtype}"
    yield f"recommended: {_pairs(manifest.recommended) or 'nothing of its own'}"
    if manifest.note:
        yield f"note: {manifest.note}"


def _network_lines(manifest: Manifest) -> Iterator[str]:
    rows = [("network", "precision", "opset", "batch", "parity", "MB", "files")]
    for name, network in manifest.networks.items():
        smallest, largest = network.min_batch, network.max_batch
        rows.append(
            (
                name,
                network.precision,
                str(network.opset),
                str(smallest) if smallest == largest else f"{smallest}-{largest}",
                _figure(network.parity.get("relative")),
                _megabytes(total_bytes(network.files)),
                _names(network.files),
            )
        )
    yield "networks (parity: relative difference to PyTorch):"
    yield from _table(rows)


def _artefact_lines(artefacts: Sequence[ArtefactRecord], fits: Sequence[Fit]) -> Iterator[str]:
    if not artefacts:
        yield "compiled: nothing"
    # What was built in one go shares everything but network and files.
    groups: dict[str, list[tuple[ArtefactRecord, Fit]]] = {}
    for artefact, fit in zip(artefacts, fits, strict=True):
        capability = f", compute capability {artefact.compute_capability}" if artefact.compute_capability else ""
        driver = f", driver {artefact.driver}" if artefact.driver else ""
        scalars = {name: flag for name, flag in artefact.build_flags.items() if not isinstance(flag, (dict, list))}
        flags = f", flags: {_pairs(scalars)}" if scalars else ""
        head = f"{artefact.backend} {artefact.backend_version} for {artefact.device}{capability}{driver}{flags}"
        groups.setdefault(head, []).append((artefact, fit))
    for head, members in groups.items():
        yield f"compiled: {head}"
        rows = [("network", "batch sizes", "MB", "files")]
        for artefact, _ in members:
            sizes = ", ".join(str(size) for size in artefact.batch_sizes)
            rows.append((artefact.network, sizes, _megabytes(total_bytes(artefact.files)), _names(artefact.files)))
        yield from _table(rows)
        reasons = dict.fromkeys(reason for _, fit in members for reason in fit.reasons)
        if reasons:
            yield f"  does not fit this machine: {'; '.join(reasons)}; build it again here"
        else:
            yield "  fits this machine"
        for note in dict.fromkeys(note for _, fit in members for note in fit.notes):
            yield f"  note: {note}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _names(files: Iterable[FileRecord]) -> str:
    return ", ".join(record.file for record in files)


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _figure(value: object) -> str:
    # A manifest may come from anywhere: its figures are plain JSON.
    return f"{value:.1e}" if isinstance(value, float) else "not told" if value is None else json.dumps(value)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
