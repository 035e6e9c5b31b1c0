"""The range report: what is too loud is found and named, islands are not, and pictures are read with care."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from g4seg_engine.spec import NETWORKS, network_specs
from g4seg_export import fp16_range
from g4seg_export.attention import inject
from g4seg_export.errors import ExportError
from g4seg_export.examples import example_inputs
from g4seg_export.fp16_range import LIMIT, Watch, check_fp16_range
from g4seg_export.image_encoder import ImageEncoder
from g4seg_export.networks import Unet, VaeEncoder
from g4seg_export.sources import load_source


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures of different kinds, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(generator.integers(0, 256, (40, 25), np.uint8)).save(folder / "b.PNG")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def loud_folder(tmp_path: Path, model_folder: Path, vae: Any) -> Path:
    """The miniature with a decoder whose first convolution is 1e5 times as loud; its norms hide it afterwards."""
    folder = tmp_path / "loud"
    shutil.copytree(model_folder, folder)
    weight = vae.decoder.conv_in.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1e5)
        vae.save_pretrained(folder / "vae")
        weight.copy_(kept)
    return folder


def test_a_quiet_model_fits(model_folder: Path, pictures: Path) -> None:
    report = check_fp16_range(str(model_folder), pictures, progress=False)
    assert report.fits
    assert report.images == 2
    assert list(report.networks) == list(NETWORKS)
    assert all(0.1 < network.largest < 1000 and not network.above for network in report.networks.values())
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["limit"] == 32752
    again = check_fp16_range(str(model_folder), pictures, progress=False)
    assert again == report, "the noise is seeded"


def test_a_loud_tensor_is_named(loud_folder: Path, pictures: Path) -> None:
    report = check_fp16_range(str(loud_folder), pictures / "a.png", progress=False)
    assert not report.fits
    assert report.images == 1
    assert [name for name, network in report.networks.items() if network.above] == ["vae_decoder"]
    found = report.networks["vae_decoder"]
    assert "vae.decoder.conv_in (convolution)" in found.above
    magnitudes = list(found.above.values())
    assert magnitudes == sorted(magnitudes, reverse=True)
    assert magnitudes[0] == found.largest == found.above[found.tensor]
    assert min(magnitudes) > LIMIT


@pytest.mark.parametrize("upcast", [False, True])
def test_attention_scores_count_unless_they_are_float32(
    upcast: bool, make_unet: Callable[..., Any], alphas: NDArray[np.float64], model_folder: Path
) -> None:
    unet = make_unet(upcast_attention=upcast)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    with torch.no_grad():
        attention.to_q.weight.mul_(3e2)
        attention.to_k.weight.mul_(3e2)
    network = Unet(unet, alphas, "epsilon")
    spec = network_specs(load_source(str(model_folder)).dims)["unet"]
    inputs = example_inputs(spec, batch=1, seed=0, vocabulary=258, timesteps=1000)
    with inject(unet, "folded"), torch.no_grad(), Watch("unet", network) as watch:
        network(*(torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs))
    scores = "unet.mid_block.attentions.0.transformer_blocks.0.attn1 (bmm)"
    # Projections stay below the limit; only their products are above it.
    assert list(watch.range().above) == ([] if upcast else [scores])
    # The sinusoid of the timestep, up to 600 here, is no half tensor either.
    assert not any("time_proj" in name for name in (watch.range().tensor, *watch.range().above))


def test_the_variance_of_the_posterior_is_not_exported_and_not_listed(vae: Any) -> None:
    loud = copy.deepcopy(vae)
    with torch.no_grad():
        loud.quant_conv.bias[4:] = 15.0  # the logarithm of the variance, which nobody uses
    network = VaeEncoder(loud, 0.3)
    watch = Watch("vae_encoder", network)
    with watch, torch.no_grad():
        network(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert not watch.range().above


def test_masked_entries_are_no_activations_but_damage_is(make_vision: Callable[..., Any]) -> None:
    network = ImageEncoder(make_vision(), 16, "last")
    watch = Watch("image_encoder", network)
    with watch, torch.no_grad():
        scores = torch.tensor([1.0, 2.0]) + torch.tensor([0.0, torch.finfo(torch.float32).min])
        assert scores[1] < -1e38
    assert watch.range().largest == 1.0
    with torch.no_grad():
        network.vision.encoder.layers[0].mlp.fc1.bias[0] = torch.nan
        with pytest.raises(ExportError, match=r"image_encoder: vision\.\S*fc1 .* is not finite in float32"), watch:
            network(torch.rand(1, 3, 16, 16))


def test_pictures_are_turned_upright_and_made_square(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))  # left half red
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left becomes the top
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = fp16_range._read_image(tmp_path / "turned.png", 16)
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert pixels[0, 0, :6].min() > 0.95
    assert pixels[0, 0, 10:].max() < 0.05


def test_only_the_first_pictures_of_a_folder_are_taken(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [path.name for path in fp16_range._find_images(pictures)] == ["a.png", "b.PNG"]
    monkeypatch.setattr(fp16_range, "MOST_IMAGES", 1)
    assert [path.name for path in fp16_range._find_images(pictures)] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no pictures to check the range of float16 on: .*nowhere"),
        ("empty", "no pictures to check the range of float16 on: .*empty"),
        ("notes.txt", "notes.txt cannot be read as a picture"),
    ],
)
def test_wrong_pictures_are_one_line(name: str, message: str, model_folder: Path, pictures: Path) -> None:
    (pictures / "empty").mkdir()
    with pytest.raises(ExportError, match=message) as caught:
        check_fp16_range(str(model_folder), pictures / name, progress=False)
    assert "\n" not in str(caught.value)
