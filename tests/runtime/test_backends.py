"""Which chain a backend and a device give, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from g4seg_engine import processor, tensorrt_api
from g4seg_engine.cuda_device import CudaDevice
from g4seg_engine.manifest import ArtefactRecord, Manifest, load_engine
from g4seg_engine.tensorrt_artefact import onnx_hashes
from g4seg_trt import backends
from g4seg_trt.backends import AUTO, BACKENDS, choose, open_chain
from g4seg_trt.chain import HostChain
from g4seg_trt.cli import options
from g4seg_trt.errors import ConfigError, EngineError
from g4seg_trt.refiner import EMBEDDED, Refiner

TINY = EMBEDDED["tiny"]
MANIFEST = load_engine(TINY)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")


def test_the_command_line_offers_them() -> None:
    assert tuple(BACKENDS) == options.BACKENDS
    assert options.AUTO == AUTO


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_cpu_gets_the_host_chain(device: str | None) -> None:
    chain = open_chain(TINY, MANIFEST, choose(MANIFEST, "onnxruntime", device, None))
    assert isinstance(chain, HostChain)
    assert chain.batch_size == 1
    chain.close()


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("onnxruntime", "abacus", "device is 'abacus', allowed with backend onnxruntime: cpu, cuda"),
        ("onnxruntime", "cpu:1", "device is 'cpu:1'"),
        ("onnxruntime", "cuda:x", "device is 'cuda:x'"),
        ("tensorrt", "cpu", "device is 'cpu', allowed with backend tensorrt: cuda"),
        ("abacus", None, "backend is 'abacus', allowed: auto, onnxruntime, openvino, tensorrt"),
    ],
)
def test_what_does_not_exist(backend: str, device: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_chain(TINY, MANIFEST, choose(MANIFEST, backend, device, None))
    assert message in str(caught.value)


@no_gpu
@pytest.mark.parametrize(("backend", "device"), [("onnxruntime", "cuda"), ("tensorrt", None), ("tensorrt", "cuda:1")])
def test_without_a_gpu(backend: str, device: str | None) -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver was found"):
        open_chain(TINY, MANIFEST, choose(MANIFEST, backend, device, None))


def test_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from g4seg_trt import Refiner\n"
        "from g4seg_trt.errors import MissingExtraError\n"
        "try:\n"
        "    Refiner.from_engine('tiny', device='cuda')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "torch is not installed: pip install 'g4seg-trt[gpu]'\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_onnxruntime_on_cuda_is_onnxruntime_on_the_cpu() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider: onnxruntime-gpu is not installed")
    image = np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).random((80, 70), dtype=np.float32)
    found = []
    for device in ("cpu", "cuda"):
        with Refiner.from_engine(TINY, device=device) as refiner:
            refiner.set_image(image)
            found.append(refiner.refine({"cross": mask}).probabilities["cross"])
    assert np.abs(found[0] - found[1]).max() < 0.02


def engine_of(megabytes: int, **changes: Any) -> Manifest:
    """The embedded engine's manifest with a UNet of this size."""
    unet = MANIFEST.networks["unet"]
    files = (replace(unet.files[0], bytes=megabytes * 2**20), *unet.files[1:])
    return replace(MANIFEST, networks={**MANIFEST.networks, "unet": replace(unet, files=files)}, **changes)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What `auto` takes to be installed."""
    packages = {"onnxruntime", "openvino", "torch"}
    monkeypatch.setattr(backends, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr(backends, "driver_cuda", lambda: None)
    return packages


@pytest.mark.parametrize(("bfloat16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_openvino_on_a_cpu(
    bfloat16: bool, precision: str, installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "has_bfloat16", lambda: bfloat16)
    found = choose(engine_of(500), AUTO, None, None)
    assert (found.backend, found.device, found.compute_precision) == ("openvino", "cpu", precision)
    assert "bfloat16" in found.reason
    assert str(found) == f"openvino on cpu in {precision}"
    assert choose(engine_of(500), AUTO, "cpu", "fp32").compute_precision == "fp32"
    installed.remove("openvino")
    found = choose(engine_of(500), AUTO, None, None)
    assert (found.backend, found.compute_precision) == ("onnxruntime", "fp32")
    assert "openvino, which is faster on a CPU, is not installed" in found.reason


@pytest.mark.usefixtures("installed")
def test_auto_opens_small_engines_with_onnxruntime() -> None:
    found = choose(MANIFEST, AUTO, None, None)
    assert found.backend == "onnxruntime"
    assert "open sooner" in found.reason
    # Who asks for a precision gets it.
    assert choose(MANIFEST, AUTO, None, "fp32").backend == "openvino"


def test_auto_takes_what_is_installed(installed: set[str]) -> None:
    installed.remove("onnxruntime")
    found = choose(MANIFEST, AUTO, None, "fp32")
    assert choose(MANIFEST, AUTO, None, None).backend == found.backend == "openvino"
    installed.remove("openvino")
    # Which to install is said where it is opened.
    assert choose(MANIFEST, AUTO, None, None).backend == "onnxruntime"


def test_auto_without_a_backend() -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['openvino'] = None\n"
        "from g4seg_trt import Refiner\n"
        "from g4seg_trt.errors import MissingExtraError\n"
        "try:\n"
        "    Refiner.from_engine('tiny', backend='auto', device='cpu')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "onnxruntime is not installed: pip install 'g4seg-trt[cpu]'\n"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_auto_on_a_gpu_has_no_choice_of_precision(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(engine_of(500), AUTO, device, "bf16")
    assert str(caught.value) == (
        f"compute precision is 'bf16', allowed on the device {device}: none, it computes in the engine's own precision"
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_auto_does_not_fall_back_from_a_gpu_that_was_asked_for(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device is '{device}', and no backend runs this engine there; .*doctor"):
        choose(engine_of(500), AUTO, device, None)


def test_auto_on_a_device_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="device is 'abacus', allowed: cpu, cuda"):
        choose(MANIFEST, AUTO, "abacus", None)


@pytest.mark.parametrize("fits", [True, False])
def test_auto_takes_plans_that_fit_the_gpu(fits: bool, installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CudaDevice(0, "Some GPU", "9.0", 80 * 2**30, "1", "13.0")
    monkeypatch.setattr(backends, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(backends, "cuda_device", lambda _: gpu)
    monkeypatch.setattr(tensorrt_api, "import_tensorrt", lambda: SimpleNamespace(__version__="11.4.0"))
    installed |= {"tensorrt", "polygraphy"}
    plan = ArtefactRecord(
        network="unet",
        backend="tensorrt",
        files=(),
        backend_version="11.4.0" if fits else "10.16.0",
        device="Some GPU",
        compute_capability="9.0",
        driver="1",
        batch_sizes=(1,),
        build_flags={"onnx": onnx_hashes(engine_of(500), "unet")},
    )
    found = choose(engine_of(500, artefacts=(plan,)), AUTO, None, None)
    assert found.backend == ("tensorrt" if fits else "openvino")
    assert ("its plans were built for this Some GPU" in found.reason) is fits
    # On a CPU that is asked for, the GPU is left alone.
    assert choose(engine_of(500, artefacts=(plan,)), AUTO, "cpu", None).backend == "openvino"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_only_openvino_has_a_choice_of_precision(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"compute precision is 'bf16', allowed with backend {backend}: none"):
        choose(MANIFEST, backend, None, "bf16")


def test_low_memory_and_no_cache_give_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).random((80, 70), dtype=np.float32)
    found = []
    for low_memory, cache in ((False, True), (True, True), (False, False)):
        with Refiner.from_engine(TINY, low_memory=low_memory, cache=cache) as refiner:
            refiner.set_image(image)
            found.append(refiner.refine({"cross": mask, "circle": 1 - mask}).probabilities)
    for other in found[1:]:
        for name, array in found[0].items():
            assert np.array_equal(other[name], array)


def test_low_memory_is_for_a_cpu() -> None:
    with pytest.raises(ConfigError, match="low memory is asked for on the device cuda, allowed: on a CPU"):
        open_chain(TINY, MANIFEST, choose(MANIFEST, "onnxruntime", "cuda", None), low_memory=True)
