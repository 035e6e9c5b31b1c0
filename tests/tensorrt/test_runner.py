"""Running plans, with the fake: binding, launching, and one clear line for whatever does not fit this machine."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from g4seg_engine.cuda_device import CudaDevice
from g4seg_engine.errors import EngineError, EngineMismatchError, MissingExtraError, RunnerInputError
from g4seg_engine.manifest import FileRecord, Manifest
from g4seg_engine.spec import NetworkSpec
from g4seg_engine.tensorrt_builder import build_tensorrt
from g4seg_engine.tensorrt_memory import SharedMemory
from g4seg_engine.tensorrt_runner import TensorRTRunner
from g4seg_engine.tensors import open_tensor_runner

MakeTensors = Callable[[NetworkSpec, int], dict[str, torch.Tensor]]
REBUILD = "build it again with: g4seg-build-engines --model mine --output engines/mine --overwrite --backend tensorrt"


@pytest.fixture
def built(fake: Any, tmp_path: Path, fill_engine: Any) -> Manifest:
    """An engine with plans for batch sizes 2 and 4 in tmp_path."""
    assert fake
    manifest: Manifest = fill_engine(tmp_path)
    artefacts = build_tensorrt(
        tmp_path,
        manifest,
        batch_sizes=(2, 4),
        workspace_gb=None,
        optimization_level=3,
        timing_cache=None,
        progress=False,
    )
    return replace(manifest, artefacts=artefacts)


def changed(manifest: Manifest, **values: Any) -> Manifest:
    """The manifest with other values in every artefact."""
    return replace(manifest, artefacts=tuple(replace(artefact, **values) for artefact in manifest.artefacts))


def test_a_network_is_bound_and_launched(
    fake: Any, built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors
) -> None:
    runner = open_tensor_runner(tmp_path, "unet", "tensorrt", stream, built)
    assert (runner.batch_sizes, runner.capturable, runner.spec) == ((2, 4), True, built.spec("unet"))
    enqueue = runner.bind(make_tensors(runner.spec, 4))
    assert fake._script.launches == []
    enqueue()
    enqueue()
    assert [(network, handle) for network, handle, _ in fake._script.launches] == [("unet", stream.cuda_stream)] * 2
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="closed"):
        enqueue()


def test_every_tensor_gets_its_own_address_in_each_binding(
    built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors
) -> None:
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    sets = [make_tensors(runner.spec, 2) for _ in range(2)]
    for tensors, binding in zip(sets, [runner.bind(tensors) for tensors in sets], strict=True):
        context: Any = binding._context  # type: ignore[attr-defined]
        assert context._addresses == {name: tensor.data_ptr() for name, tensor in tensors.items()}


def test_networks_on_one_stream_share_memory_which_grows(
    fake: Any, built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors
) -> None:
    first = TensorRTRunner.open(tmp_path, "unet", built, stream)
    second = TensorRTRunner.open(tmp_path, "vae_decoder", built, stream)
    enqueue_first = first.bind(make_tensors(first.spec, 2))
    fake._script.working_memory = 1 << 20
    enqueue_second = second.bind(make_tensors(second.spec, 2))
    enqueue_first()
    enqueue_second()
    addresses = [address for _, _, address in fake._script.launches]
    assert addresses[0] == addresses[1] != 0
    memory = enqueue_first._context._memory  # type: ignore[attr-defined]
    assert memory == (addresses[0], 1 << 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend_version": "10.16.1.11"}, "unet was built for TensorRT 10.16.1.11, and 11.4.0.106 is installed"),
        ({"compute_capability": "8.0"}, "unet was built for compute capability 8.0, and 9.0 is this GPU's"),
        ({"device": "NVIDIA H100"}, "unet was built for the GPU NVIDIA H100, and NVIDIA H200 is here"),
        ({"build_flags": {"onnx": {"unet.onnx": "0" * 64}}}, "unet was built from another ONNX graph"),
        ({"build_flags": {}}, "unet was built from another ONNX graph"),
    ],
)
def test_plans_for_something_else_are_refused_with_the_rebuild_command(
    built: Manifest, tmp_path: Path, stream: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineMismatchError) as caught:
        TensorRTRunner.open(tmp_path, "unet", changed(built, **values), stream)
    assert message in str(caught.value) and str(caught.value).endswith(REBUILD)


def test_a_graph_that_was_exported_anew_is_noticed(built: Manifest, tmp_path: Path, stream: Any) -> None:
    other = replace(built.networks["unet"], files=(FileRecord("unet.onnx", "1" * 64, 3),))
    manifest = replace(built, networks={**built.networks, "unet": other})
    with pytest.raises(EngineMismatchError, match="another ONNX graph"):
        TensorRTRunner.open(tmp_path, "unet", manifest, stream)


def test_another_driver_is_only_noted(
    built: Manifest, tmp_path: Path, stream: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        TensorRTRunner.open(tmp_path, "unet", changed(built, driver="560.1"), stream)
    assert "unet was built with the NVIDIA driver 560.1; this is 570.86.15" in caplog.text


def test_an_engine_without_plans_names_the_command(built: Manifest, tmp_path: Path, stream: Any) -> None:
    bare = replace(built, artefacts=(), build_command="g4seg-build-engines --model mine --output here")
    with pytest.raises(EngineError, match=r"unet was not built for TensorRT; .*--output here --backend tensorrt$"):
        TensorRTRunner.open(tmp_path, "unet", bare, stream)


def test_without_a_gpu_the_choice_is_said(built: Manifest, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="TensorRT engines run on an NVIDIA GPU"):
        TensorRTRunner.open(tmp_path, "unet", built, None)


def test_without_tensorrt_the_extra_is_named(
    built: Manifest, tmp_path: Path, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"g4seg-trt\[tensorrt\]"):
        TensorRTRunner.open(tmp_path, "unet", built, stream)


def test_bindings_without_libraries_are_one_line(
    built: Manifest, tmp_path: Path, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=r"cannot be loaded .libnvinfer.so.11: cannot open shared object file"):
        TensorRTRunner.open(tmp_path, "unet", built, stream)


def test_a_damaged_plan_is_named(built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors) -> None:
    plan = tmp_path / "tensorrt/unet.b4.plan"
    plan.write_bytes(plan.read_bytes()[:20])
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    with pytest.raises(EngineMismatchError, match=r"unet\.b4\.plan is damaged or no TensorRT plan .*kPLAN_MAGIC_TAG.*"):
        runner.bind(make_tensors(runner.spec, 4))
    plan.unlink()
    with pytest.raises(EngineError, match=r"unet\.b4\.plan cannot be read: No such file.*build it again"):
        runner.bind(make_tensors(runner.spec, 4))


def test_the_plan_of_another_network_is_named(
    built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors
) -> None:
    (tmp_path / "tensorrt/unet.b4.plan").write_bytes((tmp_path / "tensorrt/unet.b2.plan").read_bytes())
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    with pytest.raises(EngineMismatchError) as caught:
        runner.bind(make_tensors(runner.spec, 4))
    assert "expected input emi_weight float32 [4, 2]" in str(caught.value)
    assert "found input emi_weight float32 [2, 2]" in str(caught.value)


MEMORY_ERROR = "[genericReformat.cu] Cuda Runtime (out of memory)"


@pytest.mark.parametrize("what", ["load_error", "context_error", "launch_error"])
@pytest.mark.parametrize(("batch", "advice"), [(4, "try --batch-size 2"), (2, "close what else runs on the GPU")])
def test_out_of_memory_names_a_smaller_batch_size(
    fake: Any,
    built: Manifest,
    tmp_path: Path,
    stream: Any,
    make_tensors: MakeTensors,
    what: str,
    batch: int,
    advice: str,
) -> None:
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    setattr(fake._script, what, MEMORY_ERROR)
    with pytest.raises(EngineError, match=f"^unet: out of GPU memory at batch size {batch}; {advice}$"):
        runner.bind(make_tensors(runner.spec, batch))()


def test_torch_out_of_memory_is_the_same_error(
    built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    tensors = make_tensors(runner.spec, 4)

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(EngineError, match="unet: out of GPU memory at batch size 4; try --batch-size 2"):
        runner.bind(tensors)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("context_error", "unet: TensorRT could not make an execution context: bad state"),
        ("address_error", "unet: TensorRT refused the address of latent: bad state"),
        ("launch_error", "unet: TensorRT could not launch the network: bad state"),
    ],
)
def test_what_tensorrt_refuses_is_said_in_its_words(
    fake: Any, built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors, what: str, message: str
) -> None:
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    setattr(fake._script, what, "bad\n state")
    with pytest.raises(EngineError) as caught:
        runner.bind(make_tensors(runner.spec, 2))()
    assert str(caught.value) == message


def test_a_batch_size_without_a_plan_and_wrong_tensors_are_refused(
    built: Manifest, tmp_path: Path, stream: Any, make_tensors: MakeTensors
) -> None:
    runner = TensorRTRunner.open(tmp_path, "unet", built, stream)
    with pytest.raises(RunnerInputError, match="unet: no engine for batch size 3, there are 2, 4"):
        runner.bind(make_tensors(runner.spec, 3))
    tensors = make_tensors(runner.spec, 2)
    with pytest.raises(RunnerInputError, match="unet: denoised is not bound"):
        runner.bind({name: tensor for name, tensor in tensors.items() if name != "denoised"})
    with pytest.raises(RunnerInputError, match=r"mask has dtype float64"):
        runner.bind({**tensors, "mask": tensors["mask"].double()})


def test_a_driver_that_is_too_old_is_said(fake: Any, built: Manifest, tmp_path: Path, stream: Any) -> None:
    fake._script.start_error = "CUDA initialization failure with error: 35"
    with pytest.raises(EngineError, match="the NVIDIA driver is too old for TensorRT 11"):
        TensorRTRunner.open(tmp_path, "unet", built, stream)


def test_the_streams_gpu_is_the_one_that_is_compared(
    built: Manifest, tmp_path: Path, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(index: int) -> CudaDevice:
        return CudaDevice(index, "NVIDIA L4", "8.9", 1, "", "13.0")

    monkeypatch.setattr("g4seg_engine.tensorrt_runner.cuda_device", second)
    stream.device = torch.device("cuda", 1)
    with pytest.raises(EngineMismatchError, match=r"compute capability 9\.0, and 8\.9"):
        TensorRTRunner.open(tmp_path, "unet", built, stream)


class User:
    def __init__(self) -> None:
        self.memory = (0, 0)

    def use_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)


def test_memory_moves_its_users_when_it_grows() -> None:
    memory = SharedMemory(torch.device("cpu"))
    first, second, third = User(), User(), User()
    memory.add(first, 100)
    memory.add(second, 50)
    assert first.memory == second.memory and first.memory[1] == 100
    memory.add(third, 1000)
    assert first.memory == second.memory == third.memory and third.memory[1] == memory.size == 1000
    for user in (first, second, third, third):
        memory.remove(user)
    assert memory.size == 0


def test_pinned_memory_stays_where_a_graph_has_seen_it() -> None:
    memory = SharedMemory(torch.device("cpu"))
    captured, late = User(), User()
    memory.add(captured, 100)
    before = captured.memory
    memory.pin()
    memory.add(late, 1000)
    assert captured.memory == before
    assert late.memory[1] == 1000 and late.memory[0] != before[0]
    latest = User()
    memory.add(latest, 5000)  # the new buffer is not pinned
    assert captured.memory == before and late.memory == latest.memory


def test_no_memory_at_all_is_fine() -> None:
    memory, user = SharedMemory(torch.device("cpu")), User()
    memory.add(user, 0)
    assert user.memory[1] >= 0
