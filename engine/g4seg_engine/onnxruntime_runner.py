"""Runs an ONNX graph with ONNX Runtime.

Five networks are open at once and run one after another, so the session options are chosen for the five
together (measured with a 217 M parameter UNet and a VAE decoder at 512 pixels, on 2 CPU cores):

- No spinning: waiting thread pools of the other networks would take the cores that the running one needs.
  With small networks on a busy machine, spinning took 2.7 times as long.
- No memory pattern, and the arena freed after each run: a network keeps no activations between runs. The peak
  of the two falls from 3.9 to 1.9 GB. Without an arena it is the same, for twice the system time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from g4seg_engine.errors import EngineError, EngineMismatchError, MissingExtraError
from g4seg_engine.runner import Array, check_inputs, output_arrays
from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec, show_shape

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
# onnxruntime's level "fatal": what it calls an error is raised as well, and one line is enough.
_LOG_LEVEL = 4


class OnnxRuntimeRunner:
    """A network on ONNX Runtime; see Runner for the contract. Several threads may call ``run`` at once.

    Args:
        path: the .onnx file; external data is looked up beside it.
        spec: what the graph must offer.
        provider: an execution provider of the installed onnxruntime.
        threads: CPU threads, or None for as many as this process may use.
        provider_options: the provider's own.
        fixed_batch: the only batch size there will be; shapes become constants of the graph.

    Attributes:
        session: onnxruntime's; None once closed.
        run_options: of every run.
        errors: the exceptions that onnxruntime raises.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: `threads` is below 1, the provider is not there, or onnxruntime refuses the graph.
        EngineMismatchError: the graph's inputs or outputs differ from the spec.
    """

    def __init__(
        self,
        path: str | Path,
        spec: NetworkSpec,
        provider: str = CPU_PROVIDER,
        threads: int | None = None,
        provider_options: Mapping[str, str] | None = None,
        fixed_batch: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"threads is {threads}, expected 1 or more")
        if fixed_batch is not None:
            spec = replace(spec, min_batch=fixed_batch, max_batch=fixed_batch)
        self.spec = spec
        self._onnxruntime = _import_onnxruntime()
        self.errors = _error_types(self._onnxruntime)
        self.session = self._open(
            Path(path), provider, dict(provider_options or {}), threads or _usable_cpus(), fixed_batch
        )
        self.run_options = self._onnxruntime.RunOptions()
        self.run_options.log_severity_level = _LOG_LEVEL
        if provider == CPU_PROVIDER:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _check_graph(Path(path), spec, self.session)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the network once; see Runner.run."""
        session = self.session
        if session is None:
            raise EngineError(f"{self.spec.name}: this runner is closed")
        batch = check_inputs(self.spec, inputs)
        # onnxruntime reads and writes these in place. An output of its own making would keep a part of the
        # arena from being freed for as long as the caller holds it.
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        outputs = output_arrays(self.spec, batch)
        try:
            binding = session.io_binding()
            for name, array in held.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding, self.run_options)
        except self.errors as error:
            raise EngineError(f"{self.spec.name}: onnxruntime failed: {first_line(error)}") from error
        return outputs

    def close(self) -> None:
        """Frees the session."""
        self.session = None

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(
        self, path: Path, provider: str, provider_options: dict[str, str], threads: int, fixed_batch: int | None
    ) -> Any:
        onnxruntime = self._onnxruntime
        available = onnxruntime.get_available_providers()
        if provider not in available:
            # Unchecked, onnxruntime would warn and run on the CPU.
            raise EngineError(f"onnxruntime has no provider {provider!r}: it has {', '.join(available)}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_LEVEL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if fixed_batch is not None:
            options.add_free_dimension_override_by_name(BATCH, fixed_batch)
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=[(provider, provider_options)], enable_fallback=0
            )
        except self.errors as error:
            raise EngineError(
                f"onnxruntime {onnxruntime.__version__} cannot open {path}: {first_line(error)}"
            ) from error
        if session.get_providers()[0] != provider:
            raise EngineError(f"onnxruntime could not start its provider {provider} and would use the CPU")
        return session


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingExtraError.for_package("onnxruntime", "cpu") from error
    module: ModuleType = onnxruntime
    return module


def _error_types(onnxruntime: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: two built-in classes, and its own, which share no base but Exception."""
    names = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    own = (kind for kind in names if isinstance(kind, type) and issubclass(kind, Exception))
    return (RuntimeError, ValueError, *own)


def _usable_cpus() -> int:
    # onnxruntime itself counts the machine's cores and ignores how many a container or taskset grants.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_graph(path: Path, spec: NetworkSpec, session: Any) -> None:
    for side, tensors, nodes in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        found = {node.name: node for node in nodes}
        expected = [tensor.name for tensor in tensors]
        if set(found) != set(expected):
            raise EngineMismatchError(f"{path}: expected {side} {', '.join(expected)}, found {', '.join(found)}")
        for tensor in tensors:
            node = found[tensor.name]
            dtype = _DTYPES.get(node.type, node.type)
            if dtype != tensor.dtype or not _same_axes(spec, tensor, node.shape):
                shown = f"{tensor.name} {dtype} {show_shape(node.shape)}"
                raise EngineMismatchError(f"{path}: expected {tensor.describe()}, found {shown}")


def _same_axes(spec: NetworkSpec, tensor: TensorSpec, shape: list[int | str | None]) -> bool:
    if len(shape) != len(tensor.shape):
        return False
    for expected, found in zip(tensor.shape, shape, strict=True):
        if expected == BATCH:
            if isinstance(found, int) and (spec.min_batch, spec.max_batch) != (found, found):
                return False
        elif isinstance(found, int) and found != expected:
            return False
    return True


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
