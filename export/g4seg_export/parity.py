"""Does the ONNX graph do what the torch module does? Names, dtypes, axes, shapes and values are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec
from g4seg_export.errors import ParityError

Arrays = Mapping[str, NDArray[Any]]

_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


def compare(path: Path, spec: NetworkSpec, module: nn.Module, *examples: Arrays) -> dict[str, Any]:
    """`reference_outputs` and `compare_outputs` in one call, for models that fit into memory twice."""
    return compare_outputs(path, spec, examples, reference_outputs(module, spec, examples))


@torch.inference_mode()
def reference_outputs(
    module: nn.Module, spec: NetworkSpec, examples: Sequence[Arrays]
) -> list[dict[str, NDArray[Any]]]:
    """What the torch module gives for each example, by output name."""
    results = []
    for example in examples:
        outputs = module(*(torch.from_numpy(example[tensor.name]) for tensor in spec.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        names = (tensor.name for tensor in spec.outputs)
        results.append({name: output.numpy() for name, output in zip(names, outputs, strict=True)})
    return results


def compare_outputs(
    path: Path, spec: NetworkSpec, examples: Sequence[Arrays], expected: Sequence[Arrays]
) -> dict[str, Any]:
    """Run the graph at `path` on ONNX Runtime's CPU provider and compare it with what torch gave.

    Args:
        path: of the graph.
        spec: the names, dtypes and axes it must have, and the tolerance of its values.
        examples: inputs.
        expected: torch's outputs, one mapping per example.

    Returns:
        The worst figures over examples and outputs: "max_abs", "relative" (max|onnx - torch| / max|torch|),
        "cosine"; and "batches", the batch sizes that were run.

    Raises:
        ParityError: listing every mismatch.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    mismatches = _signature_mismatches("input", session.get_inputs(), spec.inputs)
    mismatches += _signature_mismatches("output", session.get_outputs(), spec.outputs)
    if mismatches:
        # Values cannot be compared by name when the names or types are wrong.
        raise ParityError(spec.name, mismatches)

    names = [tensor.name for tensor in spec.outputs]
    worst = {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0}
    for example, reference in zip(examples, expected, strict=True):
        outputs = dict(zip(names, session.run(names, dict(example)), strict=True))
        batch = _batch_size(spec, example)
        for tensor in spec.outputs:
            where = f"output {tensor.name} at batch {batch}"
            actual, wanted = outputs[tensor.name], reference[tensor.name]
            shape = tuple(batch if size == BATCH else size for size in tensor.shape)
            wrong = [
                f"{where}: {who} has shape {list(array.shape)}, expected {list(shape)}"
                for who, array in (("the graph", actual), ("the model", wanted))
                if array.shape != shape
            ]
            mismatches += wrong
            if wrong:
                continue
            figures = _figures(actual, wanted)
            mismatches += _value_mismatches(where, figures, spec.tolerance)
            worst["max_abs"] = max(worst["max_abs"], figures["max_abs"])
            worst["relative"] = max(worst["relative"], figures["relative"])
            worst["cosine"] = min(worst["cosine"], figures["cosine"])
    if mismatches:
        raise ParityError(spec.name, mismatches)
    return {**worst, "batches": [_batch_size(spec, example) for example in examples]}


def _signature_mismatches(kind: str, actual: Sequence[Any], expected: Sequence[TensorSpec]) -> list[str]:
    found = {node.name: node for node in actual}
    wanted = {tensor.name: tensor for tensor in expected}
    mismatches = [f"{kind} {name} is missing" for name in wanted if name not in found]
    mismatches += [f"{kind} {name} is not in the spec" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        node, tensor = found[name], wanted[name]
        if node.type != _ORT_TYPES[tensor.dtype]:
            mismatches.append(f"{kind} {name} is {node.type}, expected {_ORT_TYPES[tensor.dtype]}")
        if tuple(node.shape) != tensor.shape:
            mismatches.append(f"{kind} {name} has axes {list(node.shape)}, expected {list(tensor.shape)}")
    if not mismatches and list(found) != list(wanted):
        mismatches.append(f"{kind}s come in the order {list(found)}, expected {list(wanted)}")
    return sorted(mismatches)


def _figures(actual: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    largest = float(np.abs(b).max())
    max_abs = float(np.abs(a - b).max())
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {
        "max_abs": max_abs,
        "relative": max_abs / largest if largest > 0.0 else max_abs,
        "cosine": float(a @ b) / lengths if lengths > 0.0 else float(max_abs == 0.0),
    }


def _value_mismatches(where: str, figures: Mapping[str, float], tolerance: float) -> list[str]:
    if not np.isfinite(figures["relative"]):
        return [f"{where}: values are not finite"]
    if figures["relative"] > tolerance:
        return [f"{where}: relative difference {figures['relative']:.3g}, allowed {tolerance:.3g}"]
    return []


def _batch_size(spec: NetworkSpec, example: Arrays) -> int:
    for tensor in spec.inputs:
        if BATCH in tensor.shape:
            return int(example[tensor.name].shape[tensor.shape.index(BATCH)])
    return 1
