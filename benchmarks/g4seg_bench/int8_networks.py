"""Networks of an engine in int8: made with NNCF from what they see on synthetic scenes, timed and held against fp32."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from g4seg_bench.calibration import Calibration
from g4seg_bench.figures import spread, unsafe_reason
from g4seg_bench.samples import Given, Scene
from g4seg_bench.sides import TOTAL
from g4seg_engine.errors import EngineError, MissingExtraError
from g4seg_engine.manifest import Manifest
from g4seg_engine.openvino_runner import OpenVinoRunner, require_openvino
from g4seg_engine.processor import cpu_precisions
from g4seg_engine.runner import Array, Runner, open_runner
from g4seg_engine.spec import BATCH
from g4seg_trt.config import RefineConfig
from g4seg_trt.injection import emi_weight
from g4seg_trt.prompt import PromptEncoder

NETWORKS = ("unet", "vae_decoder", "vae_encoder")
"""What is tried in int8."""

FP32, BF16, INT8, INT8_WEIGHTS = "fp32", "bf16", "int8", "int8 weights"
"""The forms of a network: as exported, in two precisions; weights and activations of products and convolutions in
int8; weights alone."""

Inputs = dict[str, Array]


@dataclass(frozen=True)
class Form:
    """A network as it is run.

    Attributes:
        graph: an .onnx file, or OpenVINO's .xml.
        compute_precision: of what is not in int8.
    """

    graph: Path
    compute_precision: str


def require_nncf() -> ModuleType:
    """NNCF, which quantises.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # or it tells its makers about each use
    try:
        nncf = import_module("nncf")
    except ModuleNotFoundError as error:
        if error.name != "nncf":
            raise
        raise MissingExtraError("nncf is not installed: pip install nncf") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def check_precision(manifest: Manifest, names: Iterable[str]) -> None:
    """Check that int8 can be tried.

    Raises:
        EngineError: an engine that is not in fp32: its graphs hold casts where NNCF looks for products.
    """
    for name in names:
        precision = manifest.networks[name].precision
        if precision != FP32:
            raise EngineError(f"{name} of this engine is in {precision}, int8 is made from fp32: build one with it")


def inputs_on_scenes(
    directory: Path, manifest: Manifest, among: Sequence[Scene], config: RefineConfig, names: Iterable[str]
) -> dict[str, list[Inputs]]:
    """What networks get to see while scenes are refined in fp32, each with noise of its own.

    One network at a time is in memory.

    Args:
        directory: the engine.
        manifest: its manifest.
        among: the scenes.
        config: the settings.
        names: from NETWORKS.

    Returns:
        For each name one entry for each scene, batch size 1.
    """
    prompts = PromptEncoder.of_engine(directory, manifest)
    given = [
        Given.of(scene, prompts, manifest.dims, replace(config, seed=config.seed + number))
        for number, scene in enumerate(among)
    ]
    found: dict[str, list[Inputs]] = {"vae_encoder": [{"image": one.pixels[None]} for one in given]}
    if not {"unet", "vae_decoder"} & set(names):
        return found

    def outputs(name: str, inputs: Iterable[Inputs]) -> list[Array]:
        with fp32_runner(directory, manifest, name) as runner:
            return [next(iter(runner.run(one).values())) for one in inputs]

    latents = outputs("vae_encoder", found["vae_encoder"])
    texts = outputs("text_encoder", ({"input_ids": one.one.prompt.input_ids[None]} for one in given))
    found["unet"] = [
        {
            "latent": latent,
            "noise": one.noise[None],
            "timestep": np.array([config.timestep], np.int64),
            "text_embedding": text,
            "mask": one.one.mask[None],
            "token_mask": one.one.prompt.token_mask[None],
            "emi_weight": emi_weight(config)[None],
        }
        for one, latent, text in zip(given, latents, texts, strict=True)
    ]
    if "vae_decoder" in names:
        found["vae_decoder"] = [{"latent": denoised} for denoised in outputs("unet", found["unet"])]
    return {name: found[name] for name in names}


def fp32_runner(directory: Path, manifest: Manifest, name: str) -> Runner:
    """One network of the engine on OpenVINO in float32."""
    return open_runner(directory, name, "openvino", manifest=manifest, compute_precision=FP32, cache=False)


def make_forms(
    directory: Path, manifest: Manifest, name: str, calibration: Sequence[Inputs], folder: Path
) -> dict[str, Form]:
    """Quantise a network; the models are written to disk and held no longer.

    Args:
        directory: the engine.
        manifest: its manifest.
        name: the network.
        calibration: inputs from which the ranges of activations are taken.
        folder: where the quantised models are written.

    Returns:
        All forms that this processor can run. What is not in int8 is in bf16 where the processor has it.
    """
    nncf = require_nncf()
    graph = directory / manifest.networks[name].files[0].file
    rest = cpu_precisions()[-1]
    forms = {FP32: Form(graph, FP32)}
    if rest == BF16:
        forms[BF16] = Form(graph, BF16)
    with redirect_stdout(sys.stderr):  # its progress is no result
        # The type "transformer" leaves normalisations, sums and activations between the products as they are.
        quantised = nncf.quantize(
            static_model(graph, manifest, name),
            nncf.Dataset(list(calibration)),
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        forms[INT8] = Form(_saved(quantised, folder / f"{name}_int8.xml"), rest)
        del quantised
        gc.collect()
        # Asymmetric: the error of the embedded UNet is a third of the symmetric one's.
        compressed = nncf.compress_weights(static_model(graph, manifest, name), mode=nncf.CompressWeightsMode.INT8_ASYM)
        forms[INT8_WEIGHTS] = Form(_saved(compressed, folder / f"{name}_int8_weights.xml"), rest)
        del compressed
        gc.collect()
    return forms


@contextmanager
def opened(forms: Mapping[str, Form], manifest: Manifest, name: str) -> Iterator[dict[str, OpenVinoRunner]]:
    """Forms of a network, compiled, until the context ends."""
    with ExitStack() as stack:
        yield {
            label: stack.enter_context(OpenVinoRunner(form.graph, manifest.spec(name), form.compute_precision))
            for label, form in forms.items()
        }


def measure_forms(
    runners: Mapping[str, Runner], inputs: Sequence[Inputs], runs: int, description: str
) -> dict[str, Any]:
    """Seconds of the forms of a network in turns, and how far their outputs are from fp32's.

    Args:
        runners: by form, fp32 among them.
        inputs: which no form was calibrated on.
        runs: of each form, after a warm-up.
        description: for the progress bar.

    Returns:
        "seconds": the median of each form; "runs": all of them; "spread": (p80 - p20) / median; "unsafe": why forms
        must not be compared, or None; "relative_error": root mean square of the difference to fp32 over that of fp32,
        over all inputs; "relative_error_max": largest difference over fp32's largest value.
    """
    taken: dict[str, list[float]] = {label: [] for label in runners}
    calibration = Calibration()
    for number in tqdm(range(runs + 1), desc=description, file=sys.stderr):
        calibration.measure()
        for label, runner in runners.items():
            start = perf_counter()
            runner.run(inputs[number % len(inputs)])
            if number > 0:
                taken[label].append(round(perf_counter() - start, 6))
    noise = {label: spread([{TOTAL: one} for one in seconds]) for label, seconds in taken.items()}
    outputs = {label: np.stack([_output(runner, one) for one in inputs]) for label, runner in runners.items()}
    exact = outputs.pop(FP32)
    differences = {label: found - exact for label, found in outputs.items()}
    return {
        "seconds": {label: round(median(seconds), 6) for label, seconds in taken.items()},
        "runs": taken,
        "spread": noise,
        "unsafe": unsafe_reason(noise, calibration.drift, runs),
        "relative_error": {
            label: _figure(np.linalg.norm(found) / np.linalg.norm(exact)) for label, found in differences.items()
        },
        "relative_error_max": {
            label: _figure(np.abs(found).max() / np.abs(exact).max()) for label, found in differences.items()
        },
    }


def weights_mb(form: Form) -> float:
    """What a form takes on the disk, in 10^6 bytes."""
    beside = (form.graph.with_suffix(".bin"), form.graph.with_name(f"{form.graph.name}.data"))
    return round(sum(file.stat().st_size for file in (form.graph, *beside) if file.is_file()) / 1e6, 2)


def static_model(graph: Path, manifest: Manifest, name: str) -> Any:
    """A network's graph as OpenVINO reads it, for batches of 1."""
    model = require_openvino().Core().read_model(graph)
    model.reshape(
        {
            tensor.name: [1 if size == BATCH else int(size) for size in tensor.shape]
            for tensor in manifest.spec(name).inputs
        }
    )
    return model


def _saved(model: Any, path: Path) -> Path:
    require_openvino().save_model(model, path, compress_to_fp16=False)
    return path


def _output(runner: Runner, inputs: Inputs) -> Array:
    return runner.run(inputs)[runner.spec.outputs[0].name]


def _figure(value: Any) -> float:
    return float(f"{float(value):.3g}")
