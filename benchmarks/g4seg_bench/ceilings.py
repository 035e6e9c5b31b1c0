"""What the machine can do at best: the rate of products and convolutions and of copying, measured with PyTorch.

A stage's floor is the time that its work takes at these rates, and its share of the ceiling is how near it comes to
that floor. The ceilings are measured in the same run as the stages, because both change with clocks and neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from g4seg_bench.processes import available_mb
from g4seg_bench.work import Work
from g4seg_engine.errors import G4SegError, MissingExtraError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16")
SECONDS = 1.0
"""Time for each precision, and for copying; the first run of everything comes on top."""
LEAST_RUNS = 3

# Rows, inner width, columns: square ones, then those of a feed-forward layer and of a convolution of SD2.1.
CPU_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 320, 2560))
CUDA_PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 1280, 10240), (65536, 2304, 256))
# Channels and side of a 3x3 convolution in the VAE. On a CPU another library does them, in float32 often the faster.
CPU_CONVOLUTIONS = ((512, 64), (128, 256))
TRIAL_SHAPE = (512, 512, 512)
SLOW = 4
"""A precision that is this many times slower than float32 in a small product is left out."""

_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST_BUFFER = 256 * 2**20
_LARGEST_BUFFER = 2**30


@dataclass(frozen=True)
class Ceilings:
    """The best rates that were measured.

    Attributes:
        gflops: 10^9 floating point operations a second by precision, of what is fastest, the median of its runs.
        copy_gb_s: 10^9 bytes read and written a second.
        notes: what a reader should know: what was fastest, and what was left out and why.
    """

    gflops: Mapping[str, float]
    copy_gb_s: float
    notes: tuple[str, ...]


def measure_ceilings(device: str, threads: int) -> Ceilings:
    """Measure for some seconds.

    Args:
        device: "cpu" or "cuda".
        threads: of PyTorch while this runs, on a CPU.

    Raises:
        MissingExtraError: if PyTorch is not installed.
        G4SegError: if it is another device, or there is no GPU.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError.for_package("torch", "export") from error
    if device not in ("cpu", "cuda"):
        raise G4SegError(f"device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise G4SegError("PyTorch sees no GPU to measure: choose the device cpu")
    cuda = device == "cuda"
    timer = _time_on_cuda if cuda else _time_on_cpu
    shapes = CUDA_PRODUCTS if cuda else CPU_PRODUCTS
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    gflops: dict[str, float] = {}
    notes: list[str] = []
    with _threads(threads), torch.inference_mode():
        trials = {name: _best([_product(dtype, device, TRIAL_SHAPE)], timer, 0.0) for name, dtype in dtypes.items()}
        for name, dtype in dtypes.items():
            small, single = trials[name].gflops, trials["fp32"].gflops
            if small * SLOW < single:
                notes.append(
                    f"{name} left out: {small:.1f} GFLOP/s in a small product and {single:.1f} in fp32, "
                    "so there are no instructions for it"
                )
                continue
            candidates = [_product(dtype, device, shape) for shape in shapes]
            if not cuda:
                candidates += [_convolution(dtype, *shape) for shape in CPU_CONVOLUTIONS]
            best = _best(candidates, timer, SECONDS)
            gflops[name] = round(best.gflops, 3)
            notes.append(f"{name}: {best.label} is fastest")
        copy_gb_s, buffer = _copy_rate(device, timer)
    notes.append(f"copy: {buffer / 2**20:.0f} MiB, bytes read and written")
    if cuda and torch.backends.cuda.matmul.allow_tf32:
        notes.append("fp32: TF32 was allowed")
    return Ceilings(gflops, round(copy_gb_s, 1), tuple(notes))


def floor_seconds(work: Work, ceilings: Ceilings, precision: str, stored: str | None = None) -> float | None:
    """The time that the work takes at the ceilings: of the operations or of the bytes, whichever is longer.

    Args:
        work: counted from a graph.
        ceilings: of the machine.
        precision: what the backend computes in.
        stored: precision of the graph, where the backend computes in a narrower one and so moves fewer bytes; by
            default the same.

    Returns:
        Seconds, or None where there is no ceiling for this precision.
    """
    rate = ceilings.gflops.get(precision)
    if rate is None:
        return None
    narrower = 1.0 if stored is None else min(1.0, _WIDTHS[precision] / _WIDTHS[stored])
    return max(work.flop / (rate * 1e9), work.bytes * narrower / (ceilings.copy_gb_s * 1e9))


def share(work: Work, seconds: float, ceilings: Ceilings, precision: str, stored: str | None = None) -> float | None:
    """The share of the ceiling that a stage reaches: floor over measured seconds (arguments as `floor_seconds`)."""
    floor = floor_seconds(work, ceilings, precision, stored)
    return None if floor is None or seconds <= 0 else floor / seconds


Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class _Candidate:
    """Something to time: what to call it, its operations, and how to set it up."""

    label: str
    flop: float
    prepare: Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class _Best:
    label: str
    gflops: float


def _product(dtype: torch.dtype, device: str, shape: tuple[int, int, int]) -> _Candidate:
    rows, inner, columns = shape

    def prepare() -> Callable[[], object]:
        import torch

        left = torch.rand(rows, inner, device=device).to(dtype)
        right = torch.rand(inner, columns, device=device).to(dtype)
        return lambda: torch.mm(left, right)

    return _Candidate(f"a product {rows} x {inner} x {columns}", 2.0 * rows * inner * columns, prepare)


def _convolution(dtype: torch.dtype, channels: int, side: int) -> _Candidate:
    def prepare() -> Callable[[], object]:
        import torch

        layout = torch.channels_last
        image = torch.rand(1, channels, side, side).to(dtype).contiguous(memory_format=layout)
        weight = torch.rand(channels, channels, 3, 3).to(dtype).contiguous(memory_format=layout)
        return lambda: torch.conv2d(image, weight, padding=1)

    label = f"a 3 x 3 convolution of {channels} channels at {side} x {side}"
    return _Candidate(label, 2.0 * 9 * (channels * side) ** 2, prepare)


def _best(candidates: Sequence[_Candidate], timer: Timer, budget: float) -> _Best:
    """The fastest of some; they share the budget, in seconds."""
    rates = {
        one.label: 1e-9 * one.flop / _repeated(one.prepare(), timer, budget / len(candidates)) for one in candidates
    }
    label = max(rates, key=rates.__getitem__)
    return _Best(label, rates[label])


def _copy_rate(device: str, timer: Timer) -> tuple[float, int]:
    """GB/s read and written by a copy, and the bytes of its buffer."""
    import torch

    size = _LARGEST_BUFFER if device == "cuda" else _buffer_bytes(_last_cache_bytes(_CACHES), available_mb())
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)  # written once, so that its pages exist
    return 2e-9 * size / _repeated(lambda: target.copy_(source), timer, SECONDS), size


def _repeated(action: Callable[[], object], timer: Timer, budget: float) -> float:
    """The median time of an action in seconds, after a run that does not count."""
    timer(action)
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or sum(seconds) < budget:
        seconds.append(timer(action))
    return median(seconds)


def _time_on_cpu(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _time_on_cuda(action: Callable[[], object]) -> float:
    import torch

    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads, and then with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _buffer_bytes(cache: int, available: float | None) -> int:
    """Far larger than the last cache, but both buffers within half of the available memory (in MB)."""
    wanted = min(max(_LEAST_BUFFER, 8 * cache), _LARGEST_BUFFER)
    return wanted if available is None else min(wanted, int(available * 1e6 / 4))


def _last_cache_bytes(folder: Path) -> int:
    """Size of the largest cache that the first core uses; 0 where the system does not say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [0]
    for file in folder.glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        number = text.rstrip("KMG")
        if number.isdigit():
            sizes.append(int(number) * units.get(text[len(number) :], 1))
    return max(sizes)
