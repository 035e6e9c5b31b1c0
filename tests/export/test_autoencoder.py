"""Other autoencoders in place of the model's own: a distilled one, another full one, encoder and decoder apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from g4seg_engine.manifest import AutoencoderRecord, Manifest, NetworkRecord, file_sha256, load_engine
from g4seg_engine.runner import open_runner
from g4seg_export import architectures, sources
from g4seg_export import engine as export
from g4seg_export.architectures import fill_random
from g4seg_export.eager import EagerPipeline, EagerSettings
from g4seg_export.errors import SourceError
from g4seg_export.networks import VaeDecoder, VaeEncoder
from g4seg_export.sources import load_source
from g4seg_trt.cli import build_engines
from g4seg_trt.cli import engine as engine_command
from g4seg_trt.config import RefineConfig
from g4seg_trt.injection import seeded_noise
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner

_diffusers: Any = diffusers

WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
FACTOR = 0.7
HALVES = ("vae_encoder", "vae_decoder")
SETTINGS: dict[str, Any] = {
    "timestep": 200,
    "beta": 0.3,
    "certainty_filter": (0.2, 0.8),
    "emi_self": 2.0,
    "emi_cross": 3.0,
}


@pytest.fixture(scope="module")
def tiny_vae() -> Any:
    """TAESD in miniature: one halving as the model's own, and a scaling factor that would be missed."""
    return make_tiny_vae()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_vae: Any) -> Path:
    folder = tmp_path_factory.mktemp("autoencoders") / "mini taesd"
    tiny_vae.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small autoencoder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, tiny_folder: Path) -> tuple[Path, Manifest]:
    """An engine with both halves replaced, at another square, made by the command."""
    output = tmp_path_factory.mktemp("engines") / "distilled"
    options = ["--vae", str(tiny_folder), "--square", "128"]
    assert build_engines.main(["--model", str(model_folder), "--output", str(output), *options]) == 0
    return output, load_engine(output, verify=True)


@pytest.fixture
def export_only(
    built: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> Callable[..., Manifest]:
    """Makes tmp_path/engine, exporting the networks that it is told to and taking the rest from the engine above."""
    directory, manifest = built
    export_one = export._export_one

    def make(*networks: str, **options: Any) -> Manifest:
        def export_or_copy(source: Any, spec: Any, folder: Path, how: Any) -> NetworkRecord:
            if spec.name in networks:
                return export_one(source, spec, folder, how)
            for file in manifest.networks[spec.name].files:
                shutil.copy(directory / file.file, folder)
            return manifest.networks[spec.name]

        monkeypatch.setattr(export, "_export_one", export_or_copy)
        return export.export_engine(str(model_folder), tmp_path / "engine", square=128, progress=False, **options)

    return make


def make_tiny_vae(*, latent_channels: int = 4, encoder: int = 2, decoder: int = 2) -> Any:
    model = _diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * encoder,
        decoder_block_out_channels=(8,) * decoder,
        num_encoder_blocks=(1,) * encoder,
        num_decoder_blocks=(1,) * decoder,
        latent_channels=latent_channels,
        scaling_factor=FACTOR,
    )
    fill_random(model, 9)
    # Without biases the first and the last layer would hide a shift of the image's range.
    for layers in (model.encoder.layers, model.decoder.layers):
        layers[0].bias.data.fill_(0.3)
        layers[-1].bias.data.fill_(0.4)
    return model.eval()


def run(directory: Path, manifest: Manifest, network: str, array: NDArray[Any]) -> NDArray[Any]:
    with open_runner(directory, network, manifest=manifest) as runner:
        outputs = runner.run({manifest.networks[network].inputs[0].name: array})
    result: NDArray[Any] = next(iter(outputs.values()))
    return result


def by_hand(vae: Any, image: NDArray[Any], latent: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The UNet's latent of an image, and the image of such a latent, from TAESD's own conventions.

    TAESD takes and gives images in [0, 1]; diffusers' wrapping into [-1, 1] is left out.
    """
    with torch.inference_mode():
        encoded = vae.encoder.layers(torch.from_numpy(image)) * FACTOR
        given = torch.from_numpy(latent) / FACTOR
        decoded = vae.decoder.layers(3 * torch.tanh(given / 3)).clamp(0, 1)
    return encoded.numpy(), decoded.numpy()


def test_the_wrappers_follow_the_conventions_of_taesd(tiny_vae: Any) -> None:
    generator = np.random.default_rng(0)
    image = generator.random((2, 3, 10, 14), dtype=np.float32)
    latent = 2 * generator.standard_normal((3, 4, 5, 7), dtype=np.float32)
    encoded, decoded = by_hand(tiny_vae, image, latent)
    assert 0.1 < decoded.std() < 1.0
    with torch.inference_mode():
        actual = VaeEncoder(tiny_vae, FACTOR)(torch.from_numpy(image))
        np.testing.assert_allclose(actual.numpy(), encoded, atol=1e-6)
        actual = VaeDecoder(tiny_vae, FACTOR)(torch.from_numpy(latent))
        np.testing.assert_allclose(actual.numpy(), decoded, atol=1e-6)


def test_the_graphs_are_those_of_the_other_autoencoder(built: tuple[Path, Manifest], tiny_vae: Any) -> None:
    directory, manifest = built
    generator = np.random.default_rng(1)
    image = generator.random((1, 3, 128, 128), dtype=np.float32)
    latents = 2 * generator.standard_normal((3, 4, 64, 64), dtype=np.float32)
    encoded, decoded = by_hand(tiny_vae, image, latents)
    np.testing.assert_allclose(run(directory, manifest, "vae_encoder", image), encoded, atol=1e-5)
    np.testing.assert_allclose(run(directory, manifest, "vae_decoder", latents), decoded, atol=1e-5)
    for network in HALVES:
        assert manifest.networks[network].parity["relative"] < 1e-5


def test_the_manifest_records_it(built: tuple[Path, Manifest], model_folder: Path, tiny_folder: Path) -> None:
    directory, manifest = built
    assert manifest.autoencoder == AutoencoderRecord("mini taesd", "mini taesd")
    assert manifest.vae_scaling_factor == 0.3, "a fact of the model"
    assert (manifest.dims.square, manifest.dims.latent_size, manifest.dims.grid) == (128, 64, 32)
    sha256 = file_sha256(tiny_folder / WEIGHTS)
    assert {name: value for name, value in manifest.model.weights.items() if name.startswith("vae")} == {
        f"vae_encoder/{WEIGHTS}": sha256,
        f"vae_decoder/{WEIGHTS}": sha256,
    }
    assert manifest.build_command == (
        f"g4seg-build-engines --model {model_folder} --output {directory} --overwrite --vae '{tiny_folder}' "
        "--square 128"
    )


def test_inspect_shows_it(built: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_command.main(["inspect", str(built[0])]) == 0
    assert "autoencoder: encoder mini taesd, decoder mini taesd\n" in capsys.readouterr().out
    assert engine_command.main(["inspect", str(built[0]), "--json", "-"]) == 0
    contents = json.loads(capsys.readouterr().out)["contents"]
    assert contents["autoencoder"] == {"encoder": "mini taesd", "decoder": "mini taesd"}
    assert engine_command.main(["inspect", "tiny"]) == 0
    assert "autoencoder:" not in capsys.readouterr().out


def test_the_engine_refines_like_the_eager_pipeline(
    built: tuple[Path, Manifest], model_folder: Path, tiny_folder: Path
) -> None:
    """Which shares no code with it."""
    directory, manifest = built
    name = str(tiny_folder)
    pipeline = EagerPipeline(load_source(str(model_folder), vae_encoder=name, vae_decoder=name, square=128))
    generator = np.random.default_rng(4)
    image = generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    coarse = generator.random((128, 128), dtype=np.float32)
    with Refiner.from_engine(directory, config=RefineConfig(**SETTINGS, seed=5)) as refiner:
        refiner.set_image(image)
        result = refiner.refine({"owl": coarse}, keep=("indices", "denoised"))
    words = PromptEncoder.of_engine(directory, manifest).encode("owl")
    expected = pipeline.refine(
        image.transpose(2, 0, 1).astype(np.float32) / np.float32(255),
        coarse,
        words.input_ids,
        words.token_mask,
        (coarse >= 0.5)[None, 1::2, 1::2].astype(np.float32),
        seeded_noise(5, (4, 64, 64)),
        EagerSettings(**SETTINGS),
    )
    np.testing.assert_allclose(result.denoised["owl"], expected.denoised, atol=2e-4)
    clear = expected.margins > 1e-4
    assert clear.mean() > 0.9
    assert np.array_equal(result.indices["owl"][clear], expected.indices[clear])
    # A tie changes the probability around it, and nowhere else.
    difference = np.abs(result.probabilities["owl"] - expected.probability)
    assert np.quantile(difference, clear.mean() - 0.1) < 1e-5
    assert np.abs(expected.probability - coarse).max() > 0.05


def test_the_decoder_alone(
    export_only: Callable[..., Manifest], tmp_path: Path, tiny_folder: Path, tiny_vae: Any, vae: Any
) -> None:
    manifest = export_only("vae_encoder", "vae_decoder", vae_decoder=str(tiny_folder))
    assert manifest.autoencoder == AutoencoderRecord("", "mini taesd")
    assert {name for name in manifest.model.weights if name.startswith("vae")} == {
        f"vae/{WEIGHTS}",
        f"vae_decoder/{WEIGHTS}",
    }
    assert manifest.build_command.endswith(f"--overwrite --vae-decoder '{tiny_folder}' --square 128")
    generator = np.random.default_rng(3)
    image = generator.random((1, 3, 128, 128), dtype=np.float32)
    latents = generator.standard_normal((2, 4, 64, 64), dtype=np.float32)
    with torch.inference_mode():
        own = vae.encode(2 * torch.from_numpy(image) - 1).latent_dist.mean.numpy() * 0.3
    _, decoded = by_hand(tiny_vae, image, latents)
    np.testing.assert_allclose(run(tmp_path / "engine", manifest, "vae_encoder", image), own, atol=1e-5)
    np.testing.assert_allclose(run(tmp_path / "engine", manifest, "vae_decoder", latents), decoded, atol=1e-5)


def test_a_half_graph_of_the_encoder_alone(
    export_only: Callable[..., Manifest], tmp_path: Path, tiny_folder: Path, tiny_vae: Any
) -> None:
    manifest = export_only("vae_encoder", vae_encoder=str(tiny_folder), precision="fp16")
    assert manifest.autoencoder == AutoencoderRecord("mini taesd", "")
    record = manifest.networks["vae_encoder"]
    assert (record.precision, record.parity["float32_products"]) == ("fp16", 0)
    image = np.random.default_rng(2).random((1, 3, 128, 128), dtype=np.float32)
    encoded, _ = by_hand(tiny_vae, image, np.zeros((1, 4, 1, 1), dtype=np.float32))
    actual = run(tmp_path / "engine", manifest, "vae_encoder", image)
    assert 0 < np.abs(actual - encoded).max() < 5e-3


def test_a_bfloat16_graph_of_the_decoder_alone(export_only: Callable[..., Manifest], tiny_folder: Path) -> None:
    manifest = export_only("vae_decoder", vae_decoder=str(tiny_folder), precision="bf16")
    record = manifest.networks["vae_decoder"]
    assert (record.precision, record.parity["float32_products"]) == ("bf16", 0)
    assert record.parity["half_products"] > 0


def test_another_full_autoencoder_brings_its_own_scaling_factor(tmp_path: Path, model_folder: Path, vae: Any) -> None:
    """And a whole diffusers model lends its vae/."""
    other = shutil.copytree(model_folder, tmp_path / "other")
    config = json.loads((other / "vae" / "config.json").read_text(encoding="utf-8"))
    (other / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}), encoding="utf-8")
    source = load_source(str(model_folder), vae_encoder=str(other))
    assert (source.vae_encoder.id, source.vae_decoder.id) == ("other", "mini/vae")
    assert (source.vae_encoder.scaling_factor, source.vae_decoder.scaling_factor) == (0.5, 0.3)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = vae.encode(2 * image[None] - 1).latent_dist.mean[0] * 0.5
    latent, _ = EagerPipeline(source).encode_image(image.numpy())
    np.testing.assert_allclose(latent, expected.numpy(), atol=1e-6)


def test_a_hub_autoencoder_is_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, tiny_folder: Path, tiny_vae: Any
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--taesd"
    shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    pinned = f"owner/taesd@{COMMIT}"
    source = load_source(str(model_folder), vae_encoder="owner/taesd", vae_decoder=pinned)
    assert (source.vae_encoder.id, source.vae_encoder.option) == (pinned, pinned)
    assert source.vae_decoder == source.vae_encoder
    weights = source.vae_encoder.load().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in tiny_vae.state_dict().items())
    for name in ("owner/none", "owner/taesd@v2"):
        with pytest.raises(SourceError, match=f"'{name.partition('@')[0]}'.* is not in the local cache") as error:
            load_source(str(model_folder), vae_encoder=name)
        assert "\n" not in str(error.value)


def test_halves_of_different_precision_are_stored_as_each_is(
    tmp_path: Path, half_folder: Path, tiny_folder: Path
) -> None:
    source = load_source(str(half_folder), vae_encoder=str(tiny_folder))
    assert [source.stored_half(name) for name in ("vae_encoder", "vae_decoder", "unet")] == [False, True, True]
    make_tiny_vae().half().save_pretrained(tmp_path / "half")
    source = load_source(str(half_folder), vae_decoder=str(tmp_path / "half"))
    assert source.stored_half("vae_decoder")
    assert {parameter.dtype for parameter in source.vae_decoder.load().parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("sizes", "half", "message"),
    [
        ({"latent_channels": 6}, "vae_encoder", "of other have 6 channels at 1/2 .* of mini have 4 at 1/2"),
        ({"latent_channels": 6}, "vae_decoder", "of other have 6 channels"),
        ({"encoder": 3}, "vae_encoder", "vae_encoder: .* 4 channels at 1/4 .* 4 at 1/2"),
        ({"decoder": 3}, "vae_decoder", "vae_decoder: .* 4 channels at 1/4"),
    ],
)
def test_latents_of_other_sizes_are_refused(
    sizes: dict[str, int], half: str, message: str, tmp_path: Path, model_folder: Path
) -> None:
    make_tiny_vae(**sizes).save_pretrained(tmp_path / "other")
    load: Callable[..., Any] = load_source
    with pytest.raises(SourceError, match=message) as error:
        load(str(model_folder), **{half: str(tmp_path / "other")})
    assert "\n" not in str(error.value)


def test_a_half_that_is_not_used_may_have_other_sizes(tmp_path: Path, model_folder: Path) -> None:
    make_tiny_vae(encoder=3).save_pretrained(tmp_path / "other")
    assert load_source(str(model_folder), vae_decoder=str(tmp_path / "other")).vae_decoder.id == "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "VQModel"}, "copy is of class 'VQModel', supported are AutoencoderKL, AutoencoderTiny"),
        ({"_class_name": "AutoencoderKL", "block_out_channels": None}, "block_out_channels is None, expected a list"),
        ({"latent_channels": "four"}, "latent_channels is 'four', expected an integer"),
        ({"num_decoder_blocks": 4}, "num_decoder_blocks is 4, expected a list"),
        ({"scaling_factor": None}, "scaling_factor is None, expected a number"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"shift_factor": 0.1}, "shifted latents"),
    ],
)
def test_other_kinds_are_refused(changes: dict[str, Any], message: str, copied: Path, model_folder: Path) -> None:
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(SourceError, match=message) as error:
        load_source(str(model_folder), vae_encoder=str(copied))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "copy has no copy/config.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"copy has no weights {WEIGHTS}"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\1" * 40), "truncated or not a safetensors file"),
    ],
)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], object], message: str, copied: Path, model_folder: Path
) -> None:
    damage(copied)
    with pytest.raises(SourceError, match=message):
        load_source(str(model_folder), vae_decoder=str(copied))


@pytest.mark.parametrize("name", ["taesd", "random:sd21", "a/b/c", "owner/name@", "/no/such/folder"])
def test_unknown_sources_are_refused_with_what_is_allowed(name: str, model_folder: Path) -> None:
    with pytest.raises(SourceError, match=f"no autoencoder {name!r}: expected .* random:taesd"):
        load_source(str(model_folder), vae_encoder=name)


@pytest.mark.parametrize("square", [0, -64, 64, 100, 511])
def test_squares_that_do_not_fit_are_refused(square: int, model_folder: Path) -> None:
    with pytest.raises(SourceError, match=f"square {square}: expected a multiple of 64 from 128 on"):
        load_source(str(model_folder), square=square)


def test_random_taesd_has_the_true_size_and_keeps_the_activations_alive(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TINY_WEIGHTS", model_folder)
    source = load_source("random:sd21-base", vae_encoder="random:taesd", vae_decoder="random:taesd", square=384)
    assert (source.dims.square, source.dims.latent_size, source.dims.grid) == (384, 48, 24)
    assert (source.vae_encoder.scaling_factor, source.vae_scaling_factor) == (1.0, 0.18215)
    assert source.weight_hashes() == {}
    model = source.vae_encoder.load()
    assert isinstance(model, _diffusers.AutoencoderTiny)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_445_063, "as published"
    with torch.inference_mode():
        latent = model.encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1).latents
        image = model.decode(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))).sample
    assert 0.1 < latent.std() < 10.0
    assert 0.1 < image.std() < 10.0
    again = architectures.random_tiny_vae().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
