"""The embedded engine on a real GPU with a real TensorRT, against ONNX Runtime on the CPU. Skipped elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g4seg_engine.cuda_device import cuda_device
from g4seg_engine.errors import EngineMismatchError, G4SegError
from g4seg_engine.manifest import Manifest, load_engine, write_manifest
from g4seg_engine.runner import open_runner
from g4seg_engine.spec import NETWORKS, NetworkSpec
from g4seg_engine.tensorrt_api import import_tensorrt
from g4seg_engine.tensorrt_builder import build_tensorrt
from g4seg_engine.tensorrt_runner import TensorRTRunner

pytestmark = pytest.mark.tensorrt

TINY = Path(__file__).parents[2] / "g4seg_trt" / "assets" / "tiny"
BATCHES = (1, 2)

# TensorRT multiplies float32 in TF32 (10 bits of mantissa) unless told otherwise.
TOLERANCE = 2e-2


def why_not() -> str:
    """Why TensorRT cannot run here, or ""."""
    try:
        import_tensorrt()
        cuda_device()
    except G4SegError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Manifest]]:
    """The embedded engine with plans for two batch sizes."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("engines") / "tiny"
    shutil.copytree(TINY, directory)
    manifest = load_engine(directory)
    artefacts = build_tensorrt(
        directory,
        manifest,
        batch_sizes=BATCHES,
        workspace_gb=None,
        optimization_level=3,
        timing_cache=None,
        progress=False,
    )
    write_manifest(directory, replace(manifest, artefacts=artefacts))
    yield directory, load_engine(directory, verify=True)


def inputs_of(spec: NetworkSpec, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded inputs in the range that each tensor has in use."""
    numbers = np.random.default_rng(batch)
    result: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in spec.inputs:
        shape = [batch if isinstance(size, str) else size for size in tensor.shape]
        if tensor.dtype == "int64":
            result[tensor.name] = numbers.integers(1, 200, shape)
        elif tensor.name in ("latent", "noise", "text_embedding"):
            result[tensor.name] = numbers.standard_normal(shape).astype(tensor.dtype)
        else:
            result[tensor.name] = numbers.random(shape).astype(tensor.dtype)
    return result


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("network", NETWORKS)
def test_plans_compute_what_the_graphs_compute(
    engine: tuple[Path, Manifest], make_tensors: Callable[..., dict[str, torch.Tensor]], network: str, batch: int
) -> None:
    directory, manifest = engine
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    runner = TensorRTRunner.open(directory, network, manifest, stream)
    if batch not in runner.batch_sizes:
        pytest.skip(f"{network} is built for batch size 1 alone")
    inputs = inputs_of(runner.spec, batch)
    tensors = {name: tensor.cuda() for name, tensor in make_tensors(runner.spec, batch).items()}
    for name, array in inputs.items():
        tensors[name].copy_(torch.from_numpy(array))
    torch.cuda.synchronize()
    enqueue = runner.bind(tensors)
    enqueue()
    stream.synchronize()
    with open_runner(directory, network, manifest=manifest) as reference:
        expected = reference.run(inputs)
    for name, array in expected.items():
        difference = np.abs(tensors[name].cpu().numpy() - array).max() / np.abs(array).max()
        assert difference < TOLERANCE, name
    runner.close()


def test_a_captured_graph_replays_the_network(
    engine: tuple[Path, Manifest], make_tensors: Callable[..., dict[str, torch.Tensor]]
) -> None:
    directory, manifest = engine
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    runner = TensorRTRunner.open(directory, "vae_decoder", manifest, stream)
    tensors = {name: tensor.cuda() for name, tensor in make_tensors(runner.spec, 2).items()}
    enqueue = runner.bind(tensors)
    enqueue()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        enqueue()
    tensors["latent"].normal_()
    torch.cuda.synchronize()
    enqueue()
    stream.synchronize()
    direct = tensors["image"].clone()
    tensors["image"].zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(tensors["image"], direct)
    runner.close()


def test_the_inspectors_output_and_the_timings_are_kept(engine: tuple[Path, Manifest]) -> None:
    directory, manifest = engine
    assert json.loads((directory / "tensorrt/unet.b2.json").read_text(encoding="utf-8"), strict=False)["Layers"]
    assert (directory / "tensorrt/timing.cache").stat().st_size > 0
    unet = next(artefact for artefact in manifest.artefacts if artefact.network == "unet")
    assert unet.build_flags["plans"]["1"]["attention_blocks"] > 0


def test_a_truncated_plan_is_refused(
    engine: tuple[Path, Manifest], make_tensors: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    directory = tmp_path / "engine"
    shutil.copytree(engine[0], directory)
    plan = directory / "tensorrt/unet.b1.plan"
    plan.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    runner = TensorRTRunner.open(directory, "unet", engine[1], stream)
    with pytest.raises(EngineMismatchError, match="damaged"):
        runner.bind({name: tensor.cuda() for name, tensor in make_tensors(runner.spec, 1).items()})
