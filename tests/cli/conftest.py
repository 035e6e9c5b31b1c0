"""A whole engine directory of small hand-written graphs: the commands run without torch or weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from g4seg_engine.build import network_record, staged_engine
from g4seg_engine.spec import ModelDims, network_specs
from tests.cli.evaluation import DataSet
from tests.folders import DataFolder, files, outputs

NOTE = "made for tests"
DIMS = ModelDims(square=32, latent_factor=4, latent_channels=3, text_length=40, text_width=3, feature_width=7, grid=8)
GRAPHS = {
    "text_encoder": """
        (int64[B,40] input_ids) => (float[B,40,3] text_embedding) {
            ids = Cast <to = 1> (input_ids)
            axis = Constant <value = int64[1] {2}> ()
            column = Unsqueeze (ids, axis)
            waves = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
            phase = Mul (column, waves)
            text_embedding = Sin (phase)
        }""",
    "vae_encoder": """
        (float[1,3,32,32] image) => (float[1,3,8,8] latent) {
            latent = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (image)
        }""",
    "unet": """
        (float[B,3,8,8] latent, float[B,3,8,8] noise, int64[B] timestep, float[B,40,3] text_embedding,
         float[B,1,8,8] mask, float[B,40] token_mask, float[B,2] emi_weight) => (float[B,3,8,8] denoised) {
            pixel_axes = Constant <value = int64[3] {1, 2, 3}> ()
            last_axis = Constant <value = int64[1] {2}> ()
            second_axis = Constant <value = int64[1] {1}> ()
            level = Cast <to = 1> (timestep)
            strength = Constant <value = float {0.0005}> ()
            share = Mul (level, strength)
            shares = Unsqueeze (share, pixel_axes)
            disturbance = Mul (shares, noise)
            noisy = Add (latent, disturbance)
            words = Unsqueeze (token_mask, last_axis)
            picked = Mul (text_embedding, words)
            colour = ReduceSum <keepdims = 0> (picked, second_axis)
            tint = Unsqueeze (colour, last_axis)
            tints = Unsqueeze (tint, last_axis)
            weight = ReduceSum <keepdims = 0> (emi_weight, second_axis)
            weights = Unsqueeze (weight, pixel_axes)
            region = Mul (mask, weights)
            pull = Mul (region, tints)
            small = Constant <value = float {0.1}> ()
            change = Mul (pull, small)
            denoised = Add (noisy, change)
        }""",
    "vae_decoder": """
        (float[B,3,8,8] latent) => (float[B,3,32,32] image) {
            factors = Constant <value = float[4] {1.0, 1.0, 4.0, 4.0}> ()
            large = Resize <mode = "nearest"> (latent, , factors)
            low = Constant <value = float {0.0}> ()
            high = Constant <value = float {1.0}> ()
            image = Clip (large, low, high)
        }""",
    "image_encoder": """
        (float[B,3,32,32] image) => (float[B,7,8,8] features) {
            means = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (image)
            squares = Mul (means, means)
            none = Constant <value = float {0.0}> ()
            fifth = Constant <value = float {0.2}> ()
            total = ReduceMax <keepdims = 1, axes = [1]> (means)
            zero = Mul (total, none)
            constant = Add (zero, fifth)
            all = Concat <axis = 1> (means, squares, constant)
            features = LpNormalization <axis = 1, p = 2> (all)
        }""",
}

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


Command = Callable[..., Done]


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()), start=10)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer


def build_toy_engine(output: Path, make_manifest: Callable[..., Any]) -> None:
    """Write the engine directory."""
    specs = network_specs(DIMS)
    with staged_engine(output) as folder:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
        networks = {}
        for name, graph in GRAPHS.items():
            text = f'<ir_version: 8, opset_import: ["": 17]> {name} {graph}'
            (folder / f"{name}.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
            parity = {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0}
            files = [folder / f"{name}.onnx"]
            networks[name] = network_record(specs[name], files, opset=17, precision="fp32", parity=parity)
        recommended = {"beta": 0.5, "certainty_filter": [0.1, 0.9]}
        make_manifest(folder, "toy", DIMS, networks, vae_scaling_factor=1.0, recommended=recommended, note=NOTE)


@pytest.fixture(scope="session")
def toy_engine(tmp_path_factory: pytest.TempPathFactory, make_manifest: Callable[..., Any]) -> Path:
    """An engine directory that recommends beta 0.5 and certainty filter 0.1 to 0.9."""
    folder = tmp_path_factory.mktemp("engines") / "toy"
    build_toy_engine(folder, make_manifest)
    return folder


def run_module(module: str, *arguments: object, cwd: Path | None = None) -> Done:
    """Run a command's main in a process of its own."""
    program = f"import sys; from {module} import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def refine() -> Command:
    """refine(*arguments) -> Done: g4seg-refine as a process."""
    return lambda *arguments, **options: run_module("g4seg_trt.cli.refine", *arguments, **options)


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Command:
    """run_here(module, *arguments) -> Done: a command's main in this process, quicker."""

    def run(module: str, *arguments: object) -> Done:
        main = import_module(module).main
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def refine_here(run_here: Command) -> Command:
    """refine_here(*arguments) -> Done: g4seg-refine in this process."""
    return lambda *arguments: run_here("g4seg_trt.cli.refine", *arguments)


@dataclass(frozen=True)
class Scene:
    """A disc on a gradient, its mask smeared and shifted, its true mask, all as files."""

    folder: Path
    image: Path
    mask: Path
    truth: Path
    pixels: Bytes
    probability: Floats
    region: npt.NDArray[np.bool_]


def make_scene(folder: Path, height: int = 48, width: int = 60, shift: float = 5.0) -> Scene:
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    away = np.hypot(rows - height / 2, columns - width / 2)
    region = away < height / 4
    ground = np.stack([rows / height, columns / width, np.full_like(rows, 0.3)], axis=-1)
    pixels = np.rint(255 * np.where(region[..., None], np.array([0.9, 0.8, 0.1], np.float32), ground)).astype(np.uint8)
    smeared = 1 / (1 + np.exp((np.hypot(rows - height / 2, columns - width / 2 - shift) - height / 4) / 3))
    levels = np.rint(255 * smeared).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(levels).save(folder / "mask.png")
    Image.fromarray(region.astype(np.uint8) * np.uint8(255)).save(folder / "truth.png")
    return Scene(
        folder,
        folder / "image.png",
        folder / "mask.png",
        folder / "truth.png",
        pixels,
        levels.astype(np.float32) / np.float32(255),
        region,
    )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "scene")


class Folder(DataFolder):
    """Four images of one class with masks, ground truth and classes.json; names with spaces and umlauts."""

    def arguments(self, engine: Path, *more: object) -> list[object]:
        return [
            "--engine",
            engine,
            "--images",
            self.images,
            "--masks",
            self.masks,
            "--output",
            self.output,
            *more,
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "data set"
    stems = ("a", "b c", "d.e", "übung")
    for part in ("images", "masks", "truth"):
        (root / part).mkdir(parents=True)
    for number, stem in enumerate(stems):
        made = make_scene(tmp_path / "made", 40 + number, 50, shift=3.0 + number)
        made.image.rename(root / "images" / f"{stem}.png")
        made.mask.rename(root / "masks" / f"{stem}.png")
        made.truth.rename(root / "truth" / f"{stem}.png")
    (root / "classes.json").write_text(json.dumps(dict.fromkeys(stems, "disc")), encoding="utf-8")
    return Folder(root, stems)


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """files_of(folder) -> its files with their bytes."""
    return files


@pytest.fixture(scope="session")
def outputs_of() -> Callable[[Path], dict[str, bytes]]:
    """outputs_of(folder) -> its outputs with their bytes."""
    return outputs


@pytest.fixture
def voc(tmp_path: Path) -> DataSet:
    return DataSet.make(tmp_path / "data set")


@pytest.fixture
def evaluate(run_here: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """evaluate(*arguments) -> how g4seg-evaluate ended, and its report ({} without one)."""

    def run(*arguments: object) -> tuple[Any, dict[str, Any]]:
        file = tmp_path / "report.json"
        file.unlink(missing_ok=True)
        done = run_here("g4seg_trt.cli.evaluate", *arguments, "--json", file)
        return done, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    return run
