"""ONNX Runtime's cache in processes of their own: shared weights, private memory, races, no room on the disk."""

from __future__ import annotations

import ctypes
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import g4seg_trt
from g4seg_engine import cache
from g4seg_engine.build import network_record
from g4seg_engine.cache import FOLDER, is_whole
from g4seg_engine.manifest import Manifest, write_manifest
from g4seg_engine.onnxruntime_cache import GRAPH_FILE, WEIGHTS_FILE
from g4seg_engine.runner import Array, open_runner

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra cpu")

TINY = Path(g4seg_trt.__file__).parent / "assets" / "tiny"

keeps_packed_weights = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 21), reason="needs onnxruntime 1.21"
)

# Waits for a line, opens a network, runs it, says what came out, and waits for a line again.
PROCESS = """
import hashlib, sys
import numpy as np
from g4seg_engine import cache
from g4seg_engine.runner import open_runner

cache.WORTH_KEEPING = 0
engine, network, use = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with open_runner(engine, network, threads=1, cache=use == "cache") as runner:
    generator = np.random.default_rng(0)
    inputs = {
        tensor.name: generator.random([2 if size == "B" else size for size in tensor.shape]).astype(tensor.dtype)
        for tensor in runner.spec.inputs
    }
    outputs = runner.run(inputs)
    print(hashlib.sha256(b"".join(array.tobytes() for array in outputs.values())).hexdigest(), flush=True)
    assert "onnx" not in sys.modules
    sys.stdin.readline()
"""


class Process:
    """PROCESS on an engine.

    Attributes:
        result: the hash of what the network returned.
    """

    def __init__(self, engine: Path, network: str, use: str = "cache", prepare: Any = None) -> None:
        command = [sys.executable, "-c", PROCESS, str(engine), network, use]
        self._process = subprocess.Popen(
            command, stdin=-1, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare
        )
        self.pid = self._process.pid
        self.result = ""

    def __enter__(self) -> Process:
        return self

    def start(self) -> None:
        """Go as far as the network's open."""
        assert self._read() == "ready"
        self._go()

    def wait(self) -> None:
        """Wait until the network has run."""
        self.result = self._read()

    def end(self) -> str:
        """End the process and return what it logged."""
        out, errors = self._process.communicate("\n", timeout=60)
        assert (self._process.returncode, out) == (0, ""), errors
        return errors

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return line.rstrip("\n")


@contextmanager
def run_process(*arguments: Any, **options: Any) -> Iterator[Process]:
    with Process(*arguments, **options) as process:
        process.start()
        process.wait()
        yield process


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The embedded engine without entries."""
    return shutil.copytree(TINY, tmp_path / "tiny")


def entries(engine: Path) -> list[Path]:
    return sorted((engine / FOLDER).iterdir()) if (engine / FOLDER).exists() else []


@pytest.fixture(scope="module")
def large_engine(tmp_path_factory: pytest.TempPathFactory, fill_engine: Callable[[Path], Manifest]) -> Path:
    """An engine whose image encoder has 22 MB of weights for products, and between them weights of odd sizes."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to write graphs")
    helper, floats, generator = onnx.helper, onnx.TensorProto.FLOAT, np.random.default_rng(0)
    products = {"small": (64, 64), "wide": (64, 8192), "deep": (8192, 601), "last": (601, 192)}
    weights: dict[str, Array] = {
        name: generator.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)
        for name, shape in products.items()
    }
    weights |= {"bits": generator.random(5929) < 0.5, "more bits": generator.random(2**20 + 77) < 0.5}
    weights |= {"square": np.array([0, 64, 64]), "grid": np.array([0, 48, 16, 16]), "channel": np.array([1])}
    nodes = [
        helper.make_node("ReduceMean", ["image", "channel"], ["gray"]),
        helper.make_node("Reshape", ["gray", "square"], ["rows"]),
        helper.make_node("ArgMax", ["rows"], ["places"], axis=1, keepdims=0),
        helper.make_node("Gather", ["bits", "places"], ["some"]),
        helper.make_node("Gather", ["more bits", "places"], ["others"]),
        helper.make_node("Or", ["some", "others"], ["either"]),
        helper.make_node("Cast", ["either"], ["ones"], to=floats),
        helper.make_node("Unsqueeze", ["ones", "channel"], ["row"]),
        helper.make_node("Add", ["rows", "row"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{place}", name], [f"x{place + 1}"]) for place, name in enumerate(products)),
        helper.make_node("Reshape", ["x4", "grid"], ["features"]),
    ]
    engine = tmp_path_factory.mktemp("large")
    manifest = fill_engine(engine)
    spec = manifest.spec("image_encoder")
    sides = [
        [helper.make_tensor_value_info(tensor.name, floats, ["B", *tensor.shape[1:]]) for tensor in tensors]
        for tensors in (spec.inputs, spec.outputs)
    ]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "products", *sides, initializers)
    path = engine / "image_encoder.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    record = network_record(spec, [path], opset=18, precision="fp32", parity={})
    write_manifest(engine, replace(manifest, networks={**manifest.networks, "image_encoder": record}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "WORTH_KEEPING", 0)
        open_runner(engine, "image_encoder").close()
    return engine


@keeps_packed_weights
def test_packed_weights_begin_at_a_page(large_engine: Path) -> None:
    onnx = pytest.importorskip("onnx")
    [entry] = entries(large_engine)
    graph = onnx.load(entry / GRAPH_FILE, load_external_data=False).graph
    places = {weight.name: {pair.key: pair.value for pair in weight.external_data} for weight in graph.initializer}
    packed = {name: place["prepacked_0"] for name, place in places.items() if "prepacked_0" in place}
    assert set(packed) == {"wide", "deep"}
    assert set(places["more bits"]) >= {"offset"}
    # "kernel+hash|offset;length;checksum"
    assert [int(blob.split("|")[1].split(";")[0]) % 4096 for blob in packed.values()] == [0, 0]


@keeps_packed_weights
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_processes_share_the_weights(large_engine: Path) -> None:
    [entry] = entries(large_engine)
    weights = entry / WEIGHTS_FILE
    with (
        run_process(large_engine, "image_encoder", "plain") as plain,
        run_process(large_engine, "image_encoder") as first,
        run_process(large_engine, "image_encoder") as second,
    ):
        assert plain.result == first.result == second.result
        assert not memory_of(weights, plain.pid)
        for process in (first, second):
            memory = memory_of(weights, process.pid)
            # What the kernels read; the rest is the same weights before they were packed.
            assert 0.4 * weights.stat().st_size < memory["Rss"] < 0.6 * weights.stat().st_size
            assert memory["Anonymous"] == 0
            assert memory["Shared_Clean"] + memory["Shared_Dirty"] > 0.95 * memory["Rss"]
            assert 0.45 * memory["Rss"] < memory["Pss"] < 0.6 * memory["Rss"]
            # They are not in the process's own memory as well.
            assert private_memory(process.pid) < private_memory(plain.pid) - 0.8 * memory["Rss"]


@keeps_packed_weights
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_the_start_that_makes_an_entry_keeps_no_memory_of_it(large_engine: Path, tmp_path: Path) -> None:
    engine = shutil.copytree(large_engine, tmp_path / "engine", ignore=shutil.ignore_patterns(FOLDER))
    private = []
    for _ in range(2):
        with run_process(engine, "image_encoder") as process:
            private.append(private_memory(process.pid))
    assert private[0] < private[1] + 8 * 2**20


def memory_of(path: Path, pid: int) -> Counter[str]:
    """Bytes of each kind that a process has of a mapped file."""
    found: Counter[str] = Counter()
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] += int(value.split()[0]) * 1024 * inside
        elif "-" in line.split(" ")[0]:
            inside = line.endswith(f" {path}")
    return +found


def private_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.fixture(scope="module")
def plain_result() -> str:
    """What a process gets from the VAE's encoder without a cache."""
    with run_process(TINY, "vae_encoder", "plain") as process:
        return process.result


def test_processes_that_make_an_entry_at_once(engine: Path, plain_result: str) -> None:
    with Process(engine, "vae_encoder") as first, Process(engine, "vae_encoder") as second:
        for process in (first, second):
            process.start()
        for process in (first, second):
            process.wait()
            assert process.result == plain_result
            assert process.end() == ""
    [entry] = entries(engine)
    assert is_whole(entry)


def limit_files() -> None:
    # What a full disk does at this size, and nothing else: writing fails.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def obey_permissions() -> None:
    # root without the right to ignore them (CAP_DAC_OVERRIDE); for other users this does nothing.
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits and capabilities")
@pytest.mark.parametrize("trouble", ["the disk fills up", "read-only"])
def test_a_start_without_room_for_a_cache_is_as_before(engine: Path, plain_result: str, trouble: str) -> None:
    if trouble == "read-only":
        engine.chmod(0o555)
    prepare = obey_permissions if trouble == "read-only" else limit_files
    try:
        with run_process(engine, "vae_encoder", prepare=prepare) as process:
            assert process.result == plain_result
            [warning] = process.end().splitlines()
    finally:
        engine.chmod(0o755)
    assert warning.startswith(f"no cache in {engine / FOLDER} (")
    assert ("Permission denied" if trouble == "read-only" else "vae_encoder.onnx") in warning
    assert entries(engine) == []
