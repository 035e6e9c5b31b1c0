"""Seeded inputs with sane values for every network: what graphs are traced with and compared on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec

Arrays = dict[str, NDArray[Any]]


def example_inputs(spec: NetworkSpec, *, batch: int, seed: int, vocabulary: int, timesteps: int) -> Arrays:
    """One array per input of `spec`.

    Images are uniform in [0, 1]; the mask is a rectangle and the token mask a run of tokens, both 0 or 1, so
    that injection takes part; its weights differ between self and cross and between batch elements.

    Args:
        spec: the network.
        batch: size of the batch axis, where there is one.
        seed: of the generator.
        vocabulary: token ids are below this.
        timesteps: timesteps are below this.
    """
    generator = np.random.default_rng(seed)
    return {
        tensor.name: _example(tensor, batch, generator, vocabulary, timesteps).astype(tensor.dtype)
        for tensor in spec.inputs
    }


def _example(
    tensor: TensorSpec, batch: int, generator: np.random.Generator, vocabulary: int, timesteps: int
) -> NDArray[Any]:
    shape = tuple(batch if size == BATCH else int(size) for size in tensor.shape)
    if tensor.name == "input_ids":
        return generator.integers(0, vocabulary, shape)
    if tensor.name == "timestep":
        return generator.integers(timesteps // 5, timesteps * 3 // 5, shape)
    if tensor.name == "image":
        return generator.random(shape)
    if tensor.name == "mask":
        mask = np.zeros(shape)
        side = shape[-1]
        mask[..., side // 4 : side - side // 4, side // 8 : side // 2 + 1] = 1.0
        return mask
    if tensor.name == "token_mask":
        tokens = np.zeros(shape)
        tokens[:, 4:6] = 1.0
        return tokens
    if tensor.name == "emi_weight":
        return generator.uniform(0.5, 2.0, shape)
    return generator.standard_normal(shape)
