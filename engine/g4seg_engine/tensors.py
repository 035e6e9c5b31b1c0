"""Networks on torch tensors: bound once to fixed buffers, then enqueued again and again.

A TensorRunner is what the GPU chain is made of. Binding gives a network the addresses of its inputs and outputs;
enqueueing it launches the network on the chain's stream and returns at once. Nothing is copied or allocated between
networks, so all of them together can be captured as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from g4seg_engine.errors import EngineError, RunnerInputError
from g4seg_engine.manifest import Manifest
from g4seg_engine.runner import check_inputs
from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec, show_shape

if TYPE_CHECKING:
    import torch

Enqueue = Callable[[], None]

TENSOR_BACKENDS = ("onnxruntime", "tensorrt")
"""The backends that run on torch tensors."""


class TensorRunner(Protocol):
    """One network on torch tensors.

    Attributes:
        spec: names, dtypes, shapes and batch range of inputs and outputs.
        batch_sizes: the batch sizes it can be bound to, ascending; empty for every one in the spec's range.
        capturable: whether what `bind` returns may be captured in a CUDA graph of torch's.
    """

    spec: NetworkSpec
    batch_sizes: tuple[int, ...]
    capturable: bool

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> Enqueue:
        """Bind every input and output to a contiguous tensor on the runner's device.

        Args:
            tensors: exactly the spec's inputs and outputs by name; all of one batch size. They must stay alive and
                where they are for as long as the returned function is used.

        Returns:
            A function that launches the network on the runner's stream, reading and writing these tensors, without
            waiting for it. After an error it raises EngineError.

        Raises:
            RunnerInputError: for a name, dtype, shape, device or batch size that does not fit.
            EngineError: if the backend refuses.
        """
        ...

    def close(self) -> None:
        """Free the network. Closing twice is fine."""
        ...


def open_tensor_runner(
    directory: str | Path,
    network: str,
    backend: str,
    stream: torch.cuda.Stream | None,
    manifest: Manifest,
    *,
    device: str = "cuda",
    threads: int | None = None,
    own_graphs: bool = False,
) -> TensorRunner:
    """Open one network of a checked engine directory on torch tensors.

    Args:
        directory: the engine directory.
        network: one of NETWORKS.
        backend: one of TENSOR_BACKENDS.
        stream: the CUDA stream that the network is launched on; None on a CPU.
        manifest: the directory's manifest.
        device: "cuda", or "cpu" for onnxruntime.
        threads: CPU threads of onnxruntime.
        own_graphs: whether onnxruntime captures a CUDA graph of its own for each binding.

    Raises:
        EngineError: the engine does not fit this machine, or cannot be opened.
        MissingExtraError: the backend is not installed.
    """
    spec = manifest.spec(network)
    if backend == "tensorrt":
        from g4seg_engine.tensorrt_runner import TensorRTRunner

        return TensorRTRunner.open(Path(directory), network, manifest, stream)
    if backend != "onnxruntime":
        raise EngineError(f"unknown backend {backend!r}: choose from {', '.join(TENSOR_BACKENDS)}")
    from g4seg_engine.onnxruntime_tensors import OnnxRuntimeTensorRunner

    graph = Path(directory) / manifest.networks[network].files[0].file
    return OnnxRuntimeTensorRunner(graph, spec, stream, device=device, threads=threads, cuda_graph=own_graphs)


def no_memory(batch: int) -> str:
    """What to say where the GPU's memory ends: the batch size, and what to do."""
    remedy = f"try --batch-size {batch // 2}" if batch > 1 else "close what else uses the GPU"
    return f"the GPU is out of memory at batch size {batch}: {remedy}"


def check_bound(spec: NetworkSpec, tensors: Mapping[str, torch.Tensor], device: str) -> int:
    """Check what is bound to a network; returns the batch size.

    Raises:
        RunnerInputError: for a name, dtype, shape, device or batch size that does not fit, or strides.
    """
    names = {tensor.name for tensor in spec.inputs}
    batch = check_inputs(spec, {name: tensor for name, tensor in tensors.items() if name in names})
    for tensor in (*spec.inputs, *spec.outputs):
        _check_tensor(spec, tensor, tensors.get(tensor.name), batch, device)
    return batch


def _check_tensor(spec: NetworkSpec, expected: TensorSpec, found: torch.Tensor | None, batch: int, device: str) -> None:
    where = f"{spec.name}: {expected.name}"
    shape = tuple(batch if size == BATCH else size for size in expected.shape)
    if found is None:
        raise RunnerInputError(f"{where} is not bound, expected {expected.describe()}")
    if str(found.dtype).removeprefix("torch.") != expected.dtype or tuple(found.shape) != shape:
        shown = f"{str(found.dtype).removeprefix('torch.')} {show_shape(found.shape)}"
        raise RunnerInputError(f"{where} is {shown}, expected {expected.dtype} {show_shape(shape)}")
    if found.device.type != device or not found.is_contiguous():
        raise RunnerInputError(
            f"{where} is on {found.device}, contiguous: {found.is_contiguous()}; expected on {device}"
        )
