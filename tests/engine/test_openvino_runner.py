"""The embedded engine's networks through OpenVINO, against ONNX Runtime."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from g4seg_engine import cache, mapped_files, processor
from g4seg_engine.errors import EngineError, EngineMismatchError, RunnerInputError
from g4seg_engine.manifest import load_engine
from g4seg_engine.openvino_cache import MODEL_FILE
from g4seg_engine.openvino_runner import OpenVinoRunner
from g4seg_engine.processor import has_bfloat16
from g4seg_engine.runner import Array, Runner, open_runner
from g4seg_engine.spec import BATCH, NETWORKS, NetworkSpec
from g4seg_trt.refiner import EMBEDDED

pytest.importorskip("openvino", reason="needs the extra openvino")
pytest.importorskip("onnxruntime", reason="needs the extra cpu")

TINY = EMBEDDED["tiny"]
MANIFEST = load_engine(TINY)
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16 instructions")


def make_inputs(spec: NetworkSpec, batch: int, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = [batch if size == BATCH else int(size) for size in tensor.shape]
        if tensor.dtype == "int64":
            inputs[tensor.name] = generator.integers(0, 200, shape)
        else:
            inputs[tensor.name] = generator.random(shape, dtype=np.float32)
    return inputs


def distance(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def reference(network: str, inputs: dict[str, Array]) -> dict[str, Array]:
    with open_runner(TINY, network, manifest=MANIFEST, threads=1, cache=False) as runner:
        return runner.run(inputs)


def open_openvino(network: str, directory: Path = TINY, **options: Any) -> Runner:
    return open_runner(directory, network, "openvino", manifest=MANIFEST, threads=1, **options)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), pytest.param("bf16", 8e-2, marks=needs_bfloat16)])
def test_it_computes_what_onnxruntime_does(network: str, precision: str, tolerance: float) -> None:
    with open_openvino(network, compute_precision=precision) as runner:
        for batch in (1, 3) if runner.spec.max_batch > 1 else (1,):
            inputs = make_inputs(runner.spec, batch)
            before = {name: array.copy() for name, array in inputs.items()}
            found, expected = runner.run(inputs), reference(network, inputs)
            assert list(found) == [tensor.name for tensor in runner.spec.outputs]
            for name, array in found.items():
                assert array.dtype == expected[name].dtype
                assert array.shape == expected[name].shape
                error = distance(array, expected[name])
                assert error < tolerance
                # A precision that made no difference would not have been used.
                assert precision == "fp32" or error > 1e-4
            for name, array in inputs.items():
                np.testing.assert_array_equal(array, before[name])


@needs_bfloat16
def test_the_faster_precision_is_the_default() -> None:
    with open_openvino("vae_decoder") as runner, open_openvino("vae_decoder", compute_precision="bf16") as half:
        assert isinstance(runner, OpenVinoRunner)
        assert runner.compute_precision == "bf16"
        inputs = make_inputs(runner.spec, 1)
        np.testing.assert_array_equal(runner.run(inputs)["image"], half.run(inputs)["image"])


def test_results_belong_to_the_caller() -> None:
    with open_openvino("vae_decoder", compute_precision="fp32") as runner:
        first = runner.run(make_inputs(runner.spec, 1))["image"]
        kept = first.copy()
        runner.run(make_inputs(runner.spec, 1, seed=9))
        np.testing.assert_array_equal(first, kept)
        assert first.flags.owndata
        assert first.flags.writeable
    first += 1  # still there


def test_inputs_of_any_memory_layout_are_read() -> None:
    with open_openvino("vae_decoder", compute_precision="fp32") as runner:
        plain = make_inputs(runner.spec, 1)["latent"]
        turned = np.asfortranarray(plain)
        turned.flags.writeable = False
        np.testing.assert_array_equal(runner.run({"latent": turned})["image"], runner.run({"latent": plain})["image"])


def test_threads_may_share_a_runner() -> None:
    with open_openvino("vae_decoder", compute_precision="fp32") as runner, ThreadPoolExecutor(4) as pool:
        batches = [make_inputs(runner.spec, 1 + seed % 2, seed) for seed in range(12)]
        alone = [runner.run(inputs)["image"] for inputs in batches]
        for found, expected in zip(pool.map(runner.run, batches), alone, strict=True):
            np.testing.assert_array_equal(found["image"], expected)


def test_inputs_are_checked() -> None:
    with open_openvino("vae_decoder", compute_precision="fp32") as runner:
        with pytest.raises(RunnerInputError, match="dtype float64, expected float32"):
            runner.run({"latent": make_inputs(runner.spec, 1)["latent"].astype(np.float64)})
        with pytest.raises(RunnerInputError, match="batch size 65"):
            runner.run(make_inputs(runner.spec, 65))


def test_a_closed_runner_says_so() -> None:
    runner = open_openvino("vae_decoder", compute_precision="fp32")
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="vae_decoder: this runner is closed"):
        runner.run(make_inputs(runner.spec, 1))


def test_a_runner_that_is_closed_while_others_run_says_so() -> None:
    runner = open_openvino("vae_decoder", compute_precision="fp32")
    inputs = make_inputs(runner.spec, 1)
    running = Event()

    def run_on() -> str:
        try:
            while True:
                runner.run(inputs)
                running.set()
        except EngineError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(run_on) for _ in range(3)]
        assert running.wait(20)
        runner.close()
        assert {one.result(20) for one in found} == {"vae_decoder: this runner is closed"}


def test_closing_waits_for_the_run_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = open_openvino("vae_decoder", compute_precision="fp32")
    assert isinstance(runner, OpenVinoRunner)
    request, closing = runner._request, Thread(target=runner.close)

    def closed_meanwhile(batch: int) -> object:
        closing.start()
        closing.join(0.3)
        return request(batch)

    monkeypatch.setattr(runner, "_request", closed_meanwhile)
    # A batch size that is still to be compiled.
    inputs = make_inputs(runner.spec, 2)
    assert runner.run(inputs)["image"].shape[0] == 2
    closing.join(20)
    assert not closing.is_alive()
    with pytest.raises(EngineError, match="vae_decoder: this runner is closed"):
        runner.run(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_precision": "fp16"}, "compute precision 'fp16' is unknown to openvino: choose from fp32, bf16"),
        ({"device": "cuda"}, "backend openvino has no device 'cuda': choose from cpu"),
    ],
)
def test_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError) as caught:
        open_openvino("vae_decoder", **options)
    assert str(caught.value) == message


def test_too_few_threads() -> None:
    with pytest.raises(EngineError, match="threads is 0, expected 1 or more"):
        open_runner(TINY, "vae_decoder", "openvino", manifest=MANIFEST, threads=0)


def test_bfloat16_on_a_processor_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    with pytest.raises(EngineError, match="no bfloat16 instructions: choose --compute-precision fp32"):
        open_openvino("vae_decoder", compute_precision="bf16")
    with open_openvino("vae_decoder") as runner:
        assert isinstance(runner, OpenVinoRunner)
        assert runner.compute_precision == "fp32"


def test_onnxruntime_computes_in_the_engines_own_precision() -> None:
    with pytest.raises(EngineError, match="compute precision is 'bf16', allowed with backend onnxruntime: none"):
        open_runner(TINY, "vae_decoder", compute_precision="bf16")


def test_without_openvino() -> None:
    program = (
        "import sys; sys.modules['openvino'] = None\n"
        "from g4seg_trt import Refiner\n"
        "from g4seg_trt.errors import MissingExtraError\n"
        "try:\n"
        "    Refiner.from_engine('tiny', backend='openvino')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "openvino is not installed: pip install 'g4seg-trt[openvino]'\n"


def test_another_graph_than_the_spec() -> None:
    spec = MANIFEST.spec("vae_decoder")
    wrong = replace(spec, outputs=(replace(spec.outputs[0], name="picture"),))
    graph = TINY / MANIFEST.networks["vae_decoder"].files[0].file
    with pytest.raises(EngineMismatchError, match=r"outputs picture are missing, found .*image"):
        OpenVinoRunner(graph, wrong, "fp32", 1)
    narrow = replace(spec, inputs=(replace(spec.inputs[0], shape=(BATCH, 3, 16, 16)),))
    with pytest.raises(EngineMismatchError, match=r"expected latent float32 \[B, 3, 16, 16\], found latent float32"):
        OpenVinoRunner(graph, narrow, "fp32", 1)


def test_a_damaged_graph_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "vae_decoder.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match=r"OpenVINO .* cannot open .*vae_decoder.onnx: ") as caught:
        OpenVinoRunner(path, MANIFEST.spec("vae_decoder"), "fp32", 1)
    assert "\n" not in str(caught.value)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded engine whose networks are all worth keeping."""
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0)
    return Path(shutil.copytree(TINY, tmp_path / "engine"))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bfloat16)])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_kept_computes_the_same(engine: Path, network: str, precision: str) -> None:
    batch = 2 if MANIFEST.spec(network).max_batch > 1 else 1
    inputs = make_inputs(MANIFEST.spec(network), batch)
    options: dict[str, Any] = {"compute_precision": precision, "batch": batch}
    results = []
    for _ in range(2):
        with open_openvino(network, engine, **options) as runner:
            results.append(runner.run(inputs))
    (entry,) = (engine / cache.FOLDER).iterdir()
    assert entry.name.startswith(f"openvino-{network}-")
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", MODEL_FILE]
    assert (entry / MODEL_FILE).stat().st_mode == (entry / "entry.json").stat().st_mode
    with open_openvino(network, engine, **options, cache=False) as runner:
        results.append(runner.run(inputs))
    for found in results[1:]:
        for name, array in results[0].items():
            assert found[name].tobytes() == array.tobytes()


def test_each_batch_size_and_precision_has_an_entry(engine: Path) -> None:
    with open_openvino("vae_decoder", engine, compute_precision="fp32") as runner:
        runner.run(make_inputs(runner.spec, 1))
        runner.run(make_inputs(runner.spec, 2))
    assert len(list((engine / cache.FOLDER).iterdir())) == 2
    if has_bfloat16():
        open_openvino("vae_decoder", engine, compute_precision="bf16").close()
        assert len(list((engine / cache.FOLDER).iterdir())) == 3


def test_an_entry_that_cannot_be_opened_gives_way_to_the_graph(
    engine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = make_inputs(MANIFEST.spec("vae_decoder"), 1)
    with open_openvino("vae_decoder", engine, compute_precision="fp32") as runner:
        expected = runner.run(inputs)["image"]
    (entry,) = (engine / cache.FOLDER).iterdir()
    (entry / MODEL_FILE).write_bytes(b"no graph at all")
    # As when it is deleted between the look at it and its use.
    monkeypatch.setattr(cache, "is_whole", lambda _: True)
    for _ in range(2):
        with open_openvino("vae_decoder", engine, compute_precision="fp32") as runner:
            np.testing.assert_array_equal(runner.run(inputs)["image"], expected)
    [warning] = caplog.records
    message = warning.getMessage()
    assert message.startswith("OpenVINO ")
    assert f"cannot open {entry / MODEL_FILE}: " in message
    assert message.endswith(f"; using the graph itself: delete {entry} to have it made again")
    assert "\n" not in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_no_weights_are_there_twice_once_they_are_packed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent: list[int] = []
    give_back = mapped_files._give_back

    def counted(extents: list[tuple[int, int]]) -> None:
        lent.append(sum(last - first for first, last in extents))
        give_back(extents)

    open_openvino("unet", engine, compute_precision="fp32").close()
    monkeypatch.setattr(mapped_files, "_give_back", counted)
    with open_openvino("unet", engine, compute_precision="fp32") as runner:
        (entry,) = (engine / cache.FOLDER).iterdir()
        assert lent[-1] >= (entry / MODEL_FILE).stat().st_size
        # What is given back comes again.
        inputs = make_inputs(runner.spec, 1)
        first = runner.run(inputs)
        for name, array in runner.run(inputs).items():
            np.testing.assert_array_equal(first[name], array)
        assert str(entry) in Path("/proc/self/maps").read_text(encoding="utf-8")
    gc.collect()
    assert str(entry) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_room_is_asked_for_what_will_be_kept(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(record.bytes for record in MANIFEST.networks["vae_decoder"].files)
    for free, entries in ((size - 1, 0), (size, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(cache, "_refused", set())
        open_openvino("vae_decoder", engine, compute_precision="fp32").close()
        assert len(list((engine / cache.FOLDER).iterdir())) == entries


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bfloat16)])
@pytest.mark.parametrize("kilobytes", [1, 100])
def test_a_disk_that_fills_up_costs_only_the_cache(
    engine: Path, precision: str, kilobytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource", reason="limits of files are POSIX's")
    inputs = make_inputs(MANIFEST.spec("unet"), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, limits[1]))
    try:
        runner = open_openvino("unet", engine, compute_precision=precision)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with runner:
        found = runner.run(inputs)
    with open_openvino("unet", engine, compute_precision=precision, cache=False) as plain:
        for name, array in plain.run(inputs).items():
            np.testing.assert_array_equal(found[name], array)
    [warning] = caplog.records
    assert f"no cache in {engine / cache.FOLDER} (" in warning.getMessage()
    assert not list((engine / cache.FOLDER).iterdir())
