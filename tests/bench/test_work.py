"""Operations counted from ONNX graphs, against PyTorch's own counter and against sums by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from g4seg_bench.work import Work, engine_work, network_work  # noqa: E402
from g4seg_engine.errors import G4SegError, MissingExtraError  # noqa: E402
from g4seg_engine.manifest import load_engine  # noqa: E402
from g4seg_engine.spec import NETWORKS  # noqa: E402
from g4seg_trt.refiner import engine_directory  # noqa: E402

FLOAT = TensorProto.FLOAT
SLOW_DISK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Shape = Sequence[int | str | None]
Constants = dict[str, np.ndarray[Any, Any]]


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    constants: Constants | None = None,
    opset: int = 18,
) -> Path:
    """A graph of float tensors as a file."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype=np.float32)


def counted(run: Callable[[], object]) -> float:
    """What PyTorch counts."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops())


@SLOW_DISK
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    side=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    batch=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_convolutions_as_pytorch_counts_them(
    tmp_path: Path,
    groups: int,
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    side: tuple[int, int],
    batch: int,
    transposed: bool,
) -> None:
    into, out = groups * channels[0], groups * channels[1]
    weight = zeros(into, channels[1], *kernel) if transposed else zeros(out, channels[0], *kernel)
    operator = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(operator, ["x", "w"], ["y"], group=groups, strides=[stride, stride], pads=[1, 0, 0, 1])
    if transposed:
        node = helper.make_node(operator, ["x", "w"], ["y"], group=groups, strides=[stride, stride])
    path = save(tmp_path / "conv.onnx", [node], {"x": ["B", into, *side]}, {"y": ["B", out, None, None]}, {"w": weight})
    image = torch.zeros(batch, into, *side)
    if transposed:
        results: list[Any] = []
        expected = counted(
            lambda: results.append(
                torch.conv_transpose2d(image, torch.from_numpy(weight), stride=stride, groups=groups)
            )
        )
    else:
        padded = torch.nn.functional.pad(image, (0, 1, 1, 0))
        results = []
        expected = counted(
            lambda: results.append(torch.conv2d(padded, torch.from_numpy(weight), stride=stride, groups=groups))
        )
    work = network_work(path, batch)
    assert (work.product, work.attention) == (0, 0)
    assert work.convolution == expected > 0
    assert work.weight_bytes == 4 * weight.size
    assert work.activation_bytes == 4 * (image.numel() + results[0].numel()), "the weight is no activation"


@SLOW_DISK
@given(
    rows=st.integers(1, 6),
    inner=st.integers(1, 6),
    columns=st.integers(1, 6),
    outer=st.lists(st.integers(1, 3), max_size=2),
    batch=st.integers(1, 3),
)
def test_products_as_pytorch_counts_them(
    tmp_path: Path, rows: int, inner: int, columns: int, outer: list[int], batch: int
) -> None:
    """A constant right side, with axes that are broadcast, is a product; two activations are attention."""
    left = torch.zeros(batch, *outer, rows, inner)
    right = torch.zeros(inner, columns)
    expected = counted(lambda: left @ right)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shapes: dict[str, Shape] = {"x": ["B", *outer, rows, inner]}
    path = save(tmp_path / "a.onnx", [node], shapes, {"y": [None] * left.ndim}, {"w": right.numpy()})
    work = network_work(path, batch)
    assert (work.product, work.attention, work.convolution) == (expected, 0, 0)
    assert work.bytes == 4 * (left.numel() + right.numel() + left.numel() // inner * columns)

    both = save(tmp_path / "b.onnx", [node], {**shapes, "w": [inner, columns]}, {"y": [None] * left.ndim})
    work = network_work(both, batch)
    assert (work.product, work.attention, work.bytes) == (0, expected, 0)


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm(tmp_path: Path, transposed: bool) -> None:
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], transA=int(transposed), transB=1)
    shape = [7, 5] if transposed else [5, 7]
    path = save(tmp_path / "g.onnx", [node], {"x": shape}, {"y": [5, 3]}, {"w": zeros(3, 7), "c": zeros(3)})
    assert network_work(path, 1) == Work(0, 2 * 5 * 7 * 3, 0, 4 * (21 + 3), 4 * (35 + 15))


def test_einsum_counts_every_index_once(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij, jk -> bik")
    path = save(tmp_path / "e.onnx", [node], {"x": ["B", 3, 5]}, {"y": ["B", 3, 7]}, {"w": zeros(5, 7)})
    assert network_work(path, 2).product == 2 * 2 * 3 * 5 * 7
    node = helper.make_node("Einsum", ["x"], ["y"], equation="bij->bji")
    path = save(tmp_path / "e.onnx", [node], {"x": ["B", 3, 5]}, {"y": ["B", 5, 3]})
    with pytest.raises(G4SegError, match=r"bij->bji is not known"):
        network_work(path, 2)


def test_a_weight_that_is_dequantised_and_transposed_is_a_weight(tmp_path: Path) -> None:
    """It is read as it is stored: one byte for each number."""
    nodes = [
        helper.make_node("DequantizeLinear", ["stored", "scale"], ["wide"]),
        helper.make_node("Transpose", ["wide"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
        helper.make_node("MatMul", ["wide", "turned"], ["unused"]),  # a constant, made before anything runs
    ]
    constants: Constants = {"stored": np.zeros((11, 6), dtype=np.int8), "scale": np.ones((), dtype=np.float32)}
    path = save(tmp_path / "q.onnx", nodes, {"x": ["B", 6]}, {"y": ["B", 11], "unused": [11, 11]}, constants)
    assert network_work(path, 3) == Work(0, 2 * 3 * 6 * 11, 0, 66 + 4, 4 * 3 * (6 + 11))


def test_a_table_that_is_looked_up_in_is_not_read_whole(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    constants = {"table": zeros(1000, 4), "w": zeros(4, 2)}
    path = save(tmp_path / "t.onnx", nodes, {"x": ["B", 5]}, {"y": ["B", 5, 2]}, constants)
    assert network_work(path, 1).weight_bytes == 4 * 8


@pytest.mark.parametrize("heads_apart", [True, False])
def test_the_attention_operator_is_two_products(tmp_path: Path, heads_apart: bool) -> None:
    """Also where keys and values are of other lengths and widths than the queries."""
    heads, length, keys, width, out = 3, 5, 7, 4, 2
    expected = counted(
        lambda: torch.zeros(2 * heads, length, width) @ torch.zeros(2 * heads, width, keys) @ torch.zeros(6, keys, out)
    )
    inputs: dict[str, Shape]
    if heads_apart:
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
        inputs = {"q": ["B", 3, length, width], "k": ["B", 3, keys, width], "v": ["B", 3, keys, out]}
        shape: Shape = ["B", 3, length, out]
    else:
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=3, kv_num_heads=3)
        inputs = {"q": ["B", length, 3 * width], "k": ["B", keys, 3 * width], "v": ["B", keys, 3 * out]}
        shape = ["B", length, 3 * out]
    path = save(tmp_path / "a.onnx", [node], inputs, {"y": shape}, opset=23)
    assert network_work(path, 2) == Work(0, 0, expected, 0, 0)


def test_shapes_are_followed_through_arithmetic_on_them(tmp_path: Path) -> None:
    """As in graphs that double a picture: the target's size is computed from the input's."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Slice", ["size", "two", "four"], ["area"]),
        helper.make_node("Mul", ["area", "two"], ["doubled"]),
        helper.make_node("Slice", ["size", "zero", "two"], ["front"]),
        helper.make_node("Concat", ["front", "doubled"], ["target"], axis=0),
        helper.make_node("Resize", ["x", "", "", "target"], ["large"]),
        helper.make_node("Conv", ["large", "w"], ["y"]),
    ]
    numbers = {name: np.array([value], dtype=np.int64) for name, value in (("zero", 0), ("two", 2), ("four", 4))}
    path = save(
        tmp_path / "r.onnx",
        nodes,
        {"x": ["B", 3, 5, 6]},
        {"y": ["B", 4, None, None]},
        {"w": zeros(4, 3, 1, 1), **numbers},
    )
    assert network_work(path, 2).convolution == 2 * 2 * 10 * 12 * 3 * 4


def test_an_unknown_shape_is_an_error_that_names_the_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["numbers"], to=FLOAT),
        helper.make_node("MatMul", ["w", "numbers"], ["y"], name="product/of places"),
    ]
    path = save(tmp_path / "some.onnx", nodes, {"x": ["B", 4]}, {"y": [3, None]}, {"w": zeros(3, 2)})
    with pytest.raises(
        G4SegError, match=r"some\.onnx: node product/of places \(MatMul\): the shape of \w+ is not known"
    ):
        network_work(path, 1)


def test_a_graph_that_makes_no_sense_is_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    path = save(tmp_path / "c.onnx", nodes, {"x": ["B", 4]}, {"y": ["B", 3]}, {"w": zeros(5, 3)})
    with pytest.raises(G4SegError, match=r"^c\.onnx: node z \(MatMul\): the shape of z is not known"):
        network_work(path, 1)
    path = save(tmp_path / "d.onnx", [helper.make_node("Reshape", ["x"], ["y"])], {"x": ["B", 4]}, {"y": ["B", 4]})
    with pytest.raises(G4SegError, match=r"^d\.onnx: the shapes cannot be inferred: .*Reshape"):
        network_work(path, 1)


@pytest.mark.parametrize(
    ("operator", "domain"), [("FusedMatMul", "com.microsoft"), ("ConvInteger", ""), ("QLinearMatMul", "")]
)
def test_an_operator_of_unknown_work_is_an_error(tmp_path: Path, operator: str, domain: str) -> None:
    node = helper.make_node(operator, ["x", "w"], ["y"], domain=domain)
    path = save(tmp_path / "u.onnx", [node], {"x": ["B", 4]}, {"y": ["B", 4]}, {"w": zeros(4, 4)})
    shown = f"{domain}.{operator}" if domain else operator
    with pytest.raises(G4SegError, match=f"the work of operator {shown} is not known"):
        network_work(path, 1)


def test_external_data_are_not_needed_and_functions_are_looked_into(tmp_path: Path) -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    function = helper.make_function("own", "Product", ["a", "b"], ["c"], body, [helper.make_opsetid("", 18)])
    graph = helper.make_graph(
        [helper.make_node("Product", ["x", "w"], ["y"], domain="own")],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["B", 64])],
        [helper.make_tensor_value_info("y", FLOAT, ["B", 32])],
        [numpy_helper.from_array(np.ones((64, 32), dtype=np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    onnx.save(model, tmp_path / "f.onnx", save_as_external_data=True, location="f.data", size_threshold=16)
    (tmp_path / "f.data").unlink()
    assert network_work(tmp_path / "f.onnx", 5) == Work(0, 2 * 5 * 64 * 32, 0, 4 * 64 * 32, 4 * 5 * (64 + 32))


def test_the_embedded_engine() -> None:
    directory = engine_directory("tiny")
    manifest = load_engine(directory)
    one, four = (engine_work(directory, manifest, batch) for batch in (1, 4))
    assert set(one) == set(NETWORKS)
    for name, work in one.items():
        assert work.flop > 0, name
        size = sum(file.bytes for file in manifest.networks[name].files)
        assert 0.8 * size < work.weight_bytes + 4e5 and work.weight_bytes < size, name
        times = 1 if name == "vae_encoder" else 4
        assert four[name].weight_bytes == work.weight_bytes
        assert four[name].activation_bytes == times * work.activation_bytes, name
        for kind in ("convolution", "product", "attention"):
            assert getattr(four[name], kind) == times * getattr(work, kind), (name, kind)
    assert one["unet"].attention > 0 < one["unet"].convolution
    assert one["text_encoder"].convolution == 0


def test_works_add_up() -> None:
    work = Work(1.0, 2.0, 4.0, 8, 16)
    assert (work.flop, work.bytes) == (7.0, 24)
    assert work.times(3) == work + work + work == Work(3.0, 6.0, 12.0, 24, 48)


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"g4seg-trt\[export\]"):
        network_work(tmp_path / "none.onnx", 1)
