"""The chain on torch tensors against the host chain: the embedded engine, both on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from g4seg_engine.manifest import load_engine
from g4seg_engine.onnxruntime_tensors import OnnxRuntimeTensorRunner
from g4seg_engine.spec import NETWORKS
from g4seg_trt.chain import ClassMask, HostChain
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import ConfigError, EngineError
from g4seg_trt.injection import seeded_noise
from g4seg_trt.refiner import EMBEDDED
from g4seg_trt.timing import Timings
from g4seg_trt.torch_chain import TorchChain

TINY = EMBEDDED["tiny"]
MANIFEST = load_engine(TINY)
DIMS = MANIFEST.dims
CONFIG = RefineConfig(certainty_filter=(0.3, 0.7), beta=0.5, emi_self=5.0, emi_cross=5.0)


@pytest.fixture(scope="module")
def host() -> Iterator[HostChain]:
    chain = HostChain.open(TINY, MANIFEST, batch_size=3)
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def chain() -> Iterator[TorchChain]:
    opened = TorchChain.open(TINY, MANIFEST, backend="onnxruntime", device="cpu", batch_size=3)
    yield opened
    opened.close()


def pair(chain: Any, seed: int, searched: bool = False) -> ClassMask:
    generator = np.random.default_rng(seed)
    smooth = generator.random((3, 8, 8), dtype=np.float32).repeat(DIMS.square // 8, 1).repeat(DIMS.square // 8, 2)
    token_mask = np.zeros(DIMS.text_length, dtype=np.float32)
    token_mask[5] = 1
    side = (DIMS.square, DIMS.square)
    return ClassMask(
        chain.encode_image(smooth),
        chain.encode_text(generator.integers(0, 300, DIMS.text_length), Timings()),
        token_mask,
        (generator.random((1, DIMS.latent_size, DIMS.latent_size)) > 0.5).astype(np.float32),
        generator.random(side, dtype=np.float32),
        seeded_noise(seed, (DIMS.latent_channels, DIMS.latent_size, DIMS.latent_size)),
        generator.random(side) < 0.3 if searched else None,
    )


def agree(ours: Any, theirs: Any) -> None:
    assert np.array_equal(ours.indices, theirs.indices)
    for name in ("residual", "similarities", "generated", "denoised"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        assert np.abs(one - other).max() < 1e-6, name


@pytest.mark.parametrize("resolution", ["grid", "pixel"])
@pytest.mark.parametrize("radius", [None, 0.25])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_is_the_host_chain(
    host: HostChain, chain: TorchChain, resolution: str, radius: float | None, count: int
) -> None:
    config = replace(CONFIG, resolution=resolution, radius=radius)
    ours = chain.refine_batch([pair(chain, seed, seed == 1) for seed in range(count)], config)
    theirs = host.refine_batch([pair(host, seed, seed == 1) for seed in range(count)], config)
    assert len(ours) == count
    for one, other in zip(ours, theirs, strict=True):
        agree(one, other)
        assert set(one.timings) == {"networks"}


def test_results_stay_when_the_buffers_are_used_again(chain: TorchChain) -> None:
    pairs = [pair(chain, seed) for seed in range(2)]
    first = chain.refine_batch(pairs, CONFIG)
    kept = [{name: np.copy(getattr(one, name)) for name in ("residual", "indices", "generated")} for one in first]
    again = chain.refine_batch(pairs[::-1], CONFIG)
    chain.refine_batch([pair(chain, 7)], replace(CONFIG, beta=0.1, timestep=100))
    for one, old in zip(first, kept, strict=True):
        for name, values in old.items():
            assert np.array_equal(getattr(one, name), values)
    for one, other in zip(again[::-1], first, strict=True):
        agree(one, other)


def test_settings_that_change_take_effect(chain: TorchChain, host: HostChain) -> None:
    ours, theirs = pair(chain, 3), pair(host, 3)
    for change in ({"beta": 0.9}, {"timestep": 50}, {"emi_cross": 0.0}, {"beta": 0.5}, {"radius": 0.1}, {}):
        config = replace(CONFIG, **change)
        agree(chain.refine_batch([ours], config)[0], host.refine_batch([theirs], config)[0])


@pytest.mark.parametrize("count", [0, 4])
def test_batches_of_the_wrong_size(chain: TorchChain, count: int) -> None:
    with pytest.raises(ValueError, match="in a batch of 1 to 3"):
        chain.refine_batch([pair(chain, 0)] * count, CONFIG)


def test_values_that_are_not_finite_are_an_error(chain: TorchChain) -> None:
    one = pair(chain, 0)
    spoiled = replace(one, noise=np.full_like(one.noise, np.nan))
    with pytest.raises(EngineError, match="unet returned values that are not finite"):
        chain.refine_batch([spoiled], CONFIG)
    chain.refine_batch([one], CONFIG)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_no_gpu_is_one_clear_line() -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver was found"):
        TorchChain.open(TINY, MANIFEST, backend="onnxruntime", device="cuda")


@pytest.mark.parametrize("batch_size", [0, -1, 1000])
def test_batch_sizes_that_the_networks_do_not_take(batch_size: int) -> None:
    with pytest.raises(ConfigError, match="batch size"):
        TorchChain.open(TINY, MANIFEST, backend="onnxruntime", device="cpu", batch_size=batch_size)


class Stream:
    """Looks like a CUDA stream, on the CPU."""

    device = torch.device("cpu")


class Capture:
    """Stands in for torch's CUDA graphs on a CPU: a replay launches again what was launched in the capture."""

    fails = ""

    def __init__(self) -> None:
        self.launch: Any = None
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.launch()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Capture]:
    """A chain that believes to be on a GPU: streams do nothing, captures are counted."""
    made: list[Capture] = []

    class Graph(Capture):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    @contextmanager
    def capturing(graph: Capture, stream: object) -> Iterator[None]:
        assert isinstance(stream, Stream)
        if Capture.fails:
            raise RuntimeError(Capture.fails)
        graph.launch = steps[-1].launch
        yield

    def plain(chain: TorchChain, setting: Any) -> Any:
        steps.append(whole(chain, setting))
        return steps[-1]

    steps: list[Any] = []
    whole = TorchChain._plain
    monkeypatch.setattr(TorchChain, "_plain", plain)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device=None: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(OnnxRuntimeTensorRunner, "capturable", True)
    return made


def opened_on(stream: Any) -> TorchChain:
    runners: Any = {
        name: OnnxRuntimeTensorRunner(
            TINY / MANIFEST.networks[name].files[0].file, MANIFEST.spec(name), None, device="cpu"
        )
        for name in NETWORKS
    }
    return TorchChain(runners, DIMS, 2, stream=stream)


def test_one_graph_per_setting_and_one_replay_per_batch(captures: list[Capture], host: HostChain) -> None:
    chain = opened_on(Stream())
    ours, theirs = pair(chain, 0), pair(host, 0)
    for config in (CONFIG, CONFIG, replace(CONFIG, timestep=7), replace(CONFIG, beta=0.9), CONFIG):
        agree(chain.refine_batch([ours], config)[0], host.refine_batch([theirs], config)[0])
    assert len(captures) == 2
    assert [capture.replays for capture in captures] == [4, 1]


def test_a_capture_that_fails_is_a_warning_and_costs_nothing_else(
    captures: list[Capture], host: HostChain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Capture, "fails", "operation not permitted when stream is capturing\nmore")
    chain = opened_on(Stream())
    for _ in range(2):
        agree(chain.refine_batch([pair(chain, 0)], CONFIG)[0], host.refine_batch([pair(host, 0)], CONFIG)[0])
    (record,) = caplog.records
    expected = "no CUDA graph (operation not permitted when stream is capturing): launching one by one, which is slower"
    assert record.getMessage() == expected
    assert len(captures) == 1, "it is tried once"


def test_out_of_memory_names_a_batch_size(chain: TorchChain, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    one = pair(chain, 0)
    monkeypatch.setattr(chain, "_fill_batch", full)
    with pytest.raises(EngineError, match="out of memory at batch size 3: try --batch-size 1"):
        chain.refine_batch([one], CONFIG)


class Built:
    """A runner that was built for some batch sizes and never runs."""

    def __init__(self, *sizes: int) -> None:
        self.batch_sizes = sizes


@pytest.mark.parametrize(
    ("built", "wanted", "expected"),
    [((), None, 1), ((), 5, 5), ((1, 2, 4), None, 4), ((1, 2, 4), 8, 4), ((1, 2, 4), 3, 2), ((4, 8), 2, 4)],
)
def test_more_than_was_built_is_split(built: tuple[int, ...], wanted: int | None, expected: int) -> None:
    from g4seg_trt.torch_chain import _built

    runners: Any = {name: Built(*built) for name in ("unet", "vae_decoder", "image_encoder")}
    assert _built(runners, wanted) == expected


def test_networks_built_for_different_sizes() -> None:
    from g4seg_trt.torch_chain import _built

    runners: Any = {"unet": Built(1), "vae_decoder": Built(2), "image_encoder": Built(1, 2)}
    with pytest.raises(EngineError, match="different batch sizes"):
        _built(runners, None)
