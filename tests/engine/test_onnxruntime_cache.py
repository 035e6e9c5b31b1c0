"""ONNX Runtime's cache on the embedded engine: the same bytes, and no error that a cache brings in."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import g4seg_trt
from g4seg_engine import cache
from g4seg_engine.build import staged_engine
from g4seg_engine.cache import FOLDER, is_whole
from g4seg_engine.errors import EngineError, EngineMismatchError
from g4seg_engine.manifest import load_engine
from g4seg_engine.onnxruntime_cache import GRAPH_FILE, WEIGHTS_FILE
from g4seg_engine.onnxruntime_runner import OnnxRuntimeRunner
from g4seg_engine.runner import Array, Runner, open_runner
from g4seg_engine.spec import BATCH, NETWORKS, NetworkSpec, TensorSpec

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra cpu")

TINY = Path(g4seg_trt.__file__).parent / "assets" / "tiny"


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0)


@pytest.fixture(scope="module")
def engine_with_entries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the embedded engine with an entry for the UNet and the VAE's encoder."""
    engine = tmp_path_factory.mktemp("engines with ünicode") / "tiny net"
    shutil.copytree(TINY, engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "WORTH_KEEPING", 0)
        for network in ("unet", "vae_encoder"):
            open_runner(engine, network).close()
    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The embedded engine without entries."""
    shutil.copytree(TINY, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def kept(engine: Path, engine_with_entries: Path) -> Path:
    """The embedded engine with entries."""
    shutil.copytree(engine_with_entries / FOLDER, engine / FOLDER)
    return engine


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The file and the level of each session that is opened."""
    seen: list[tuple[str, Any]] = []
    session = onnxruntime.InferenceSession

    def watch(path: Path, options: Any, **other: Any) -> Any:
        seen.append((Path(path).name, options.graph_optimization_level))
        return session(path, options, **other)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    return seen


ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
NONE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def entries(engine: Path) -> list[Path]:
    return sorted((engine / FOLDER).iterdir()) if (engine / FOLDER).exists() else []


def inputs_of(spec: NetworkSpec, batch: int) -> dict[str, Array]:
    generator = np.random.default_rng(batch)
    shapes = {tensor: [batch if size == BATCH else int(size) for size in tensor.shape] for tensor in spec.inputs}
    return {
        tensor.name: (
            generator.integers(0, 800, shape)
            if tensor.dtype == "int64"
            else generator.standard_normal(shape).astype(tensor.dtype)
        )
        for tensor, shape in shapes.items()
    }


def run(runner: Runner, batch: int = 2) -> dict[str, bytes]:
    batch = min(batch, runner.spec.max_batch)
    return {name: array.tobytes() for name, array in runner.run(inputs_of(runner.spec, batch)).items()}


def run_once(engine: Path, network: str = "vae_encoder", **options: Any) -> dict[str, bytes]:
    with open_runner(engine, network, **options) as runner:
        return run(runner)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_results_are_the_same_bytes(engine: Path, network: str, opened: list[tuple[str, Any]]) -> None:
    results = []
    for use in (False, True, True):
        with open_runner(engine, network, cache=use) as runner:
            results.append([run(runner, batch) for batch in (1, 3)])
    assert results[0] == results[1] == results[2]
    graph, made = (f"{network}.onnx", ALL), (GRAPH_FILE, NONE)
    # Plain; written, tried and opened; opened.
    assert opened == [graph, graph, made, made, made]
    [entry] = entries(engine)
    assert is_whole(entry)
    # There is a file of weights where any are large.
    assert {GRAPH_FILE, "entry.json"} <= {path.name for path in entry.iterdir()}
    assert network != "unet" or (entry / WEIGHTS_FILE).exists()


def test_a_second_start_writes_no_weights(kept: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (kept / FOLDER).rglob("*")}

    before = state()
    run_once(kept)
    assert state() == before
    load_engine(kept, verify=True)


def test_half_precision_gives_the_same_bytes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx to write graphs")
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    generator = np.random.default_rng(0)
    weights = {"filter": (7, 3, 3, 3), "matrix": (50, 33), "offset": (33,)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "filter"], ["convolved"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["convolved"], ["gate"]),
            helper.make_node("Mul", ["convolved", "gate"], ["silu"]),
            helper.make_node("MatMul", ["silu", "matrix"], ["product"]),
            helper.make_node("Add", ["product", "offset"], ["y"]),
        ],
        "half",
        [helper.make_tensor_value_info("x", half, ["B", 3, 21, 50])],
        [helper.make_tensor_value_info("y", half, ["B", 7, 21, 33])],
        [
            onnx.numpy_helper.from_array(generator.standard_normal(shape).astype(np.float16), name)
            for name, shape in weights.items()
        ],
    )
    path = tmp_path / "half.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    spec = NetworkSpec(
        "half",
        (TensorSpec("x", "float16", (BATCH, 3, 21, 50)),),
        (TensorSpec("y", "float16", (BATCH, 7, 21, 33)),),
        1,
        8,
        1e-3,
    )
    with OnnxRuntimeRunner(path, spec) as plain, OnnxRuntimeRunner(path, spec, keep=keeper(tmp_path)) as runner:
        assert [run(runner, batch) for batch in (1, 5)] == [run(plain, batch) for batch in (1, 5)]


def keeper(folder: Path, keys: list[Mapping[str, Any]] | None = None) -> cache.Keep:
    """Makes an entry for each key that comes, in `folder`."""

    def keep(key: Mapping[str, Any], space: float, make: Callable[[Path], None]) -> Path | None:
        assert space == 2, "weights as they were, and packed"
        if keys is not None:
            keys.append(key)
        entry = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()
        if not entry.exists():
            entry.mkdir()
            make(entry)
        return entry

    return keep


def test_an_entry_is_for_a_version_and_a_batch_size(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[Mapping[str, Any]] = []
    spec = load_engine(engine).spec("vae_decoder")
    path = engine / "vae_decoder.onnx"
    for batch in (None, 3):
        with (
            OnnxRuntimeRunner(path, spec, fixed_batch=batch) as plain,
            OnnxRuntimeRunner(path, spec, fixed_batch=batch, keep=keeper(tmp_path, keys)) as runner,
        ):
            assert runner.spec == plain.spec
            assert run(runner, 3) == run(plain, 3)
    monkeypatch.setattr(onnxruntime, "__version__", "0.1")
    OnnxRuntimeRunner(path, spec, keep=keeper(tmp_path, keys)).close()
    assert [(key["provider"], key["batch"], key["version"]) for key in keys] == [
        ("CPUExecutionProvider", None, keys[0]["version"]),
        ("CPUExecutionProvider", 3, keys[0]["version"]),
        ("CPUExecutionProvider", None, "0.1"),
    ]


def test_other_providers_keep_nothing(engine: Path, tmp_path: Path) -> None:
    others = [name for name in onnxruntime.get_available_providers() if name == "AzureExecutionProvider"]
    if not others:
        pytest.skip("this onnxruntime has no other provider that starts anywhere")
    keys: list[Mapping[str, Any]] = []
    spec = load_engine(engine).spec("vae_encoder")
    OnnxRuntimeRunner(engine / "vae_encoder.onnx", spec, others[0], keep=keeper(tmp_path, keys)).close()
    assert keys == []


@pytest.mark.parametrize("damage", ["truncated weights", "other graph of that size"])
def test_a_damaged_entry_is_made_again(
    kept: Path, results: dict[str, bytes], damage: str, opened: list[tuple[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    [entry] = (path for path in entries(kept) if "-unet-" in path.name)
    graph, weights = entry / GRAPH_FILE, entry / WEIGHTS_FILE
    good = weights.stat().st_size
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-4096])
    else:
        graph.write_bytes(graph.read_bytes()[::-1])
    assert run_once(kept, "unet") == results
    assert is_whole(entry)
    assert weights.stat().st_size == good
    assert opened == [("unet.onnx", ALL), (GRAPH_FILE, NONE), (GRAPH_FILE, NONE)]
    assert not caplog.records


@pytest.fixture(scope="module")
def results() -> dict[str, bytes]:
    """What the UNet returns without a cache."""
    return run_once(TINY, "unet", cache=False)


def forge(entry: Path) -> None:
    """An entry that is as it was made, and yet nothing that onnxruntime opens."""
    (entry / GRAPH_FILE).write_bytes(b"written by another onnxruntime")
    record = json.loads((entry / "entry.json").read_text())
    record["files"] = {path.name: cache._record(path) for path in entry.iterdir() if path.name in record["files"]}
    (entry / "entry.json").write_text(json.dumps(record))
    assert is_whole(entry)


def test_an_entry_that_onnxruntime_refuses_is_no_error(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    [entry] = (path for path in entries(kept) if "-vae_encoder-" in path.name)
    forge(entry)
    assert run_once(kept) == run_once(kept, cache=False)
    [warning] = caplog.records
    assert f"cannot open {entry / GRAPH_FILE}: " in warning.getMessage()
    assert warning.getMessage().endswith(f"; using the graph itself: delete {entry} to have it made again")


def test_a_graph_that_is_refused_as_well_is_one(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = load_engine(kept)
    path = kept / "vae_encoder.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    [entry] = (path for path in entries(kept) if "-vae_encoder-" in path.name)
    forge(entry)
    with pytest.raises(EngineError, match=r"cannot open .*tiny/vae_encoder\.onnx: "):
        open_runner(kept, "vae_encoder", manifest=manifest)
    # Without an entry there is nothing to warn of either.
    shutil.rmtree(entry)
    caplog.clear()
    with pytest.raises(EngineError, match=r"cannot open .*tiny/vae_encoder\.onnx: "):
        open_runner(kept, "vae_encoder", manifest=manifest)
    assert not caplog.records
    assert not entry.exists()


@pytest.mark.parametrize("use", ["an entry", "no entry yet"])
def test_a_graph_that_differs_from_its_spec_is_refused(kept: Path, use: str, tmp_path: Path) -> None:
    spec = load_engine(kept).spec("vae_decoder")
    path = kept / "vae_encoder.onnx"
    keep = keeper(tmp_path)
    if use == "an entry":
        OnnxRuntimeRunner(path, load_engine(kept).spec("vae_encoder"), keep=keep).close()
    with pytest.raises(EngineMismatchError, match=r"vae_encoder\.onnx: expected inputs latent, found image"):
        OnnxRuntimeRunner(path, spec, keep=keep)


def test_a_read_only_engine_with_entries_uses_them(
    kept: Path, opened: list[tuple[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    paths = [kept / FOLDER, *(kept / FOLDER).rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        run_once(kept)
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert opened == [(GRAPH_FILE, NONE)]
    assert not caplog.records


def test_an_overwritten_engine_makes_its_own(kept: Path, opened: list[tuple[str, Any]]) -> None:
    assert len(entries(kept)) == 2
    with staged_engine(kept, overwrite=True) as staged:
        shutil.copytree(TINY, staged, dirs_exist_ok=True)
    assert entries(kept) == []
    run_once(kept)
    assert opened[0] == ("vae_encoder.onnx", ALL)
    [entry] = entries(kept)
    assert is_whole(entry)
