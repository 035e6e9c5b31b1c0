"""Building plans, with the fake under real Polygraphy: what is written, recorded, said and left behind."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from g4seg_engine.build import staged_engine
from g4seg_engine.errors import EngineError, MissingExtraError
from g4seg_engine.manifest import Manifest, load_engine, write_manifest
from g4seg_engine.spec import NETWORKS
from g4seg_engine.tensorrt_builder import build_tensorrt

FillEngine = Any
PLANS = [
    "image_encoder.b1",
    "image_encoder.b2",
    "image_encoder.b4",
    "text_encoder.b1",
    "unet.b2",
    "unet.b4",
    "vae_decoder.b2",
    "vae_decoder.b4",
    "vae_encoder.b1",
]


def build(directory: Path, manifest: Manifest, **changed: Any) -> Any:
    options: dict[str, Any] = {
        "batch_sizes": (2, 4),
        "workspace_gb": None,
        "optimization_level": 3,
        "timing_cache": None,
        "progress": False,
        **changed,
    }
    return build_tensorrt(directory, manifest, **options)


@pytest.fixture
def manifest(tmp_path: Path, fill_engine: FillEngine) -> Manifest:
    result: Manifest = fill_engine(tmp_path)
    return result


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "tensorrt").iterdir())


def replace_in_layers(fake: Any, old: str, new: str) -> None:
    """Change what the fake's inspector says."""
    before = fake._script.information
    fake._script.information = lambda network: before(network).replace(old, new)


def test_every_plan_is_written_and_recorded(fake: Any, tmp_path: Path, fill_engine: FillEngine) -> None:
    output = tmp_path / "engine"
    with staged_engine(output) as staged:
        manifest = fill_engine(staged)
        write_manifest(staged, replace(manifest, artefacts=build(staged, manifest)))
    loaded = load_engine(output, verify=True)
    assert left(output) == sorted([*(f"{p}.plan" for p in PLANS), *(f"{p}.json" for p in PLANS), "timing.cache"])
    assert [artefact.network for artefact in loaded.artefacts] == list(NETWORKS)
    unet = next(artefact for artefact in loaded.artefacts if artefact.network == "unet")
    assert (unet.backend, unet.backend_version, unet.device) == ("tensorrt", fake.__version__, "NVIDIA H200")
    assert (unet.compute_capability, unet.driver, unet.batch_sizes) == ("9.0", "570.86.15", (2, 4))
    assert unet.build_flags["onnx"] == {"unet.onnx": loaded.networks["unet"].files[0].sha256}
    assert unet.build_flags["plans"]["4"]["half_products"] == 1.0
    assert unet.build_flags["plans"]["4"]["fused_attention_blocks"] == 1
    assert (unet.build_flags["precision"], unet.build_flags["tf32"]) == ("fp16", True)
    assert json.loads((output / "tensorrt/unet.b4.json").read_text())["Layers"]


def test_shapes_are_static_and_settings_reach_tensorrt(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    build(tmp_path, manifest, workspace_gb=1.5, optimization_level=5)
    plan = json.loads((tmp_path / "tensorrt/unet.b4.plan").read_bytes())
    assert plan["inputs"]["mask"] == ["FLOAT", [4, 1, 4, 4]]
    assert plan["inputs"]["timestep"] == ["INT64", [4]]
    for config in fake._script.configs:
        assert config.builder_optimization_level == 5
        assert config.profiling_verbosity == fake.ProfilingVerbosity.DETAILED
        assert config._limits == {fake.MemoryPoolType.WORKSPACE: int(1.5 * 2**30)}
        assert config.get_flag(fake.BuilderFlag.TF32)  # TensorRT's default; Polygraphy's is off
    fake._script.configs.clear()
    build(tmp_path, manifest)
    assert not any(config._limits for config in fake._script.configs)


def test_timings_go_from_plan_to_plan_and_into_the_users_file(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    mine = tmp_path / "timings of mine"
    build(tmp_path, manifest, timing_cache=mine)
    own = (tmp_path / "tensorrt/timing.cache").read_bytes()
    assert own == mine.read_bytes()
    assert own.startswith(b"[text_encoder]") and own.count(b"[unet]") == 2
    fake._script.read_caches.clear()
    build(tmp_path, manifest, timing_cache=mine)
    assert fake._script.read_caches[0] == own
    assert mine.read_bytes().count(b"[unet]") == 4


def test_an_earlier_engines_timings_are_read_and_never_written(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    earlier = tmp_path / "earlier"
    earlier.write_bytes(b"timings of old")
    build(tmp_path, manifest, earlier_timings=earlier, timing_cache=tmp_path / "not there yet")
    assert fake._script.read_caches[0] == b"timings of old"
    assert earlier.read_bytes() == b"timings of old"


def test_a_failed_build_says_what_tensorrt_said_and_leaves_the_old_engine(
    fake: Any, tmp_path: Path, fill_engine: FillEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "engine"
    with staged_engine(output) as staged:
        fill_engine(staged)
    before = {path: path.read_bytes() for path in output.rglob("*")}
    fake._script.build_errors["unet.b2"] = "Could not find any implementation for node {ForeignNode[node_conv]}."
    with pytest.raises(EngineError) as caught, staged_engine(output, overwrite=True) as staged:
        build(staged, fill_engine(staged))
    message = str(caught.value)
    assert message.startswith(f"TensorRT {fake.__version__} cannot build unet for batch size 2: ")
    assert "an earlier error in two lines; Could not find any implementation for node" in message
    assert "\n" not in message
    assert {path: path.read_bytes() for path in output.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert capfd.readouterr() == ("", "")  # Polygraphy would print on stdout


def test_the_parsers_errors_are_shown(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    fake._script.parser_errors = ("In node 7 (importFoo): UNSUPPORTED_NODE: no importer for Foo", "and another")
    with pytest.raises(EngineError, match=r"importFoo.*UNSUPPORTED_NODE.*and another"):
        build(tmp_path, manifest)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("text_encoder.b1", "out of GPU memory while building text_encoder for batch size 1; close what else runs"),
        ("unet.b4", "out of GPU memory while building unet for batch size 4; try --batch-sizes up to 2, or a smaller"),
    ],
)
def test_out_of_memory_names_a_smaller_batch_size(
    fake: Any, tmp_path: Path, manifest: Manifest, plan: str, message: str
) -> None:
    fake._script.build_errors[plan] = "[defaultAllocator.cpp::allocate] Cuda Runtime (out of memory)"
    with pytest.raises(EngineError, match=message):
        build(tmp_path, manifest)


def test_ctrl_c_ends_the_build_and_leaves_nothing(fake: Any, tmp_path: Path, fill_engine: FillEngine) -> None:
    fake._script.interrupt_build = True
    with pytest.raises(KeyboardInterrupt), staged_engine(tmp_path / "engine") as staged:
        build(staged, fill_engine(staged))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fake")
def test_a_progress_bar_shows_network_and_phase(
    tmp_path: Path, manifest: Manifest, capfd: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, manifest, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "unet b4" in err and "1/2" in err and "Tactics" in err


def test_a_silent_float32_engine_is_refused(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    replace_in_layers(fake, '"Half"', '"Float"')
    with pytest.raises(EngineError, match="only 0% of its convolutions and matrix products work in fp16"):
        build(tmp_path, manifest)
    assert left(tmp_path) == []


def test_a_float32_graph_is_not_asked_for_halves(fake: Any, tmp_path: Path, fill_engine: FillEngine) -> None:
    replace_in_layers(fake, '"Half"', '"Float"')
    artefacts = build(tmp_path, fill_engine(tmp_path, "fp32"))
    assert "half_products" not in artefacts[0].build_flags["plans"]["1"]


def test_a_plan_of_twice_the_weights_is_refused(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    fake._script.padding = 70 * 2**20
    with pytest.raises(EngineError, match="the plan has 73 MB for 0 MB of fp16 weights"):
        build(tmp_path, manifest)


def test_attention_that_is_not_fused_is_a_warning(
    fake: Any, tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    replace_in_layers(fake, "_gemm_mha_v2", "__myl_Softmax")
    with caplog.at_level(logging.WARNING):
        artefacts = build(tmp_path, manifest)
    assert "unet for batch size 4: 1 of 1 attention blocks are not fused: node_softmax" in caplog.text
    assert artefacts[2].build_flags["plans"]["4"]["fused_attention_blocks"] == 0


def test_a_plan_that_cannot_be_loaded_is_an_error(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    fake._script.load_error = "no kernel image is available"
    with pytest.raises(EngineError, match=r"cannot load the plan that it built: .*no kernel image is available"):
        build(tmp_path, manifest)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_sizes": ()}, "no batch sizes"),
        ({"batch_sizes": (0,)}, "batch size is 0, expected 1 to 64"),
        ({"batch_sizes": (65,)}, "batch size is 65, expected 1 to 64"),
        ({"optimization_level": 6}, "optimization level is 6, expected 0 to 5"),
        ({"workspace_gb": 0.0}, "workspace is 0.0 GB, expected more than 0"),
        ({"workspace_gb": float("nan")}, "workspace is nan GB"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_options_out_of_range_are_refused(
    tmp_path: Path, manifest: Manifest, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        build(tmp_path, manifest, **changed)


def test_a_driver_that_is_too_old_is_said(fake: Any, tmp_path: Path, manifest: Manifest) -> None:
    fake._script.start_error = "CUDA initialization failure with error: 35. CUDA driver version is insufficient"
    with pytest.raises(EngineError, match=r"the NVIDIA driver is too old for TensorRT 11.*update the driver"):
        build(tmp_path, manifest)


def test_what_is_not_installed_is_named(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed: pip install 'g4seg-trt\[tensorrt\]'"):
        build(tmp_path, manifest)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingExtraError, match="polygraphy is not installed"):
        build(tmp_path, manifest)


PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from g4seg_engine import tensorrt_builder
from g4seg_engine.cuda_device import CudaDevice
from g4seg_engine.errors import EngineError
from g4seg_engine.manifest import read_manifest
tensorrt_builder.cuda_device = lambda: CudaDevice(0, "none", "9.0", 1, "", "13.0")
directory = Path(sys.argv[1])
try:
    tensorrt_builder.build_tensorrt(directory, read_manifest(directory), batch_sizes=(1,), workspace_gb=None,
        optimization_level=3, timing_cache=None, progress=False)
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize("major", ["10", "11"])
def test_real_polygraphy_and_bindings_get_as_far_as_the_builder(
    install_bindings: ModuleType, api_folder: Path, tmp_path: Path, manifest: Manifest, major: str
) -> None:
    assert manifest.networks
    version = next(full for full in install_bindings.TENSORRT if full.startswith(f"{major}."))
    path = (
        install_bindings.tensorrt_folder(api_folder, version),
        install_bindings.polygraphy_folder(api_folder),
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"TensorRT {version} cannot start: it gave no reason\n"
