"""The chain on torch tensors: fixed buffers, all networks on one stream, and one CUDA graph per setting.

A batch of pairs is copied in, one replay runs UNet, VAE decoder, image encoder and correspondence, and the results are
copied out: between networks nothing is allocated, copied or waited for. Where a graph cannot be captured the same
launches are made one by one. On a CPU it runs without a stream, which is what its tests do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g4seg_engine.cuda_device import cuda_device
from g4seg_engine.manifest import Manifest
from g4seg_engine.spec import BATCH, NETWORKS, ModelDims, TensorSpec
from g4seg_engine.tensors import Enqueue, TensorRunner, no_memory, open_tensor_runner
from g4seg_trt.arrays import Array, Floats, Ints
from g4seg_trt.chain import (
    BATCHED,
    ClassMask,
    EncodedImage,
    Refined,
    check_batch_size,
    check_count,
    check_finite,
    filled,
    positions_within,
)
from g4seg_trt.config import RefineConfig
from g4seg_trt.correspondence.op import refine_correspondence
from g4seg_trt.errors import EngineError
from g4seg_trt.geometry import pool_to_grid
from g4seg_trt.injection import emi_weight
from g4seg_trt.timing import NETWORKS as STAGE
from g4seg_trt.timing import TEXT, Timings

logger = logging.getLogger(__name__)

_GRAPHS = 8
Setting = tuple[str, float, int | None]
"""What is baked into the launches: resolution, beta, radius in positions."""


@dataclass(frozen=True)
class _Step:
    """What a batch runs, and where the correspondences of each pair come out."""

    launch: Callable[[], None]
    refined: list[torch.Tensor]
    indices: list[torch.Tensor]
    similarities: list[torch.Tensor]


class TorchChain:
    """Five networks on torch tensors; see Chain for the contract.

    `encode_image` and `encode_text` return tensors on the device, for this chain alone.

    Args:
        runners: network name -> TensorRunner, all five. Their owner closes them, unless `open` made them.
        dims: the model's sizes.
        batch_size: pairs in one run.
        stream: that the runners launch on; None on a CPU.
        graphs: whether to capture CUDA graphs.

    Raises:
        ConfigError: if the batch size is outside what the networks take.
    """

    def __init__(
        self,
        runners: Mapping[str, TensorRunner],
        dims: ModelDims,
        batch_size: int = 1,
        *,
        stream: torch.cuda.Stream | None = None,
        graphs: bool = True,
    ) -> None:
        check_batch_size(batch_size, min(runners[name].spec.max_batch for name in BATCHED))
        self.dims = dims
        self.batch_size = batch_size
        self._stream = stream
        self._device = torch.device("cpu") if stream is None else stream.device
        self._graphs = graphs and stream is not None and all(runner.capturable for runner in runners.values())
        self._owned = ExitStack()
        self._steps: dict[Setting, _Step] = {}
        with self._room(), self._on_stream():
            self._text, self._encode_text = self._bound(runners, {"text_encoder": 1})
            self._picture, self._encode_picture = self._bound(runners, {"vae_encoder": 1, "image_encoder": 1})
            batched = dict.fromkeys(BATCHED, batch_size)
            self._batch, self._generate = self._bound(runners, batched, {("vae_decoder", "latent"): "denoised"})
            s, g = dims.square, dims.grid
            self._originals = self._empty(runners["image_encoder"].spec.outputs[0], batch_size)
            self._pooled = torch.zeros((batch_size, g, g), device=self._device)
            self._squares = torch.zeros((batch_size, s, s), device=self._device)
            self._searched = torch.ones((batch_size, s, s), dtype=torch.bool, device=self._device)
            self._finite = torch.ones(3, dtype=torch.bool, device=self._device)

    @classmethod
    def open(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        backend: str,
        device: str = "cuda",
        batch_size: int | None = None,
        threads: int | None = None,
        graphs: bool = True,
        own_graphs: bool = False,
    ) -> TorchChain:
        """Open the five networks of an engine directory; `close` closes them.

        Args:
            directory: the engine directory, checked.
            manifest: its manifest.
            backend: "tensorrt" or "onnxruntime".
            device: "cuda", "cuda:1" and so on, or "cpu".
            batch_size: pairs in one run; None, or more than was built, for the largest that was built (1 where any
                would do).
            threads: CPU threads, where there are any.
            graphs: whether to capture CUDA graphs over all networks, where they can be captured.
            own_graphs: whether ONNX Runtime, whose networks cannot, captures one of its own for each.

        Raises:
            ConfigError: if the batch size is outside what the networks take.
            EngineError: if there is no such device, or a network cannot be opened.
            MissingExtraError: if the backend is not installed.
        """
        if batch_size is not None:
            check_batch_size(batch_size)
        stream = None if device == "cpu" else _stream(device)
        kind = "cpu" if stream is None else "cuda"
        with ExitStack() as stack:
            runners: dict[str, TensorRunner] = {}
            for name in NETWORKS:
                runners[name] = open_tensor_runner(
                    directory, name, backend, stream, manifest, device=kind, threads=threads, own_graphs=own_graphs
                )
                stack.enter_context(closing(runners[name]))
            chain = cls(runners, manifest.dims, _built(runners, batch_size), stream=stream, graphs=graphs)
            chain._owned = stack.pop_all()
        return chain

    def wait_until_open(self) -> None:
        """Nothing to wait for: `open` has loaded everything."""

    def close(self) -> None:
        """Close the networks that `open` opened, and let go of buffers and launches, which hold all the others."""
        self._steps.clear()
        for buffers in (self._text, self._picture, self._batch):
            buffers.clear()
        self._encode_text = self._encode_picture = self._generate = _closed
        self._owned.close()

    def encode_text(self, input_ids: Ints, timings: Timings) -> torch.Tensor:
        """int64 [length] -> text embedding [length,C] on the device."""
        with timings.stage(TEXT), self._room(), self._on_stream():
            self._fill(self._text["input_ids"], input_ids[None])
            self._encode_text()
            embedding = self._text["text_embedding"][0].clone()
            # Still on the chain's stream: another one would not wait for the encoder.
            check_finite("text_encoder", bool(torch.isfinite(embedding).all()))
        return embedding

    def encode_image(self, image: Floats) -> EncodedImage:
        """RGB float32 [3,s,s] in [0,1] -> latent and features, on the device.

        Raises:
            EngineError: if a network returns values that are not finite.
        """
        timings = Timings()
        with timings.stage(STAGE), self._room(), self._on_stream():
            self._fill(self._picture["image"], image[None])
            self._encode_picture()
            latent, features = (self._picture[name][0].clone() for name in ("latent", "features"))
            for network, values in (("vae_encoder", latent), ("image_encoder", features)):
                check_finite(network, bool(torch.isfinite(values).all()))
        return EncodedImage(latent, features, timings)

    def refine_batch(self, pairs: Sequence[ClassMask], config: RefineConfig) -> list[Refined]:
        """One to `batch_size` pairs; see Chain.

        Raises:
            ValueError: for another number of pairs.
            EngineError: if a network returns values that are not finite, or the device fails or is out of memory.
        """
        check_count(pairs, self.batch_size)
        timings = Timings()
        with timings.stage(STAGE), self._room(), self._on_stream():
            self._fill_batch(filled(pairs, self.batch_size), config)
            step = self._step(config)
            step.launch()
            results = self._results(pairs, config, step)
        share = timings.shared_by(len(pairs))
        for result in results:
            result.timings.add(share)
        return results

    def _fill_batch(self, entries: Sequence[ClassMask], config: RefineConfig) -> None:
        batch = self._batch
        for row, pair in enumerate(entries):
            batch["latent"][row].copy_(pair.encoded.latent)
            batch["text_embedding"][row].copy_(pair.text_embedding)
            self._originals[row].copy_(pair.encoded.features)
        for name, rows in (
            ("noise", [pair.noise for pair in entries]),
            ("mask", [pair.mask for pair in entries]),
            ("token_mask", [pair.token_mask for pair in entries]),
            ("emi_weight", [emi_weight(config)] * len(entries)),
        ):
            self._fill(batch[name], np.stack(rows))
        self._fill(batch["timestep"], np.full(len(entries), config.timestep, dtype=np.int64))
        if config.resolution == "pixel":
            everywhere = np.ones((self.dims.square,) * 2, dtype=np.bool_)
            self._fill(self._squares, np.stack([pair.probability for pair in entries]))
            searched = [everywhere if pair.searched is None else pair.searched for pair in entries]
            self._fill(self._searched, np.stack(searched))
        else:
            self._fill(self._pooled, np.stack([pool_to_grid(p.probability, self.dims.grid) for p in entries]))

    def _results(self, pairs: Sequence[ClassMask], config: RefineConfig, step: _Step) -> list[Refined]:
        before = self._squares if config.resolution == "pixel" else self._pooled
        self._check_batch()
        count = len(pairs)
        # One copy of each kind: every copy waits for the device.
        refined, indices, similarities = (
            torch.stack(rows[:count]) for rows in (step.refined, step.indices, step.similarities)
        )
        downloads = (refined - before[:count], indices, similarities, self._batch["image"], self._batch["denoised"])
        residual, found, cosines, generated, denoised = (_to_host(tensor[:count]) for tensor in downloads)
        return [Refined(residual[row], found[row], cosines[row], generated[row], denoised[row]) for row in range(count)]

    def _step(self, config: RefineConfig) -> _Step:
        side = self.dims.square if config.resolution == "pixel" else self.dims.grid
        radius = positions_within(config.radius, side)
        setting = (config.resolution, config.beta, radius)
        if setting not in self._steps:
            if len(self._steps) >= _GRAPHS:
                del self._steps[next(iter(self._steps))]
            self._steps[setting] = self._captured(setting) if self._graphs else self._plain(setting)
        return self._steps[setting]

    def _plain(self, setting: Setting) -> _Step:
        step = _Step(lambda: self._launch(setting, step), [], [], [])
        return step

    def _launch(self, setting: Setting, step: _Step) -> None:
        self._generate()
        for place, name in enumerate(("denoised", "image", "features")):
            self._finite[place] = torch.isfinite(self._batch[name]).all()
        if self._stream is None:
            self._check_batch()
        resolution, beta, radius = setting
        values = self._squares if resolution == "pixel" else self._pooled
        outputs = (step.refined, step.indices, step.similarities)
        for output in outputs:
            output.clear()
        for row in range(self.batch_size):
            found = refine_correspondence(
                self._batch["features"][row],
                self._originals[row],
                values[row],
                beta,
                where=self._searched[row] if resolution == "pixel" else None,
                radius=radius,
                matches=True,
                check_finite=False,
            )
            for output, tensor in zip(outputs, found, strict=True):
                output.append(tensor)

    def _captured(self, setting: Setting) -> _Step:
        """The launches of one batch as a CUDA graph, or one by one if it cannot be captured."""
        step = self._plain(setting)
        step.launch()  # compiles kernels and fills caches, which a capture must not
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                step.launch()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, EngineError) as error:
            # The end of a broken capture raises as well; what broke it came first.
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            reason = next(iter(str(first).splitlines()), type(first).__name__)
            logger.warning("no CUDA graph (%s): launching one by one, which is slower", reason)
            self._graphs = False
            return self._plain(setting)
        return _Step(graph.replay, step.refined, step.indices, step.similarities)

    def _bound(
        self,
        runners: Mapping[str, TensorRunner],
        batches: Mapping[str, int],
        sources: Mapping[tuple[str, str], str] | None = None,
    ) -> tuple[dict[str, torch.Tensor], Enqueue]:
        """Buffers by tensor name, shared by networks that name the same, and a function that enqueues all."""
        buffers: dict[str, torch.Tensor] = {}
        enqueues = []
        for network, batch in batches.items():
            runner = runners[network]
            tensors = {}
            for tensor in (*runner.spec.inputs, *runner.spec.outputs):
                name = (sources or {}).get((network, tensor.name), tensor.name)
                if name not in buffers:
                    buffers[name] = self._empty(tensor, batch)
                tensors[tensor.name] = buffers[name]
            enqueues.append(runner.bind(tensors))

        def enqueue() -> None:
            for one in enqueues:
                one()

        return buffers, enqueue

    def _empty(self, tensor: TensorSpec, batch: int) -> torch.Tensor:
        shape = [batch if size == BATCH else int(size) for size in tensor.shape]
        return torch.zeros(shape, dtype=getattr(torch, tensor.dtype), device=self._device)

    def _fill(self, tensor: torch.Tensor, values: Array) -> None:
        source = torch.from_numpy(np.ascontiguousarray(values))
        if self._stream is None:
            tensor.copy_(source)
            return
        # Pinned memory is copied without waiting; torch keeps it until the stream has passed.
        tensor.copy_(source.pin_memory(), non_blocking=True)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Says what to do where the device's memory ends."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EngineError(no_memory(self.batch_size)) from error

    def _on_stream(self) -> Any:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _check_batch(self) -> None:
        for network, finite in zip(BATCHED, self._finite.tolist(), strict=True):
            check_finite(network, finite)


def _closed() -> None:
    raise EngineError("this chain is closed")


def _to_host(tensor: torch.Tensor) -> Array:
    """A copy that belongs to the caller, also where the tensor is on a CPU already."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    array: Array = tensor.to("cpu", dtype, copy=True).numpy()
    return array


def _built(runners: Mapping[str, TensorRunner], wanted: int | None) -> int:
    """The batch size to run with: as wanted, or the next smaller that every network was built for."""
    built = [set(runners[name].batch_sizes) for name in BATCHED if runners[name].batch_sizes]
    if not built:
        return 1 if wanted is None else wanted
    sizes = sorted(set.intersection(*built))
    if not sizes:
        raise EngineError("the networks of this engine were built for different batch sizes; build it again")
    return max([size for size in sizes if wanted is None or size <= wanted], default=sizes[0])


def _stream(device: str) -> torch.cuda.Stream:
    index = torch.device(device).index
    found = cuda_device(index)
    return torch.cuda.Stream(device=found.index)  # type: ignore[no-untyped-call]
