"""Runs TensorRT plans on torch CUDA tensors: one engine per batch size, one execution context per binding.

Contexts work in memory that this module gives them (USER_MANAGED), shared by everything on one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4seg_engine.cuda_device import cuda_device
from g4seg_engine.errors import EngineError, EngineMismatchError, RunnerInputError
from g4seg_engine.manifest import Manifest
from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec, show_shape
from g4seg_engine.tensorrt_api import import_tensorrt, message_log, new_runtime
from g4seg_engine.tensorrt_artefact import check_artefact, find_artefact, plan_file
from g4seg_engine.tensorrt_memory import SharedMemory, stream_memory
from g4seg_engine.tensors import Enqueue, check_bound

if TYPE_CHECKING:
    import tensorrt as trt
    import torch

Failure = Callable[[str], EngineError]


class TensorRTRunner:
    """A network's TensorRT plans on torch CUDA tensors; see TensorRunner for the contract. Made by `open`.

    Plans are loaded when their batch size is bound: each holds a copy of the weights.
    """

    capturable = True

    def __init__(
        self,
        spec: NetworkSpec,
        plans: Mapping[int, Path],
        rebuild: str,
        stream: torch.cuda.Stream,
        memory: SharedMemory,
    ) -> None:
        self.spec = spec
        self.batch_sizes: tuple[int, ...] = tuple(sorted(plans))
        self._plans = dict(plans)
        self._rebuild = rebuild
        self._stream = stream
        self._memory = memory
        self._trt = import_tensorrt()
        log, self._messages = message_log(self._trt)
        with self._on_device():
            self._runtime: trt.Runtime = new_runtime(self._trt, log, self._messages)
        self._engines: dict[int, trt.ICudaEngine] = {}
        self._bindings: list[_Binding] = []

    @classmethod
    def open(
        cls,
        directory: Path,
        network: str,
        manifest: Manifest,
        stream: torch.cuda.Stream | None,
        *,
        memory: SharedMemory | None = None,
    ) -> TensorRTRunner:
        """Open the plans of one network of a checked engine directory.

        Args:
            directory: the engine directory.
            network: one of NETWORKS.
            manifest: the directory's manifest.
            stream: the CUDA stream to launch on; not the default stream, which cannot be captured.
            memory: working memory, shared only with what runs on the same stream; by default the stream's own.

        Raises:
            MissingExtraError: TensorRT or PyTorch is not installed.
            EngineMismatchError: the plans were built for another TensorRT, GPU or ONNX graph.
            EngineError: the engine has no plans, or there is no usable GPU.
        """
        artefact = find_artefact(directory, manifest, network)
        if stream is None:
            raise EngineError("TensorRT engines run on an NVIDIA GPU: use --device cuda, or --backend onnxruntime")
        version = import_tensorrt().__version__
        check_artefact(directory, manifest, artefact, version, cuda_device(stream.device.index))
        return cls(
            manifest.spec(network),
            {batch: directory / plan_file(network, batch) for batch in artefact.batch_sizes},
            manifest.build_command,
            stream,
            memory or stream_memory(stream),
        )

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> Enqueue:
        """See TensorRunner.bind. The batch size must be one of `batch_sizes`."""
        device = self._stream.device
        batch = check_bound(self.spec, tensors, device.type)
        if batch not in self._plans:
            built = ", ".join(map(str, self.batch_sizes))
            raise RunnerInputError(f"{self.spec.name}: no engine for batch size {batch}, there are {built}")
        for name, tensor in tensors.items():
            if tensor.device != device:
                raise RunnerInputError(f"{self.spec.name}: {name} is on {tensor.device}, expected on {device}")
        with self._on_device(), self._memory_errors(batch):
            engine = self._engine(batch)
            context = self._context(engine, batch)
            for name, tensor in tensors.items():
                if not context.set_tensor_address(name, tensor.data_ptr()):
                    raise self._failure(batch, f"refused the address of {name}")
            binding = _Binding(context, tensors, self._stream, self._memory, lambda what: self._failure(batch, what))
            self._memory.add(binding, engine.device_memory_size_v2)
        self._bindings.append(binding)
        return binding

    def close(self) -> None:
        """Free engines and contexts. What `bind` returned raises EngineError from now on."""
        for binding in self._bindings:
            binding.close()
        self._bindings.clear()
        self._engines.clear()

    def _engine(self, batch: int) -> trt.ICudaEngine:
        if batch not in self._engines:
            path = self._plans[batch]
            self._messages.clear()
            try:
                plan = path.read_bytes()
            except OSError as error:
                raise EngineError(f"{path} cannot be read: {error.strerror}; {self._build_again()}") from error
            engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                if self._messages.out_of_memory():
                    raise self._failure(batch, "could not load the plan")
                raise EngineMismatchError(
                    f"{path} is damaged or no TensorRT plan ({self._messages.last()}); {self._build_again()}"
                )
            _check_tensors(self._trt, path, engine, self.spec, batch)
            self._engines[batch] = engine
        return self._engines[batch]

    def _context(self, engine: trt.ICudaEngine, batch: int) -> trt.IExecutionContext:
        self._messages.clear()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context: trt.IExecutionContext | None = engine.create_execution_context(strategy)
        if context is None:
            raise self._failure(batch, "could not make an execution context")
        return context

    def _failure(self, batch: int, what: str) -> EngineError:
        """The error for something that TensorRT would not do, in TensorRT's own words."""
        if self._messages.out_of_memory():
            return self._no_memory(batch)
        return EngineError(f"{self.spec.name}: TensorRT {what}: {self._messages.last()}")

    def _no_memory(self, batch: int) -> EngineError:
        smaller = [size for size in self.batch_sizes if size < batch]
        advice = f"try --batch-size {smaller[-1]}" if smaller else "close what else runs on the GPU"
        return EngineError(f"{self.spec.name}: out of GPU memory at batch size {batch}; {advice}")

    def _build_again(self) -> str:
        return f"build it again with: {self._rebuild}"

    @contextmanager
    def _memory_errors(self, batch: int) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise self._no_memory(batch) from error

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        # TensorRT loads onto whatever GPU is current.
        import torch

        if self._stream.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self._stream.device):
            yield


class _Binding:
    """One execution context with its tensors; calling it launches the network."""

    def __init__(
        self,
        context: trt.IExecutionContext,
        tensors: Mapping[str, torch.Tensor],
        stream: torch.cuda.Stream,
        memory: SharedMemory,
        failure: Failure,
    ) -> None:
        import torch

        self._context: trt.IExecutionContext | None = context
        self._tensors = dict(tensors)  # the context only has their addresses
        self._handle = int(stream.cuda_stream)
        self._memory = memory
        self._failure = failure
        self._capturing = torch.cuda.is_current_stream_capturing if stream.device.type == "cuda" else lambda: False

    def __call__(self) -> None:
        context = self._context
        if context is None:
            raise EngineError("this TensorRT runner is closed")
        if self._capturing():
            self._memory.pin()
        if not context.execute_async_v3(self._handle):
            raise self._failure("could not launch the network")

    def use_memory(self, address: int, size: int) -> None:
        """See MemoryUser."""
        if self._context is not None:
            self._context.set_device_memory(address, size)

    def close(self) -> None:
        self._context = None
        self._tensors.clear()
        self._memory.remove(self)


def _check_tensors(trt: Any, path: Path, engine: trt.ICudaEngine, spec: NetworkSpec, batch: int) -> None:
    """Check names, dtypes and shapes of a loaded engine.

    Raises:
        EngineMismatchError: the plan is of another network or batch size.
    """
    dtypes = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.INT64: "int64"}
    found = set()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = dtypes.get(engine.get_tensor_dtype(name), str(engine.get_tensor_dtype(name)))
        side = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        found.add(f"{side} {name} {dtype} {show_shape(engine.get_tensor_shape(name))}")
    expected = {_show("input", tensor, batch) for tensor in spec.inputs}
    expected |= {_show("output", tensor, batch) for tensor in spec.outputs}
    if found != expected:
        raise EngineMismatchError(
            f"{path}: expected {', '.join(sorted(expected - found)) or 'nothing more'}, "
            f"found {', '.join(sorted(found - expected)) or 'nothing more'}"
        )


def _show(side: str, tensor: TensorSpec, batch: int) -> str:
    shape = show_shape(batch if size == BATCH else size for size in tensor.shape)
    return f"{side} {tensor.name} {tensor.dtype} {shape}"
