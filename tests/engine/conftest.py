"""A small engine directory whose files are dummies, for tests of everything but running."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from g4seg_engine.build import network_record
from g4seg_engine.manifest import (
    ImageEncoderRecord,
    Manifest,
    ModelRecord,
)
from g4seg_engine.spec import ModelDims, network_specs

COMMAND = "g4seg-build-engines --model 'my model' --output engines/mine --overwrite"
DIMS = ModelDims(
    square=64, latent_factor=4, latent_channels=6, text_length=77, text_width=96, feature_width=48, grid=16
)


@pytest.fixture
def dims() -> ModelDims:
    return DIMS


@pytest.fixture(scope="session")
def fill_engine(make_manifest: Callable[..., Manifest]) -> Callable[[Path], Manifest]:
    """Writes a complete engine into an existing folder and returns its manifest."""

    def fill(directory: Path) -> Manifest:
        (directory / "tokenizer.json").write_bytes(b'{"model": "dummy"}')
        networks = {}
        for name, spec in network_specs(DIMS).items():
            graph, data = directory / f"{name}.onnx", directory / f"{name}.onnx.data"
            graph.write_bytes(f"graph of {name}".encode())
            data.write_bytes(bytes(range(200)) + name.encode())
            networks[name] = network_record(
                spec, [graph, data], opset=18, precision="fp32", parity={"relative": 1e-6, "cosine": 1.0}
            )
        return make_manifest(
            directory,
            "my model",
            DIMS,
            networks,
            model=ModelRecord("my model", "", "none", {"unet.safetensors": "0" * 64}),
            image_encoder=ImageEncoderRecord("my encoder", "last"),
            build_command=COMMAND,
            recommended={"timestep": 400, "certainty_filter": [0.2, 0.6], "soften": None},
        )

    return fill


@pytest.fixture
def engine(tmp_path: Path, fill_engine: Callable[[Path], Manifest]) -> Path:
    """A complete engine directory."""
    directory = tmp_path / "engines with ünicode" / "mine"
    directory.mkdir(parents=True)
    fill_engine(directory)
    return directory
