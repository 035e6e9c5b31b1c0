"""Small real graphs through ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_engine.build import network_record
from g4seg_engine.errors import EngineError, EngineMismatchError, MissingExtraError, RunnerInputError
from g4seg_engine.manifest import Manifest, write_manifest
from g4seg_engine.onnxruntime_runner import OnnxRuntimeRunner
from g4seg_engine.runner import Array, open_runner
from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra cpu")
onnx = pytest.importorskip("onnx", reason="needs onnx to write graphs")

WIDTH = 300
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, 4), dtype=np.float32)
SPEC = NetworkSpec(
    name="toy",
    inputs=(TensorSpec("x", "float32", (BATCH, WIDTH)), TensorSpec("row", "int64", (BATCH,))),
    outputs=(
        TensorSpec("y", "float32", (BATCH, 4)),
        TensorSpec("picked", "float32", (BATCH, 4)),
        TensorSpec("same", "float32", (BATCH, WIDTH)),
    ),
    min_batch=1,
    max_batch=8,
    tolerance=1e-4,
)


def write_graph(path: Path, *, batch: int | str = "batch", external: bool = False) -> Path:
    """y = x @ WEIGHT, picked = WEIGHT[row], same = x."""
    helper, floats, ints = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["y"]),
            helper.make_node("Gather", ["weight", "row"], ["picked"], axis=0),
            helper.make_node("Identity", ["x"], ["same"]),
        ],
        "toy",
        [
            helper.make_tensor_value_info("x", floats, [batch, WIDTH]),
            helper.make_tensor_value_info("row", ints, [batch]),
        ],
        [
            helper.make_tensor_value_info("y", floats, [batch, 4]),
            helper.make_tensor_value_info("picked", floats, [batch, 4]),
            helper.make_tensor_value_info("same", floats, [batch, WIDTH]),
        ],
        [onnx.numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data = f"{path.name}.data" if external else None
    onnx.save_model(model, path, save_as_external_data=external, location=data, size_threshold=0)
    return path


def make_inputs(batch: int, seed: int = 1) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.standard_normal((batch, WIDTH), dtype=np.float32),
        "row": generator.integers(0, WIDTH, batch),
    }


def assert_right(inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
    assert list(outputs) == ["y", "picked", "same"]
    np.testing.assert_allclose(outputs["y"], inputs["x"] @ WEIGHT, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(outputs["picked"], WEIGHT[inputs["row"]])
    np.testing.assert_array_equal(outputs["same"], inputs["x"])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graphs with ünicode") / "toy net.onnx")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_computes_the_graph(graph: Path, batch: int) -> None:
    with OnnxRuntimeRunner(graph, SPEC, threads=1) as runner:
        inputs = make_inputs(batch)
        assert_right(inputs, runner.run(inputs))


def test_external_data_is_found_beside_the_graph(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "toy.onnx", external=True)
    assert (tmp_path / "toy.onnx.data").stat().st_size == WEIGHT.nbytes
    with OnnxRuntimeRunner(str(path), SPEC) as runner:
        assert_right(make_inputs(2), runner.run(make_inputs(2)))


def test_results_belong_to_the_caller(graph: Path) -> None:
    runner = OnnxRuntimeRunner(graph, SPEC)
    inputs = make_inputs(2)
    first = runner.run(inputs)
    for array in first.values():
        assert array.flags.owndata
        assert array.flags.writeable
    kept = {name: array.copy() for name, array in first.items()}
    first["same"] += 1
    assert_right(inputs, runner.run(inputs))
    runner.run(make_inputs(2, seed=9))
    runner.close()
    runner.close()
    first["same"] -= 1
    np.testing.assert_allclose(first["same"], kept["same"], atol=1e-6)
    np.testing.assert_array_equal(first["y"], kept["y"])


def test_inputs_of_any_memory_layout_are_read_and_left_alone(graph: Path) -> None:
    wide = np.random.default_rng(2).standard_normal((WIDTH, 6), dtype=np.float32)
    inputs: dict[str, Array] = {"x": wide.T[::-2], "row": np.arange(6)[::2]}
    for array in inputs.values():
        array.flags.writeable = False
    before = {name: array.copy() for name, array in inputs.items()}
    with OnnxRuntimeRunner(graph, SPEC) as runner:
        assert_right(before, runner.run(inputs))
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


def test_threads_may_share_a_runner(graph: Path) -> None:
    with OnnxRuntimeRunner(graph, SPEC, threads=1) as runner, ThreadPoolExecutor(4) as pool:
        batches = [make_inputs(1 + seed % 8, seed) for seed in range(64)]
        for inputs, outputs in zip(batches, pool.map(runner.run, batches), strict=True):
            assert_right(inputs, outputs)


def test_inputs_are_checked(graph: Path) -> None:
    with OnnxRuntimeRunner(graph, SPEC) as runner:
        with pytest.raises(RunnerInputError, match="toy: input row has dtype int32, expected int64"):
            runner.run(make_inputs(2) | {"row": np.zeros(2, np.int32)})
        with pytest.raises(RunnerInputError, match="batch size 9, expected 1 to 8"):
            runner.run(make_inputs(9))


def test_a_closed_runner_says_so(graph: Path) -> None:
    with OnnxRuntimeRunner(graph, SPEC) as runner:
        pass
    with pytest.raises(EngineError, match="toy: this runner is closed"):
        runner.run(make_inputs(1))


def test_a_failing_run_is_one_line(graph: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with OnnxRuntimeRunner(graph, SPEC) as runner:
        with pytest.raises(EngineError, match=r"toy: onnxruntime failed: .*Gather") as caught:
            runner.run(make_inputs(1) | {"row": np.array([WIDTH])})
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None
        # The runner is as good as before.
        assert_right(make_inputs(1), runner.run(make_inputs(1)))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "truncated", "no external data"])
def test_a_graph_that_does_not_open_is_one_line(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_graph(tmp_path / "toy.onnx", external=damage == "no external data")
    if damage == "missing":
        path.unlink()
    elif damage == "no external data":
        (tmp_path / "toy.onnx.data").unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "noise": content[::-1], "truncated": content[:-100]}[damage])
    with pytest.raises(EngineError, match=r"cannot open .*toy\.onnx: ") as caught:
        OnnxRuntimeRunner(path, SPEC)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": SPEC.inputs[:1]}, "expected inputs x, found x, row"),
        (
            {"outputs": (*SPEC.outputs, TensorSpec("z", "float32", (BATCH,)))},
            "expected outputs y, picked, same, z",
        ),
        (
            {"inputs": (SPEC.inputs[0], TensorSpec("row", "float32", (BATCH,)))},
            r"expected row float32 \[B\], found row int64",
        ),
        (
            {"inputs": (TensorSpec("x", "float32", (BATCH, 7)), SPEC.inputs[1])},
            r"expected x float32 \[B, 7\], found x float32 \[batch, 300\]",
        ),
        (
            {"inputs": (TensorSpec("x", "float32", (BATCH, WIDTH, 1)), SPEC.inputs[1])},
            r"expected x float32 \[B, 300, 1\]",
        ),
    ],
)
def test_a_graph_that_differs_from_the_spec_is_refused(graph: Path, change: Any, message: str) -> None:
    with pytest.raises(EngineMismatchError, match=message):
        OnnxRuntimeRunner(graph, replace(SPEC, **change))


def test_a_graph_of_one_batch_size_fits_that_batch_range_only(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "toy.onnx", batch=2)
    with pytest.raises(EngineMismatchError, match=r"found x float32 \[2, 300\]"):
        OnnxRuntimeRunner(path, SPEC)
    with OnnxRuntimeRunner(path, replace(SPEC, min_batch=2, max_batch=2)) as runner:
        assert_right(make_inputs(2), runner.run(make_inputs(2)))


def test_wrong_arguments_are_refused(graph: Path) -> None:
    with pytest.raises(EngineError, match=r"no provider 'MagicExecutionProvider': it has .*CPUExecutionProvider"):
        OnnxRuntimeRunner(graph, SPEC, provider="MagicExecutionProvider")
    with pytest.raises(EngineError, match="threads is 0, expected 1 or more"):
        OnnxRuntimeRunner(graph, SPEC, threads=0)


def test_another_provider_never_stands_in(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    if "CUDAExecutionProvider" in onnxruntime.capi._pybind_state.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EngineError, match="could not start its provider CUDAExecutionProvider"),
    ):
        OnnxRuntimeRunner(graph, SPEC, provider="CUDAExecutionProvider")


def test_a_missing_onnxruntime_names_the_extra(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        OnnxRuntimeRunner(graph, SPEC)
    assert str(caught.value) == "onnxruntime is not installed: pip install 'g4seg-trt[cpu]'"


def test_a_broken_onnxruntime_is_not_called_missing(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        OnnxRuntimeRunner(graph, SPEC)


def test_open_runner_runs_a_network_of_an_engine(engine: Path, fill_engine: Callable[[Path], Manifest]) -> None:
    manifest = fill_engine(engine)
    spec = manifest.spec("image_encoder")
    path = engine / "image_encoder.onnx"
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    shapes = [["B", *tensor.shape[1:]] for tensor in (*spec.inputs, *spec.outputs)]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=1),
                helper.make_node("Tile", ["mean", "repeats"], ["features"]),
            ],
            "mean colour",
            [helper.make_tensor_value_info("image", floats, shapes[0])],
            [helper.make_tensor_value_info("features", floats, shapes[1])],
            [
                onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
                onnx.numpy_helper.from_array(np.array([1, *map(int, shapes[1][1:])]), "repeats"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save_model(model, path)
    record = network_record(spec, [path], opset=18, precision="fp32", parity={})
    manifest = replace(manifest, networks={**manifest.networks, "image_encoder": replace(record, max_batch=2)})
    write_manifest(engine, manifest)

    images = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    with open_runner(engine, "image_encoder", threads=1) as runner:
        assert runner.spec.max_batch == 2
        features = runner.run({"image": images})["features"]
    assert features.shape == (2, 48, 16, 16)
    np.testing.assert_allclose(features[:, 5, 3, 7], images.mean(axis=(1, 2, 3)), rtol=1e-5)

    # With a manifest at hand the directory is not read again.
    (engine / "manifest.json").unlink()
    open_runner(engine, "image_encoder", manifest=manifest).close()


def test_half_inputs_and_outputs_stay_half(tmp_path: Path) -> None:
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    values = [helper.make_tensor_value_info(name, half, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", values[:1], values[1:])
    path = tmp_path / "double.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    tensors = [TensorSpec(name, "float16", (BATCH, 3)) for name in ("x", "y")]
    spec = NetworkSpec("double", (tensors[0],), (tensors[1],), 1, 8, 1e-3)
    with OnnxRuntimeRunner(path, spec, threads=1) as runner:
        result = runner.run({"x": np.array([[1.5, -2.0, 0.1]], np.float16)})["y"]
        assert result.dtype == np.float16
        np.testing.assert_array_equal(result, np.array([[3.0, -4.0, 0.2]], np.float16))
        with pytest.raises(RunnerInputError, match="input x has dtype float32, expected float16"):
            runner.run({"x": np.zeros((1, 3), np.float32)})
    wrong = replace(spec, inputs=(TensorSpec("x", "float32", (BATCH, 3)),))
    with pytest.raises(EngineMismatchError, match=r"expected x float32 \[B, 3\], found x float16"):
        OnnxRuntimeRunner(path, wrong)


def test_a_bfloat16_engine_is_not_for_the_cpu(engine: Path, fill_engine: Callable[[Path], Manifest]) -> None:
    manifest = fill_engine(engine)
    networks = {name: replace(record, precision="bf16") for name, record in manifest.networks.items()}
    write_manifest(engine, replace(manifest, networks=networks))
    with pytest.raises(EngineError, match=r"bfloat16.* on the CPU: build one with --precision fp32 or fp16"):
        open_runner(engine, "unet")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("g4seg_engine", "numpy"),
        ("g4seg_engine.runner", "onnxruntime"),
        ("g4seg_engine.build", "onnxruntime"),
    ],
)
def test_imports_stay_cheap(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
