"""The five networks: the single owner of tensor names, axes, dtypes, shape ranges and parity tolerances.

Images are RGB in [0, 1]. Float tensors are float32 on the outside, whatever the graph computes in, unless the
engine was built with float16 inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from g4seg_engine.errors import EngineError

NETWORKS: tuple[str, ...] = ("text_encoder", "vae_encoder", "unet", "vae_decoder", "image_encoder")

BATCH = "B"
"""The name of the dynamic batch axis: the number of (image, class) pairs."""

MAX_BATCH = 64
"""The largest batch of pairs in one run. Graphs have no limit; memory and compiled engines do."""

IO_DTYPES: tuple[str, ...] = ("float32", "float16")
"""What the float inputs and outputs of an engine may be."""

DTYPES: tuple[str, ...] = (*IO_DTYPES, "int64")

PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16")
"""What the weights and activations of a graph may be. Half graphs keep named islands in float32."""

PARITY_TOLERANCE = 1e-4
"""Largest allowed max|onnx - torch| / max|torch| of a float32 graph (measured on SD2.1: about 1e-6)."""

PARITY_TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "fp32": dict.fromkeys(NETWORKS, PARITY_TOLERANCE),
    # The graph on ONNX Runtime's CPU. Measured: the miniature, then SD2.1's architecture with random weights.
    "fp16": {
        "text_encoder": 4e-3,  # 3.6e-4, 6.9e-4
        "vae_encoder": 5e-3,  # 2.8e-4, 1.0e-3
        "unet": 2e-3,  # 2.4e-4, 3.8e-4
        "vae_decoder": 6e-3,  # 1.2e-4, 1.2e-3
        "image_encoder": 4e-3,  # 3.1e-4, 7.5e-4
    },
    # The exported torch module in bfloat16; no runtime on a CPU executes the graph.
    "bf16": {
        "text_encoder": 8e-2,  # 8.6e-3, 1.9e-2
        "vae_encoder": 6e-2,  # 3.6e-3, 1.5e-2
        "unet": 3e-2,  # 5.1e-3, 5.4e-3
        "vae_decoder": 8e-2,  # 4.5e-3, 2.0e-2
        "image_encoder": 5e-2,  # 8.3e-3, 1.1e-2
    },
}
"""The same by precision and network, always against the float32 torch module."""

_HALF_IO_TOLERANCE = 1e-3
"""What rounding to float16 outputs may add: half a unit in the last place is 5e-4 of the value."""


@dataclass(frozen=True)
class ModelDims:
    """The sizes from which every tensor shape follows.

    Attributes:
        square: side of the model's square image in pixels (512 for SD2.1 base).
        latent_factor: pixels per latent position along one axis (8).
        latent_channels: channels of the latent (4).
        text_length: token positions of a prompt (77).
        text_width: width of the text embedding (1024).
        feature_width: width of the image encoder's features (512).
        grid: side of the feature grid (32).

    Raises:
        EngineError: a size is not a positive integer, or the square is no multiple of the latent factor.
    """

    square: int
    latent_factor: int
    latent_channels: int
    text_length: int
    text_width: int
    feature_width: int
    grid: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise EngineError(f"model dims: {field.name} is {value!r}, expected a positive integer")
        if self.square % self.latent_factor:
            raise EngineError(
                f"model dims: square {self.square} is not a multiple of latent_factor {self.latent_factor}"
            )

    @property
    def latent_size(self) -> int:
        """Side of the square latent."""
        return self.square // self.latent_factor


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, dtype (one of DTYPES) and shape, where BATCH stands for the batch axis.

    Raises:
        EngineError: another dtype, or an axis that is neither a positive integer nor BATCH.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise EngineError(f"tensor {self.name}: dtype is {self.dtype!r}, expected {' or '.join(DTYPES)}")
        for size in self.shape:
            if size != BATCH and (isinstance(size, (bool, str)) or size < 1):
                raise EngineError(f"tensor {self.name}: axis {size!r}, expected 1 or more, or {BATCH!r}")

    def describe(self) -> str:
        """The tensor as messages show it: ``mask float32 [B, 1, 64, 64]``."""
        return f"{self.name} {self.dtype} {show_shape(self.shape)}"


@dataclass(frozen=True)
class NetworkSpec:
    """What goes into one network and what comes out.

    Attributes:
        name: one of NETWORKS.
        inputs: in graph order.
        outputs: in graph order.
        min_batch: smallest batch in one run.
        max_batch: largest batch in one run. Both are 1 where no axis is BATCH.
        tolerance: largest allowed max|onnx - torch| / max|torch| of each output after export.

    Raises:
        EngineError: if the batch range is empty or starts below 1.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    min_batch: int
    max_batch: int
    tolerance: float

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.max_batch:
            raise EngineError(f"{self.name}: batch range {self.min_batch} to {self.max_batch} makes no sense")


def show_shape(shape: Iterable[object]) -> str:
    """A shape as messages show it: ``[B, 3, 512, 512]``."""
    return f"[{', '.join(str(size) for size in shape)}]"


def network_specs(dims: ModelDims, *, precision: str = "fp32", io_dtype: str = "float32") -> dict[str, NetworkSpec]:
    """The five networks at these sizes, in the order of NETWORKS.

    vae_encoder runs once per image, so its batch is fixed to 1. The noisy latent, the attention bias and all
    normalisation are made inside the graphs: `mask` (per latent position) and `token_mask` (per token) are
    the factors of the bias, `emi_weight` its strength in self- and in cross-attention.

    Args:
        dims: the sizes.
        precision: one of PRECISIONS; decides the tolerances and nothing else.
        io_dtype: dtype of every float input and output, one of IO_DTYPES.

    Raises:
        EngineError: for another precision or dtype.
    """
    for what, value, allowed in (("precision", precision, PRECISIONS), ("I/O dtype", io_dtype, IO_DTYPES)):
        if value not in allowed:
            raise EngineError(f"{what} is {value!r}, expected {' or '.join(allowed)}")

    def floats(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name, io_dtype, shape)

    side = dims.square
    latent_shape = (dims.latent_channels, dims.latent_size, dims.latent_size)
    input_ids = TensorSpec("input_ids", "int64", (BATCH, dims.text_length))
    text_embedding = floats("text_embedding", BATCH, dims.text_length, dims.text_width)
    latent = floats("latent", BATCH, *latent_shape)
    denoised = floats("denoised", BATCH, *latent_shape)
    image = floats("image", BATCH, 3, side, side)
    features = floats("features", BATCH, dims.feature_width, dims.grid, dims.grid)
    unet_inputs = (
        latent,
        floats("noise", BATCH, *latent_shape),
        TensorSpec("timestep", "int64", (BATCH,)),
        text_embedding,
        floats("mask", BATCH, 1, dims.latent_size, dims.latent_size),
        floats("token_mask", BATCH, dims.text_length),
        floats("emi_weight", BATCH, 2),
    )
    tensors: tuple[tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]], ...] = (
        ("text_encoder", (input_ids,), (text_embedding,)),
        ("vae_encoder", (floats("image", 1, 3, side, side),), (floats("latent", 1, *latent_shape),)),
        ("unet", unet_inputs, (denoised,)),
        ("vae_decoder", (latent,), (image,)),
        ("image_encoder", (image,), (features,)),
    )
    least = _HALF_IO_TOLERANCE if io_dtype == "float16" else 0.0
    return {
        name: _network(name, inputs, outputs, max(PARITY_TOLERANCES[precision][name], least))
        for name, inputs, outputs in tensors
    }


def _network(
    name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], tolerance: float
) -> NetworkSpec:
    batched = any(BATCH in tensor.shape for tensor in inputs)
    return NetworkSpec(name, inputs, outputs, 1, MAX_BATCH if batched else 1, tolerance)
