"""Dense CLIP features against references that share nothing with the encoder but the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from g4seg_export.errors import ExportError
from g4seg_export.image_encoder import DENSE_MODES, ImageEncoder, interpolated_positions, resize_matrix

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])


def layer_norm(x: NDArray[np.float64], layer: Any) -> NDArray[np.float64]:
    weight, bias = (value.detach().double().numpy() for value in (layer.weight, layer.bias))
    centred = x - x.mean(-1, keepdims=True)
    normed: NDArray[np.float64] = centred / np.sqrt(x.var(-1, keepdims=True) + layer.eps) * weight + bias
    return normed


def linear(x: NDArray[np.float64], layer: Any) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x @ layer.weight.detach().double().numpy().T
    return result if layer.bias is None else result + layer.bias.detach().double().numpy()


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents = np.exp(x - x.max(-1, keepdims=True))
    result: NDArray[np.float64] = exponents / exponents.sum(-1, keepdims=True)
    return result


def block_by_hand(block: Any, hidden: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    attention = block.self_attn
    normed = layer_norm(hidden, block.layer_norm1)
    query, key, value = (linear(normed, getattr(attention, f"{name}_proj")) for name in "qkv")
    if mode != "maskclip":
        width = attention.head_dim
        heads = []
        for start in range(0, value.shape[-1], width):
            q, k, v = (x[:, start : start + width] for x in (query, key, value))
            pairs = [(q, k)] if mode == "last" else [(q, q), (k, k)]
            heads.append(sum(softmax(a @ b.T / np.sqrt(width)) for a, b in pairs) @ v)
        value = np.concatenate(heads, axis=1)
    hidden = hidden + linear(value, attention.out_proj)
    inner = linear(layer_norm(hidden, block.layer_norm2), block.mlp.fc1)
    inner = inner / (1 + np.exp(-1.702 * inner))  # quick GELU, CLIP's default
    return hidden + linear(inner, block.mlp.fc2)


def features_by_hand(model: Any, image: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    """float64 [3,s,s] -> [P,g,g], for an image of the size that the model was trained at."""
    vision, patch = model.vision_model, model.config.patch_size
    grid = image.shape[-1] // patch
    pixels = (image - MEAN[:, None, None]) / DEVIATION[:, None, None]
    kernel = vision.embeddings.patch_embedding.weight.detach().double().numpy().reshape(-1, 3 * patch * patch)
    patches = [
        kernel @ pixels[:, row : row + patch, column : column + patch].ravel()
        for row in range(0, grid * patch, patch)
        for column in range(0, grid * patch, patch)
    ]
    first = vision.embeddings.class_embedding.detach().double().numpy()
    positions = vision.embeddings.position_embedding.weight.detach().double().numpy()
    hidden = layer_norm(np.array([first, *patches]) + positions, vision.pre_layrnorm)
    *blocks, last = vision.encoder.layers
    for block in blocks:
        hidden = block_by_hand(block, hidden, "last")
    hidden = block_by_hand(last, hidden, mode)
    tokens = linear(layer_norm(hidden[1:], vision.post_layernorm), model.visual_projection)
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    result: NDArray[np.float64] = tokens.T.reshape(-1, grid, grid)
    return result


@pytest.mark.parametrize("mode", DENSE_MODES)
def test_dense_modes_equal_clip_written_out_in_float64(mode: str, make_vision: Callable[..., Any]) -> None:
    model = make_vision()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        actual = ImageEncoder(model, 16, mode)(images).numpy()
    expected = [features_by_hand(model, image.double().numpy(), mode) for image in images]
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_dense_modes_differ(make_vision: Callable[..., Any]) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = make_vision()
    with torch.inference_mode():
        last, maskclip, csa = (ImageEncoder(model, 16, mode)(image) for mode in DENSE_MODES)
    assert (last - maskclip).abs().max() > 1e-2
    assert (last - csa).abs().max() > 1e-2
    assert (maskclip - csa).abs().max() > 1e-2


def test_another_square_interpolates_positions_like_the_library(make_vision: Callable[..., Any]) -> None:
    model = make_vision()
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    encoder = ImageEncoder(model, 24, "last")
    pixels = (image - encoder.mean) / encoder.deviation
    with torch.inference_mode():
        hidden = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        tokens = model.visual_projection(model.vision_model.post_layernorm(hidden))
        actual = encoder(image)
    expected = F.normalize(tokens, dim=-1).transpose(1, 2).reshape(1, -1, 6, 6)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_features_have_unit_norm(make_vision: Callable[..., Any]) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        features = ImageEncoder(make_vision(), 16, "csa")(image)
    assert features.shape == (2, 10, 4, 4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 4, 4))


def test_a_square_of_whole_patches_is_not_resized(make_vision: Callable[..., Any]) -> None:
    model = make_vision()
    assert not ImageEncoder(model, 20, "last").resized
    assert ImageEncoder(model, 22, "last").resized
    assert ImageEncoder(model, 22, "last").grid == 5


def test_the_resize_is_antialiased_bicubic() -> None:
    image = np.random.default_rng(0).random((30, 30), dtype=np.float32)
    matrix = resize_matrix(30, 28).numpy()
    expected = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-5)


def test_the_trained_grid_keeps_its_positions() -> None:
    weight = torch.randn(17, 6)
    assert torch.equal(interpolated_positions(weight, 4)[0], weight)
    assert torch.equal(interpolated_positions(weight, 7)[0, 0], weight[0])


@pytest.mark.parametrize(("square", "mode", "message"), [(16, "first", "dense mode"), (3, "last", "patch")])
def test_what_cannot_be_encoded_is_refused(
    square: int, mode: str, message: str, make_vision: Callable[..., Any]
) -> None:
    with pytest.raises(ExportError, match=message):
        ImageEncoder(make_vision(), square, mode)
