"""TensorRT without a GPU: the folder of real bindings, the fake on real Polygraphy, and a small engine directory."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from g4seg_engine.build import network_record
from g4seg_engine.cuda_device import CudaDevice
from g4seg_engine.manifest import (
    Manifest,
)
from g4seg_engine.spec import BATCH, ModelDims, NetworkSpec, TensorSpec, network_specs

HERE = Path(__file__).parent
COMMAND = "g4seg-build-engines --model mine --output engines/mine --overwrite --backend tensorrt"
DIMS = ModelDims(square=8, latent_factor=2, latent_channels=2, text_length=5, text_width=6, feature_width=4, grid=2)
DEVICE = CudaDevice(0, "NVIDIA H200", "9.0", 140 * 2**30, "570.86.15", "13.0")

FillEngine = Callable[..., Manifest]


def load(name: str) -> ModuleType:
    """A module of this folder that is no test."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def install_bindings() -> ModuleType:
    return load("install_bindings")


@pytest.fixture(scope="session")
def api_folder(install_bindings: ModuleType) -> Path:
    """Where install_bindings.py has put the bindings and Polygraphy. Elsewhere than on Linux there are no wheels."""
    if platform.system() != "Linux":
        pytest.skip("TensorRT's bindings are installed on Linux only")
    folder = Path(os.environ.get("G4SEG_TENSORRT_API", install_bindings.DEFAULT_FOLDER))
    wanted = [install_bindings.tensorrt_folder(folder, version) for version in install_bindings.TENSORRT]
    missing = [path.name for path in (*wanted, install_bindings.polygraphy_folder(folder)) if not path.is_dir()]
    if missing:
        pytest.fail(f"{folder} lacks {', '.join(missing)}; run: python tests/tensorrt/install_bindings.py")
    return folder


@pytest.fixture(scope="session")
def fake_module() -> ModuleType:
    return load("fake_tensorrt")


@pytest.fixture(scope="module")
def polygraphy_folder(install_bindings: ModuleType, api_folder: Path) -> Iterator[str]:
    """Where Polygraphy is; it is unloaded at the end, for it keeps the TensorRT that it met first."""
    yield str(install_bindings.polygraphy_folder(api_folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        del sys.modules[name]


@pytest.fixture
def fake(fake_module: Any, polygraphy_folder: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake in TensorRT's place, under the real Polygraphy, on an H200. Steered by ``fake._script``."""
    fake_module._script.__init__()
    fake_module._script.information = half_engine
    for tensors, side in ((fake_module._script.inputs, "inputs"), (fake_module._script.outputs, "outputs")):
        for name, spec in network_specs(DIMS).items():
            tensors[name] = {tensor.name: _declare(tensor) for tensor in getattr(spec, side)}
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module)
    monkeypatch.syspath_prepend(polygraphy_folder)
    for module in ("tensorrt_builder", "tensorrt_runner"):
        monkeypatch.setattr(f"g4seg_engine.{module}.cuda_device", lambda _index=None: DEVICE)
    return fake_module


@pytest.fixture
def fill_engine(make_manifest: FillEngine) -> FillEngine:
    """Writes an engine of dummy graphs into a folder and returns its manifest."""

    def fill(directory: Path, precision: str = "fp16") -> Manifest:
        networks = {}
        for name, spec in network_specs(DIMS, precision=precision).items():
            graph = directory / f"{name}.onnx"
            graph.write_bytes(b"graph of " + name.encode())
            networks[name] = network_record(spec, [graph], opset=18, precision=precision, parity={})
        (directory / "tokenizer.json").write_bytes(b"{}")
        return make_manifest(directory, "mine", DIMS, networks, build_command=COMMAND)

    return fill


_STREAMS = itertools.count(77)


@pytest.fixture
def stream() -> Any:
    """Something that looks like a CUDA stream, on the CPU: tensors of the fake's runner lie there."""
    # Each its own: memory that a stream shares lives until the garbage collector has been at its last user.
    return SimpleNamespace(device=torch.device("cpu"), cuda_stream=next(_STREAMS))


def tensors_of(spec: NetworkSpec, batch: int) -> dict[str, torch.Tensor]:
    """Zeros for every input and output."""
    return {
        tensor.name: torch.zeros([batch if size == BATCH else int(size) for size in tensor.shape],
                                 dtype=getattr(torch, tensor.dtype))
        for tensor in (*spec.inputs, *spec.outputs)
    }  # fmt: skip


@pytest.fixture
def make_tensors() -> Callable[[NetworkSpec, int], dict[str, torch.Tensor]]:
    return tensors_of


def half_engine(network: str) -> str:
    """The inspector's JSON of an engine with two half layers, one of them a fused attention block."""

    def layer(name: str, node: str) -> dict[str, object]:
        tensor = {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": "Half"}
        return {"Name": name, "LayerType": "kgen", "Inputs": [tensor], "Outputs": [tensor], "TacticName": name,
                "StreamId": 0, "Metadata": f"[ONNX Layer: {node}]"}  # fmt: skip

    layers = [layer(f"__myl_Conv_{network}", "node_conv"), layer("_gemm_mha_v2_myl0_1", "node_softmax")]
    return json.dumps({"Layers": layers, "Bindings": []})


def _declare(tensor: TensorSpec) -> tuple[str, tuple[int, ...]]:
    kind = "INT64" if tensor.dtype == "int64" else "FLOAT"
    return kind, tuple(-1 if size == BATCH else int(size) for size in tensor.shape)
