"""Does the ONNX graph do what the torch module does? Names, dtypes, axes, shapes and values are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec
from g4seg_export.errors import ParityError

Arrays = Mapping[str, NDArray[Any]]

_ORT_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int64": "tensor(int64)"}
_ONNX_TYPES = {
    onnx.TensorProto.FLOAT: "tensor(float)",
    onnx.TensorProto.FLOAT16: "tensor(float16)",
    onnx.TensorProto.INT64: "tensor(int64)",
}


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

    ONNX Runtime's CPU computes most of a half graph in float32 and does not round between such operators. A half
    graph's figures therefore show its weights' rounding and its wiring, but no overflow: see `fp16_range`.

    Args:
        path: of the graph.
        spec: the names, dtypes and axes it must have, and the tolerance of its values.
        examples: inputs.
        expected: torch's outputs, one mapping per example.

    Returns:
        See `compare_values`.

    Raises:
        ParityError: listing every mismatch.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _check_signature(spec, session.get_inputs(), session.get_outputs())
    names = [tensor.name for tensor in spec.outputs]
    actual = [dict(zip(names, session.run(names, dict(example)), strict=True)) for example in examples]
    return compare_values(spec, examples, actual, expected)


def compare_rounded(
    path: Path, spec: NetworkSpec, examples: Sequence[Arrays], actual: Sequence[Arrays], expected: Sequence[Arrays]
) -> dict[str, Any]:
    """Stands in for `compare_outputs` where no runtime at hand executes the graph (bfloat16).

    Only the names, dtypes and axes of the graph at `path` are checked; the values are those of the very torch
    module that was exported, in its precision.

    Args:
        path: of the graph.
        spec: as in `compare_outputs`.
        examples: inputs.
        actual: what the module gives in its precision, one mapping per example.
        expected: what it gave in float32.

    Returns:
        See `compare_values`, and "compared": "module".

    Raises:
        ParityError: listing every mismatch.
    """
    graph = onnx.load(path, load_external_data=False).graph
    _check_signature(spec, [_as_node(value) for value in graph.input], [_as_node(value) for value in graph.output])
    return {**compare_values(spec, examples, actual, expected), "compared": "module"}


def compare_values(
    spec: NetworkSpec, examples: Sequence[Arrays], actual: Sequence[Arrays], expected: Sequence[Arrays]
) -> dict[str, Any]:
    """Compare two lists of outputs, one mapping per example.

    Returns:
        The worst figures over examples and outputs: "max_abs", "relative" (max|actual - expected| /
        max|expected|), "cosine"; "batches", the batch sizes that were run; and for features of two images at once
        "matches", the share of positions that find the same nearest position in the other image.

    Raises:
        ParityError: listing every mismatch.
    """
    mismatches: list[str] = []
    worst = {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0}
    matches: list[float] = []
    for example, outputs, reference in zip(examples, actual, expected, strict=True):
        batch = _batch_size(spec, example)
        for tensor in spec.outputs:
            where = f"output {tensor.name} at batch {batch}"
            found, wanted = outputs[tensor.name], reference[tensor.name]
            shape = tuple(batch if size == BATCH else size for size in tensor.shape)
            wrong = [
                f"{where}: {who} has shape {list(array.shape)}, expected {list(shape)}"
                for who, array in (("the graph", found), ("the model", wanted))
                if array.shape != shape
            ]
            mismatches += wrong
            if wrong:
                continue
            figures = _figures(found, wanted)
            mismatches += _value_mismatches(where, figures, spec.tolerance)
            worst["max_abs"] = max(worst["max_abs"], figures["max_abs"])
            worst["relative"] = max(worst["relative"], figures["relative"])
            worst["cosine"] = min(worst["cosine"], figures["cosine"])
            if tensor.name == "features" and batch > 1:
                matches.append(_match_share(found, wanted))
    if mismatches:
        raise ParityError(spec.name, mismatches)
    share = {"matches": min(matches)} if matches else {}
    return {**worst, "batches": [_batch_size(spec, example) for example in examples], **share}


def _match_share(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The share of positions of image 0 whose nearest position in image 1 is the same: two float [B,P,g,g]."""
    nearest = []
    for features in (found, wanted):
        first, second = features[:2].astype(np.float64).reshape(2, features.shape[1], -1)
        nearest.append((first.T @ second).argmax(axis=1))
    return float((nearest[0] == nearest[1]).mean())


def _as_node(value: Any) -> SimpleNamespace:
    """A graph's input or output as ONNX Runtime describes it."""
    kind = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    return SimpleNamespace(name=value.name, type=_ONNX_TYPES.get(kind.elem_type, f"type {kind.elem_type}"), shape=axes)


def _check_signature(spec: NetworkSpec, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    mismatches = _signature_mismatches("input", inputs, spec.inputs)
    mismatches += _signature_mismatches("output", outputs, spec.outputs)
    if mismatches:
        # Values cannot be compared by name when the names or types are wrong.
        raise ParityError(spec.name, mismatches)


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
