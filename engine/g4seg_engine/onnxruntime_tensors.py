"""ONNX Runtime on torch tensors: IO binding to fixed addresses, launched on the chain's own CUDA stream.

On CUDA one session is opened per bound batch size, with that size written into the graph: shapes then are constants,
and nothing is left for the CPU between two kernels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from g4seg_engine.errors import EngineError, first_line
from g4seg_engine.onnxruntime_runner import CPU_PROVIDER, CUDA_PROVIDER, OnnxRuntimeRunner
from g4seg_engine.spec import NetworkSpec
from g4seg_engine.tensors import Enqueue, check_bound, no_memory

if TYPE_CHECKING:
    import torch


_OUT_OF_MEMORY = re.compile("failed to allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


class OnnxRuntimeTensorRunner:
    """A network on ONNX Runtime and torch tensors; see TensorRunner for the contract.

    Args:
        path: the .onnx file; external data is looked up beside it.
        spec: what the graph must offer.
        stream: the CUDA stream to launch on; None on a CPU.
        device: "cuda" or "cpu".
        threads: CPU threads, or None for as many as this process may use.
        cuda_graph: let ONNX Runtime capture its own CUDA graph in the second run of each binding and replay it
            after that.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the provider is not there, or onnxruntime refuses the graph.
        EngineMismatchError: the graph's inputs or outputs differ from the spec.
    """

    # Its sessions allocate while they run, which torch's capture does not allow.
    capturable = False
    batch_sizes: tuple[int, ...] = ()

    def __init__(
        self,
        path: Path,
        spec: NetworkSpec,
        stream: torch.cuda.Stream | None,
        *,
        device: str = "cuda",
        threads: int | None = None,
        cuda_graph: bool = False,
    ) -> None:
        self.spec = spec
        self._path = path
        self._device = device
        self._threads = threads
        self._index = 0 if stream is None else stream.device_index
        self._options: dict[str, str] = {}
        if stream is not None:
            self._options = {
                "device_id": str(self._index),
                "user_compute_stream": str(stream.cuda_stream),
                "enable_cuda_graph": str(int(cuda_graph)),
                # Each session has an arena of its own: none takes twice what it needs.
                "arena_extend_strategy": "kSameAsRequested",
            }
        self._runners: dict[int, OnnxRuntimeRunner] = {}
        if device == "cpu":
            self._runner(1)  # what is wrong with the graph shows now

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> Enqueue:
        """See TensorRunner.bind."""
        batch = check_bound(self.spec, tensors, self._device)
        runner = self._runner(batch)
        session, options, errors = runner.session, runner.run_options, runner.errors
        binding: Any = session.io_binding()
        # The binding keeps addresses; these keep what lies there.
        held = dict(tensors)
        for tensor in self.spec.inputs:
            self._place(binding.bind_input, tensor.name, held[tensor.name])
        for tensor in self.spec.outputs:
            self._place(binding.bind_output, tensor.name, held[tensor.name])

        def enqueue() -> None:
            try:
                session.run_with_iobinding(binding, options)
            except errors as error:
                if _OUT_OF_MEMORY.search(str(error)):
                    raise EngineError(f"{self.spec.name}: {no_memory(batch)}") from error
                raise EngineError(f"{self.spec.name}: onnxruntime failed: {first_line(error)}") from error

        return enqueue

    def close(self) -> None:
        """Free the sessions. What `bind` returned must not be used any more."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    def _place(self, bind: Any, name: str, tensor: torch.Tensor) -> None:
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        bind(name, self._device, self._index, dtype, tuple(tensor.shape), tensor.data_ptr())

    def _runner(self, batch: int) -> OnnxRuntimeRunner:
        key = batch if self._device == "cuda" else 0
        if key not in self._runners:
            cuda = self._device == "cuda"
            runner = OnnxRuntimeRunner(
                self._path,
                self.spec,
                CUDA_PROVIDER if cuda else CPU_PROVIDER,
                self._threads,
                self._options,
                batch if cuda else None,
            )
            if cuda:
                # The chain waits once, at its end.
                runner.run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            self._runners[key] = runner
        return self._runners[key]
