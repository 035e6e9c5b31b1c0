"""Builds TensorRT plans from an engine directory's ONNX graphs: one static plan per network and batch size.

Through Polygraphy's loaders, which carry the differences between TensorRT's versions. Networks are strongly typed: the
precision is the graph's own. Each plan is checked (tensorrt_check) before it is written.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4seg_engine import tensorrt_check as check
from g4seg_engine.build import record_file
from g4seg_engine.cuda_device import CudaDevice, cuda_device
from g4seg_engine.errors import EngineError
from g4seg_engine.manifest import ArtefactRecord, Manifest
from g4seg_engine.spec import BATCH, NETWORKS, NetworkSpec
from g4seg_engine.tensorrt_api import (
    Messages,
    cannot_start,
    import_tensorrt,
    new_runtime,
    polygraphy_errors,
    require_polygraphy,
)
from g4seg_engine.tensorrt_artefact import (
    BACKEND,
    FOLDER,
    ONNX_FLAG,
    TIMING_CACHE,
    layers_file,
    onnx_hashes,
    plan_file,
)
from g4seg_engine.tensorrt_progress import build_progress

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

OPTIMIZATION_LEVELS = range(6)
SINGLE = ("text_encoder", "vae_encoder")
"""Networks that run for one text or image at a time, whatever the batch of pairs."""

_QUOTED = 3  # how many of TensorRT's last errors a message holds


@dataclass(frozen=True)
class _Options:
    workspace_gb: float | None
    optimization_level: int
    progress: bool


@dataclass(frozen=True)
class _Built:
    """A finished plan, with what the inspector says about it and figures for the manifest."""

    plan: trt.IHostMemory
    layers: str
    figures: dict[str, Any]
    timings: bytes


def build_tensorrt(
    directory: Path,
    manifest: Manifest,
    *,
    batch_sizes: tuple[int, ...],
    workspace_gb: float | None,
    optimization_level: int,
    timing_cache: Path | None,
    progress: bool,
    earlier_timings: Path | None = None,
) -> tuple[ArtefactRecord, ...]:
    """Build plans for every network, for this machine's GPU, into ``tensorrt/`` of an engine directory.

    Run it inside `staged_engine`, so that a failure leaves the engine that was there. Text and VAE encoder are built
    for batch size 1, the image encoder for 1 as well.

    Args:
        directory: holds the ONNX graphs that the manifest lists.
        manifest: of the directory, without plans.
        batch_sizes: of (image, class) pairs.
        workspace_gb: GPU memory that a kernel may use for itself, in GiB; None for all there is.
        optimization_level: 0 (fast build) to 5 (fast engine); TensorRT's own default is 3.
        timing_cache: a file to read measured timings from and to add new ones to, besides the engine's own.
        progress: show a progress bar on stderr.
        earlier_timings: a file to read timings from where `timing_cache` is None or not there yet; never written.

    Returns:
        One record per network. The last one also lists the timing cache.

    Raises:
        MissingExtraError: TensorRT, Polygraphy or PyTorch is not installed.
        EngineError: for an option out of range, without a usable GPU, if TensorRT cannot build a graph (its last
            errors are in the message), or if a half graph came out as a float32 engine.
        KeyboardInterrupt: after Ctrl-C, at the next step of the build.
    """
    sizes = {name: _batch_sizes(manifest.spec(name), batch_sizes) for name in NETWORKS}
    if optimization_level not in OPTIMIZATION_LEVELS:
        raise EngineError(f"optimization level is {optimization_level}, expected 0 to {OPTIMIZATION_LEVELS[-1]}")
    if workspace_gb is not None and not workspace_gb > 0:
        raise EngineError(f"workspace is {workspace_gb} GB, expected more than 0")
    module = import_tensorrt()
    require_polygraphy()
    device = cuda_device()
    options = _Options(workspace_gb, optimization_level, progress)
    timings = _read_timings(timing_cache, earlier_timings)
    (directory / FOLDER).mkdir(exist_ok=True)

    artefacts: list[ArtefactRecord] = []
    for name in NETWORKS:
        files: list[Path] = []
        figures: dict[str, Any] = {}
        for batch in sizes[name]:
            built = _build(module, directory, manifest, name, batch, options, timings)
            timings = built.timings
            files += [directory / plan_file(name, batch), directory / layers_file(name, batch)]
            _write(files[-2], built.plan)
            _write(files[-1], built.layers.encode("utf-8", "backslashreplace"))
            figures[str(batch)] = built.figures
            if timing_cache is not None and timings:
                _write(timing_cache, timings)
            del built  # its plan is as large as the weights
        if name == NETWORKS[-1] and timings:
            files.append(directory / TIMING_CACHE)
            _write(files[-1], timings)
        flags = _build_flags(manifest, name, options, figures)
        artefacts.append(_record(module, directory, name, sizes[name], files, device, flags))
    return tuple(artefacts)


def _batch_sizes(spec: NetworkSpec, wanted: Sequence[int]) -> tuple[int, ...]:
    if not wanted:
        raise EngineError("no batch sizes, expected at least one such as 1")
    for size in wanted:
        if spec.name not in SINGLE and not spec.min_batch <= size <= spec.max_batch:
            raise EngineError(f"batch size is {size}, expected {spec.min_batch} to {spec.max_batch}")
    if spec.name in SINGLE:
        return (1,)
    # Once per image the image encoder sees a single one.
    return tuple(sorted({*wanted, 1} if spec.name == "image_encoder" else set(wanted)))


def _build(
    module: Any, directory: Path, manifest: Manifest, name: str, batch: int, options: _Options, timings: bytes
) -> _Built:
    """Parse, build and check one plan."""
    from polygraphy.backend.trt import (
        create_config,
        engine_bytes_from_network,
        get_trt_logger,
        network_from_onnx_path,
        set_decomposable_attentions,
    )
    from polygraphy.exception import PolygraphyException

    record = manifest.networks[name]
    where = f"{name} for batch size {batch}"
    limits = None
    if options.workspace_gb is not None:
        limits = {module.MemoryPoolType.WORKSPACE: int(options.workspace_gb * 2**30)}
    with (
        polygraphy_errors() as messages,
        build_progress(module, f"{name} b{batch}", show=options.progress) as monitor,
        tempfile.TemporaryDirectory() as temporary,
    ):
        # Not the file itself: Polygraphy leaves a lock beside it.
        known = Path(temporary, "timings")
        known.write_bytes(timings)
        try:
            builder, network, parser = network_from_onnx_path(
                str(directory / record.files[0].file), strongly_typed=True
            )
            _set_batch(network, manifest.spec(name), batch)
            # Without this one attention operator that has no fused kernel fails the whole build.
            set_decomposable_attentions((builder, network, parser))
            products, softmaxes = _graph_nodes(module, network)
            config: trt.IBuilderConfig = create_config(
                builder,
                network,
                tf32=True,  # TensorRT's own default, which Polygraphy would turn off
                load_timing_cache=str(known) if timings else None,
                memory_pool_limits=limits,
                builder_optimization_level=options.optimization_level,
                profiling_verbosity=module.ProfilingVerbosity.DETAILED,
                progress_monitor=monitor,
            )
            plan: trt.IHostMemory = engine_bytes_from_network((builder, network, parser), config=config)
        except PolygraphyException as error:
            raise _failure(module, where, batch, messages, error) from error
        except TypeError as error:
            # What the bindings make of a null pointer; any other is a bug.
            if "nullptr" not in str(error):
                raise
            raise EngineError(cannot_start(module, messages)) from error
        log: trt.ILogger = get_trt_logger()
        layers, memory = _inspect(module, log, messages, where, plan)
    figures = _check(where, plan.nbytes, layers, products, softmaxes, manifest, name)
    return _Built(plan, layers, {**figures, "device_memory_bytes": memory}, _timings(config))


def _set_batch(network: trt.INetworkDefinition, spec: NetworkSpec, batch: int) -> None:
    """Make every shape static: nothing is left to decide at run time."""
    shapes = {
        tensor.name: tuple(batch if size == BATCH else int(size) for size in tensor.shape) for tensor in spec.inputs
    }
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        tensor.shape = shapes[tensor.name]


def _graph_nodes(module: Any, network: trt.INetworkDefinition) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of the ONNX nodes that are convolutions or matrix products, and one of each attention block."""
    products: set[str] = set()
    softmaxes: dict[str, None] = {}
    for index in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(index)
        names = check.node_names(layer.metadata) or {layer.name}
        if layer.type in (module.LayerType.CONVOLUTION, module.LayerType.MATRIX_MULTIPLY):
            products |= names
        elif layer.type == module.LayerType.SOFTMAX:
            softmaxes.update(dict.fromkeys(sorted(names)))
        elif layer.type == module.LayerType.ATTENTION_INPUT:
            products |= names
            softmaxes.update(dict.fromkeys(sorted(names)))
    return frozenset(products), tuple(softmaxes)


def _inspect(module: Any, log: trt.ILogger, messages: Messages, where: str, plan: trt.IHostMemory) -> tuple[str, int]:
    """The inspector's JSON, and the bytes of working memory that the engine needs. Loads the engine for it."""
    runtime: trt.Runtime = new_runtime(module, log, messages)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{where}: TensorRT cannot load the plan that it built: {messages.last(_QUOTED)}")
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    information: str = inspector.get_engine_information(module.LayerInformationFormat.JSON)
    return information, int(engine.device_memory_size_v2)


def _check(
    where: str,
    plan_bytes: int,
    information: str,
    products: frozenset[str],
    softmaxes: tuple[str, ...],
    manifest: Manifest,
    name: str,
) -> dict[str, Any]:
    """Hold a plan to what it was built for; returns the figures."""
    record = manifest.networks[name]
    layers = check.parse_layers(information, where)
    check.check_size(where, plan_bytes, sum(file.bytes for file in record.files), record.precision)
    attention = check.attention_blocks(layers, softmaxes)
    figures: dict[str, Any] = {
        "plan_bytes": plan_bytes,
        "layers": len(layers),
        "attention_blocks": attention.total,
        "fused_attention_blocks": attention.fused,
    }
    if record.precision == "fp32":
        return figures
    figures["half_products"] = round(check.half_share(layers, products, record.precision), 4)
    figures["half_outputs"] = round(check.output_share(layers, record.precision), 4)
    check.check_precision(where, figures["half_products"], record.precision)
    if attention.fused < attention.total:
        # Slower, not wrong; float32 attention is never fused.
        names = f": {', '.join(attention.unfused)}" if attention.unfused else ""
        missing = attention.total - attention.fused
        logger.warning("%s: %d of %d attention blocks are not fused%s", where, missing, attention.total, names)
    return figures


def _failure(module: Any, where: str, batch: int, messages: Messages, error: Exception) -> EngineError:
    if messages.out_of_memory():
        advice = f"try --batch-sizes up to {batch // 2}" if batch > 1 else "close what else runs on the GPU"
        return EngineError(f"out of GPU memory while building {where}; {advice}, or a smaller --workspace")
    messages.add(str(error))
    return EngineError(f"TensorRT {module.__version__} cannot build {where}: {messages.last(_QUOTED)}")


def _timings(config: trt.IBuilderConfig) -> bytes:
    cache: trt.ITimingCache | None = config.get_timing_cache()
    return b"" if cache is None else memoryview(cache.serialize()).tobytes()


def _read_timings(*files: Path | None) -> bytes:
    for file in files:
        if file is not None and file.exists():
            try:
                return file.read_bytes()
            except OSError as error:
                raise EngineError(f"timing cache {file} cannot be read: {error.strerror}") from error
    return b""


def _write(path: Path, data: Any) -> None:
    """Write under a temporary name and rename. `data` is anything with a buffer."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
        temporary.replace(path)
    except OSError as error:
        raise EngineError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _build_flags(manifest: Manifest, name: str, options: _Options, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        ONNX_FLAG: onnx_hashes(manifest, name),
        "precision": manifest.networks[name].precision,
        "strongly_typed": True,
        "tf32": True,
        "optimization_level": options.optimization_level,
        "workspace_gb": options.workspace_gb,
        "profiling_verbosity": "detailed",
        "plans": figures,
    }


def _record(
    module: Any,
    directory: Path,
    name: str,
    batch_sizes: tuple[int, ...],
    files: list[Path],
    device: CudaDevice,
    build_flags: dict[str, Any],
) -> ArtefactRecord:
    return ArtefactRecord(
        network=name,
        backend=BACKEND,
        files=tuple(record_file(file, directory) for file in files),
        backend_version=module.__version__,
        device=device.name,
        compute_capability=device.compute_capability,
        driver=device.driver,
        batch_sizes=batch_sizes,
        build_flags=build_flags,
    )
