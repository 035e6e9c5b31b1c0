"""Four small convolutions instead of one after doubling: the same numbers, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from g4seg_engine.spec import ModelDims, network_specs
from g4seg_export.examples import example_inputs
from g4seg_export.networks import VaeDecoder
from g4seg_export.onnx_export import export_network
from g4seg_export.parity import compare
from g4seg_export.upsampling import PhaseUpsample, phase_upsampling

DIMS = ModelDims(square=16, latent_factor=2, latent_channels=4, text_length=77, text_width=24, feature_width=10, grid=4)


def make_layer(**options: Any) -> Any:
    torch.manual_seed(0)
    make: Any = Upsample2D
    return make(6, use_conv=True, out_channels=5, **options).eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3), (8, 8)])
def test_it_equals_doubling_and_convolving_everywhere(size: tuple[int, int]) -> None:
    layer = make_layer()
    image = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(PhaseUpsample(layer)(image), layer(image), atol=1e-6, rtol=1e-5)


def test_other_output_sizes_take_the_original_way() -> None:
    layer = make_layer()
    image = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(PhaseUpsample(layer)(image, (7, 7)), layer(image, (7, 7)))


def test_the_very_modules_come_back(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    before = {name: id(part) for name, part in unet.named_modules()}
    with phase_upsampling(unet):
        assert sum(isinstance(part, PhaseUpsample) for part in unet.modules()) == 1
    assert {name: id(part) for name, part in unet.named_modules()} == before
    with pytest.raises(RuntimeError, match="stop"), phase_upsampling(unet):
        raise RuntimeError("stop")
    assert {name: id(part) for name, part in unet.named_modules()} == before


@pytest.mark.parametrize("options", [{"use_conv_transpose": True}, {"norm_type": "ln_norm"}, {"kernel_size": 5}])
def test_other_layers_are_left_alone(options: dict[str, Any]) -> None:
    root = torch.nn.Sequential(make_layer(**options))
    with phase_upsampling(root):
        assert not any(isinstance(part, PhaseUpsample) for part in root.modules())


def test_the_decoder_exports_without_resizing(vae: Any, tmp_path: Path) -> None:
    spec = network_specs(DIMS)["vae_decoder"]
    examples = [example_inputs(spec, batch=batch, seed=batch, vocabulary=2, timesteps=10) for batch in (2, 1)]
    module = VaeDecoder(vae, 0.3).eval()
    path = tmp_path / "vae_decoder.onnx"
    with phase_upsampling(module):
        export_network(module, spec, examples[0], path)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "DepthToSpace" in operators
    assert "Resize" not in operators
    assert compare(path, spec, module, *examples)["relative"] < 1e-5
