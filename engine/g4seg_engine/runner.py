"""The Runner contract: named arrays in, named arrays out, checked against the spec."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from g4seg_engine.cache import cached
from g4seg_engine.errors import EngineError, RunnerInputError
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec, show_shape

Array = npt.NDArray[Any]

BACKENDS: dict[str, tuple[str, ...]] = {"onnxruntime": ("cpu",), "openvino": ("cpu",)}
"""The devices of each backend."""


class Runner(Protocol):
    """One network, ready to run. A context manager; ``close`` frees it earlier.

    Attributes:
        spec: names, dtypes, shapes and batch range of inputs and outputs.
    """

    spec: NetworkSpec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the network once.

        Args:
            inputs: exactly the arrays of ``spec.inputs`` by name, in the dtypes of the spec: an engine with
                float16 inputs takes no float32. They are not changed.

        Returns:
            The arrays of ``spec.outputs`` by name. They belong to the caller: no later run touches them.

        Raises:
            RunnerInputError: a name, dtype, shape or the batch size is wrong.
            EngineError: the backend failed, or the runner is closed.
        """
        ...

    def close(self) -> None:
        """Frees the network. Closing twice is fine."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_runner(
    directory: str | Path,
    network: str,
    backend: str = "onnxruntime",
    device: str = "cpu",
    *,
    manifest: Manifest | None = None,
    threads: int | None = None,
    compute_precision: str | None = None,
    batch: int = 1,
    cache: bool = True,
) -> Runner:
    """Opens one network of an engine directory.

    Args:
        directory: the engine directory.
        network: one of NETWORKS.
        backend: a key of BACKENDS.
        device: one of the backend's devices.
        manifest: the directory's manifest if it is loaded and checked already; else both are done here.
        threads: CPU threads, or None for as many as this process may use.
        compute_precision: what the backend computes in, if it leaves a choice; None for its own.
        batch: the batch size that will be run; a backend with static shapes gets ready for it.
        cache: keep what makes the next start shorter in the engine directory, and use what is there.

    Raises:
        EngineError: unknown network, backend or device, a wrong `threads` or compute precision, or the directory fails
            its checks.
        MissingExtraError: the backend is not installed.
    """
    check_backend(backend, device, compute_precision)
    if manifest is None:
        manifest = load_engine(directory)
    spec = manifest.spec(network)
    record = manifest.networks[network]
    if record.precision == "bf16" and device == "cpu":
        raise EngineError(
            f"engine {directory} computes in bfloat16, for which {backend} has no operators on the CPU: build one with "
            "--precision fp32 or fp16"
        )
    folder = Path(directory)
    graph = folder / record.files[0].file
    keep = partial(cached, folder, manifest, network, backend) if cache else None
    if backend == "openvino":
        from g4seg_engine.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(graph, spec, compute_precision, threads, batch, keep)

    from g4seg_engine.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(graph, spec, threads=threads, keep=keep)


def check_backend(backend: str, device: str, compute_precision: str | None = None) -> None:
    """Check that a backend is known and installed, and can compute in a precision here.

    Raises:
        EngineError: unknown backend or device, or a compute precision that is not allowed.
        MissingExtraError: the backend is not installed.
    """
    if backend not in BACKENDS:
        raise EngineError(f"unknown backend {backend!r}: choose from {', '.join(BACKENDS)}")
    if device not in BACKENDS[backend]:
        devices = ", ".join(BACKENDS[backend])
        raise EngineError(f"backend {backend} has no device {device!r}: choose from {devices}")
    if backend == "openvino":
        from g4seg_engine.openvino_runner import check_precision, require_openvino

        check_precision(compute_precision)
        require_openvino()
        return
    if compute_precision is not None:
        raise EngineError(
            f"compute precision is {compute_precision!r}, allowed with backend {backend}: none, it computes in the "
            "engine's own precision"
        )
    from g4seg_engine.onnxruntime_runner import import_onnxruntime

    import_onnxruntime()


def check_inputs(spec: NetworkSpec, inputs: Mapping[str, Any]) -> int:
    """Checks names, dtypes, shapes and the batch range.

    Args:
        spec: the network.
        inputs: numpy arrays or torch tensors by name (anything with ``dtype`` and ``shape``).

    Returns:
        The batch size; 1 for a network without a batch axis.

    Raises:
        RunnerInputError: one line that names the network, the input, what was found and what is expected.
    """
    names = [tensor.name for tensor in spec.inputs]
    missing = [name for name in names if name not in inputs]
    unknown = [str(name) for name in inputs if name not in names]
    if missing or unknown:
        found = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(unknown)}"
        raise RunnerInputError(f"{spec.name}: inputs {found}; expected {', '.join(names)}")
    batches = {tensor.name: _check_input(spec, tensor, inputs[tensor.name]) for tensor in spec.inputs}
    sizes = {name: size for name, size in batches.items() if size is not None}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise RunnerInputError(f"{spec.name}: inputs differ in batch size: {shown}")
    batch = next(iter(sizes.values()), 1)
    if not spec.min_batch <= batch <= spec.max_batch:
        raise RunnerInputError(
            f"{spec.name}: inputs have batch size {batch}, expected {spec.min_batch} to {spec.max_batch}"
        )
    return batch


def output_arrays(spec: NetworkSpec, batch: int) -> dict[str, Array]:
    """Uninitialised arrays of the shapes that a run with this batch size fills."""
    return {
        tensor.name: np.empty([batch if size == BATCH else int(size) for size in tensor.shape], tensor.dtype)
        for tensor in spec.outputs
    }


def _check_input(spec: NetworkSpec, tensor: TensorSpec, array: Any) -> int | None:
    """The array's size along the batch axis, or None where the tensor has none."""
    where = f"{spec.name}: input {tensor.name}"
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise RunnerInputError(f"{where} is a {type(array).__name__}, expected an array: {tensor.describe()}")
    # torch prints its dtypes as "torch.float32"; a byte order that is not the machine's shows up as ">f4".
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype != tensor.dtype:
        raise RunnerInputError(f"{where} has dtype {dtype}, expected {tensor.dtype}")
    shape = tuple(array.shape)
    fits = len(shape) == len(tensor.shape) and all(
        expected in (BATCH, found) for expected, found in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise RunnerInputError(f"{where} has shape {show_shape(shape)}, expected {show_shape(tensor.shape)}")
    return int(shape[tensor.shape.index(BATCH)]) if BATCH in tensor.shape else None
