"""What the GPU benchmark compares: the chain on each backend, and eager PyTorch in half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g4seg_bench.sides import Prepared, Task
from g4seg_engine.manifest import Manifest
from g4seg_engine.spec import NETWORKS, NetworkSpec
from g4seg_engine.tensors import Enqueue, TensorRunner, check_bound
from g4seg_trt.chain import ClassMask
from g4seg_trt.timing import Timings
from g4seg_trt.torch_chain import TorchChain

Floats = NDArray[np.float32]


class ChainSide:
    """The chain: for each of `count` images its encoding and text, then one batch of all their masks."""

    def __init__(self, chain: TorchChain, task: Task, prepared: Prepared) -> None:
        self._chain, self._task, self._prepared = chain, task, prepared
        self.count = chain.batch_size

    def run(self) -> NDArray[np.int64]:
        """Refine; returns the first mask's matches."""
        chain, given = self._chain, self._prepared
        pairs = [
            ClassMask(
                chain.encode_image(given.pixels),
                chain.encode_text(given.one.prompt.input_ids, Timings()),
                given.one.prompt.token_mask,
                given.one.mask,
                given.one.square,
                given.noise,
            )
            for _ in range(self.count)
        ]
        return chain.refine_batch(pairs, self._task.config)[0].indices

    def close(self) -> None:
        """Let go of the networks."""
        self._chain.close()


class EagerSide:
    """Diffusers' modules in half, one image and mask at a time, as a user would run them."""

    count = 1

    def __init__(self, source: Any, manifest: Manifest, task: Task, prepared: Prepared) -> None:
        from g4seg_export.eager import EagerPipeline

        self._pipeline = EagerPipeline(
            source,
            "baseline",
            dense_mode=manifest.image_encoder.dense_mode,
            device="cuda",
            dtype=torch.float16,
            stage_timings=False,
        )
        self._settings = task.eager_settings()
        self._prepared = prepared

    def run(self) -> NDArray[np.int64]:
        """Refine; returns the matches."""
        return self._prepared.refined_by(self._pipeline, self._settings)[0].indices

    def close(self) -> None:
        """Let go of the modules."""
        del self._pipeline


class ModuleRunner:
    """A TensorRunner on one of the modules that are exported: the chain and its CUDA graph, without a compiler."""

    capturable = True
    batch_sizes: tuple[int, ...] = ()

    def __init__(self, module: torch.nn.Module, spec: NetworkSpec) -> None:
        self.spec = spec
        self._module = module

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> Enqueue:
        """See TensorRunner.bind."""
        check_bound(self.spec, tensors, "cuda")
        inputs = [tensors[tensor.name] for tensor in self.spec.inputs]
        output = tensors[self.spec.outputs[0].name]

        def enqueue() -> None:
            with torch.inference_mode():
                output.copy_(self._module(*inputs))

        return enqueue

    def close(self) -> None:
        """Nothing to let go of."""


def module_chain(
    modules: Mapping[str, torch.nn.Module], manifest: Manifest, batch_size: int, *, graphs: bool = True
) -> TorchChain:
    """The chain on torch modules.

    Args:
        modules: by network name, on the GPU.
        manifest: sizes.
        batch_size: pairs in one run.
        graphs: whether to capture CUDA graphs.
    """
    runners: dict[str, TensorRunner] = {name: ModuleRunner(modules[name], manifest.spec(name)) for name in NETWORKS}
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return TorchChain(runners, manifest.dims, batch_size, stream=stream, graphs=graphs)
