"""Which chain a backend and a device give, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from g4seg_engine.manifest import load_engine
from g4seg_trt.backends import BACKENDS, open_chain
from g4seg_trt.chain import HostChain
from g4seg_trt.cli import options
from g4seg_trt.errors import ConfigError, EngineError
from g4seg_trt.refiner import EMBEDDED, Refiner

TINY = EMBEDDED["tiny"]
MANIFEST = load_engine(TINY)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")


def test_the_command_line_offers_them() -> None:
    assert tuple(BACKENDS) == options.BACKENDS


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_cpu_gets_the_host_chain(device: str | None) -> None:
    chain = open_chain(TINY, MANIFEST, device=device)
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
        ("abacus", None, "backend is 'abacus', allowed: onnxruntime, tensorrt"),
    ],
)
def test_what_does_not_exist(backend: str, device: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_chain(TINY, MANIFEST, backend=backend, device=device)
    assert message in str(caught.value)


@no_gpu
@pytest.mark.parametrize(("backend", "device"), [("onnxruntime", "cuda"), ("tensorrt", None), ("tensorrt", "cuda:1")])
def test_without_a_gpu(backend: str, device: str | None) -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver was found"):
        open_chain(TINY, MANIFEST, backend=backend, device=device)


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
