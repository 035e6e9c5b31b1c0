"""What runs the networks, as the command line chooses it; with the embedded engine and real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from g4seg_engine import cache
from g4seg_engine.processor import has_bfloat16
from g4seg_trt.cli import build_engines
from g4seg_trt.refiner import EMBEDDED

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Folder, Scene

pytest.importorskip("openvino", reason="needs the extra openvino")

TINY = EMBEDDED["tiny"]
PRECISION = "bf16" if has_bfloat16() else "fp32"


def probability(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(Image.open(path), dtype=np.float64) / 65535


def output(scene: Scene) -> Path:
    return scene.folder / "output.png"


def one(scene: Scene, *options: object) -> list[object]:
    return [
        *("--engine", "tiny", "--image", scene.image, "--mask", scene.mask, "--class-name", "disc"),
        *("--output", output(scene), "--json", scene.folder / "report.json", *options),
    ]


def test_openvino_gives_what_onnxruntime_gives(refine: Command, scene: Scene) -> None:
    assert refine(*one(scene)).code == 0
    expected = probability(output(scene))
    done = refine(*one(scene, "--backend", "openvino", "--compute-precision", "fp32"))
    assert done.code == 0, done.err
    assert "backend:" not in done.err, "it was asked for"
    report = json.loads((scene.folder / "report.json").read_text("utf-8"))
    assert (report["backend"], report["device"], report["compute_precision"]) == ("openvino", "cpu", "fp32")
    assert report["versions"]["openvino"]
    assert np.abs(probability(output(scene)) - expected).max() < 1e-3
    # The installed package's folder is left alone.
    assert not (TINY / cache.FOLDER).exists()


def test_the_precision_is_the_processors_unless_said(refine_here: Command, scene: Scene) -> None:
    assert refine_here(*one(scene, "--backend", "openvino")).code == 0
    assert json.loads((scene.folder / "report.json").read_text("utf-8"))["compute_precision"] == PRECISION


def test_auto_says_what_it_took_and_why(refine_here: Command, scene: Scene) -> None:
    done = refine_here(*one(scene, "--backend", "auto"))
    assert done.code == 0
    assert "backend: onnxruntime on cpu in fp32 (small networks are open sooner with it)\n" in done.err
    assert json.loads((scene.folder / "report.json").read_text("utf-8"))["backend"] == "onnxruntime"


def test_low_memory_changes_no_byte(refine_here: Command, scene: Scene) -> None:
    assert refine_here(*one(scene)).code == 0
    expected = output(scene).read_bytes()
    output(scene).unlink()
    assert refine_here(*one(scene, "--low-memory", "--no-cache")).code == 0
    assert output(scene).read_bytes() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compute-precision", "bf16"), "compute precision is 'bf16', allowed with backend onnxruntime: none"),
        (("--backend", "openvino", "--device", "cuda"), "device is 'cuda', allowed with backend openvino: cpu"),
        (
            ("--backend", "auto", "--device", "cuda", "--compute-precision", "bf16"),
            "compute precision is 'bf16', allowed",
        ),
        (("--backend", "auto", "--device", "cuda:7"), "no backend runs this engine there"),
        (("--device", "cuda", "--low-memory"), "low memory is asked for on the device cuda"),
    ],
)
def test_what_cannot_be(options: tuple[str, ...], message: str, refine_here: Command, scene: Scene) -> None:
    done = refine_here(*one(scene, *options))
    assert done.code == 1
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not output(scene).exists()


def test_a_folder_is_not_finished_by_another_backend(refine_here: Command, folder: Folder) -> None:
    arguments = folder.arguments(TINY, "--class-name", "disc")
    assert refine_here(*arguments).code == 0
    done = refine_here(*arguments, "--resume", "--backend", "openvino", "--compute-precision", "fp32")
    assert done.code == 0
    assert "settings changed (backend onnxruntime, now openvino)" in done.err
    assert "4 refined, 0 skipped" in done.out


@pytest.mark.slow
def test_a_build_for_openvino_is_ready_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0)
    engine = tmp_path / "engine"

    def build_tiny(*_: object, **__: object) -> object:
        from g4seg_engine.manifest import load_engine

        shutil.copytree(TINY, engine)
        return load_engine(engine)

    monkeypatch.setattr("g4seg_export.engine.export_engine", build_tiny)
    assert build_engines.main(["--model", "tiny", "--output", str(engine), "--backend", "openvino"]) == 0
    entries = {entry.name.split("-")[1] for entry in (engine / cache.FOLDER).iterdir()}
    assert entries == {"text_encoder", "vae_encoder", "unet", "vae_decoder", "image_encoder"}
    assert len(list((engine / cache.FOLDER).glob("*/model.blob"))) == 5


@pytest.mark.parametrize(("options", "threads"), [([], "1"), (["--resolution", "pixel"], None)])
def test_threads_of_numpy_leave_the_cores_to_the_networks(
    tmp_path: Path, options: list[str], threads: str | None
) -> None:
    """The variable counts only if it is there before numpy is."""
    program = (
        "import json, os, sys\n"
        "from g4seg_trt.cli.refine import main\n"
        "early = 'numpy' in sys.modules\n"
        "code = main(sys.argv[1:])\n"
        "print(json.dumps([early, code, os.environ.get('OPENBLAS_NUM_THREADS')]))\n"
    )
    missing = str(tmp_path / "missing")
    folders = ["--engine", "tiny", "--images", missing, "--masks", missing, "--output", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program, *folders, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [False, 1, threads]
