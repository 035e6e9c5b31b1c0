"""A model to an engine directory: export five networks in turn, check each, write the manifest last.

Importing this module loads neither torch nor diffusers; `export_engine` does.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from tqdm import tqdm

from g4seg_engine.build import check_output, network_record, record_file, staged_engine
from g4seg_engine.compilation import Compiler
from g4seg_engine.manifest import (
    AutoencoderRecord,
    ImageEncoderRecord,
    InjectionRecord,
    Manifest,
    ModelRecord,
    NetworkRecord,
    TokenizerRecord,
    write_manifest,
)
from g4seg_engine.records import ATTENTIONS, INJECTION_FORMS
from g4seg_engine.spec import IO_DTYPES, NETWORKS, PRECISIONS, NetworkSpec, network_specs
from g4seg_export.requirements import require_export_packages

if TYPE_CHECKING:
    from g4seg_export.sources import Source

TOKENIZER_FILE = "tokenizer.json"

# Above this square a second pass through the two big networks costs a minute and shows nothing new: that
# their graphs take other batches is seen on small models, which have the same graphs.
_SMALL_SQUARE = 256


def export_engine(
    model: str,
    output: Path,
    *,
    form: str = "folded",
    attention: str = "products",
    precision: str = "fp32",
    io_dtype: str = "float32",
    image_encoder: str | None = None,
    dense_mode: str | None = None,
    revision: str | None = None,
    vae_encoder: str | None = None,
    vae_decoder: str | None = None,
    square: int | None = None,
    half_weights: bool | None = None,
    overwrite: bool = False,
    progress: bool = True,
    check_recommended: Callable[[Mapping[str, Any]], None] | None = None,
    compiler: Compiler | None = None,
) -> Manifest:
    """Export a model and write a complete engine directory, or nothing.

    One network is in memory at a time.

    Args:
        model: hub id, diffusers folder, "tiny" or "random:NAME" (see `sources.load_source`).
        output: the engine directory to make.
        form: of mask injection in the graph, "folded" or "dense".
        attention: "products" writes the UNet's attention as two matrix products around a softmax, "operator" as ONNX's
            Attention (opset 23), for the fused kernels of TensorRT.
        precision: "fp32", "fp16" or "bf16": of weights and activations (see `precision`).
        io_dtype: "float32" or "float16": of the graphs' float inputs and outputs.
        image_encoder: hub id or folder of a CLIP vision model; None for the model's own, else CLIP ViT-B/16.
        dense_mode: "last", "maskclip" or "csa"; None for the model's own choice.
        revision: of a hub model.
        vae_encoder: hub id, folder or "random:taesd": another autoencoder whose encoder to use; None for the model's.
        vae_decoder: likewise for the decoder.
        square: side of the model square in pixels, a multiple of 64; None for the model's own.
        half_weights: store the weights of "fp32" graphs as float16, computing in float32; None: as the source
            does, per network.
        overwrite: replace an engine that is already there, once the new one is complete.
        progress: show a progress bar on stderr.
        check_recommended: called with the settings that the model recommends before anything is exported; what it
            raises ends the build.

        compiler: makes a backend's artefacts of the graphs, which become a part of the engine; None for none.

    Returns:
        The manifest that was written.

    Raises:
        MissingExtraError: if a package of the export extra is not installed.
        SourceError: if the model cannot be found, loaded or used.
        ExportError: for an unknown form, attention, precision, I/O dtype or dense mode, or a network that cannot be
            exported.
        ParityError: if a graph does not compute what its torch module computes.
        EngineError: if the output cannot be written, or the compiler fails.
    """
    require_export_packages()
    if compiler is not None:
        compiler.check()
    from g4seg_export.errors import ExportError
    from g4seg_export.image_encoder import DENSE_MODES
    from g4seg_export.sources import load_source

    for what, value, allowed in (
        ("form", form, INJECTION_FORMS),
        ("attention", attention, ATTENTIONS),
        ("precision", precision, PRECISIONS),
        ("I/O dtype", io_dtype, IO_DTYPES),
        ("dense mode", dense_mode, (None, *DENSE_MODES)),
    ):
        if value not in allowed:
            raise ExportError(f"unknown {what} {value!r}: allowed are {', '.join(filter(None, allowed))}")

    check_output(output, overwrite=overwrite)  # a hub model may be gigabytes to fetch
    source = load_source(
        model,
        image_encoder=image_encoder,
        revision=revision,
        vae_encoder=vae_encoder,
        vae_decoder=vae_decoder,
        square=square,
    )
    if check_recommended is not None:
        check_recommended(source.recommended)
    dense_mode = dense_mode or source.dense_mode
    specs = network_specs(source.dims, precision=precision, io_dtype=io_dtype)
    options = {
        "--form": None if form == "folded" else form,
        "--attention": None if attention == "products" else attention,
        "--precision": None if precision == "fp32" else precision,
        "--io": None if io_dtype == "float32" else io_dtype,
        "--image-encoder": image_encoder,
        "--dense-mode": None if dense_mode == source.dense_mode else dense_mode,
        # The commit also where none was asked for: the default branch moves on.
        "--revision": source.revision or None,
        **_autoencoder_options(source),
        "--square": None if square is None else str(square),
        **(compiler.options if compiler is not None else {}),
    }
    with staged_engine(output, overwrite=overwrite) as staging:
        networks: dict[str, NetworkRecord] = {}
        with tqdm(NETWORKS, unit="network", disable=not progress) as bar:
            for name in bar:
                bar.set_description(name)
                stored_half = source.stored_half(name) if half_weights is None else half_weights
                how = _Options(form, attention, dense_mode, precision, stored_half and precision == "fp32")
                networks[name] = _export_one(source, specs[name], staging, how)
        (staging / TOKENIZER_FILE).write_bytes(source.tokens.json)
        tokenizer = record_file(staging / TOKENIZER_FILE)
        manifest = Manifest(
            model=ModelRecord(source.id, source.revision, source.licence, source.weight_hashes()),
            prediction_type=source.prediction_type,
            vae_scaling_factor=source.vae_scaling_factor,
            dims=source.dims,
            injection=InjectionRecord("eq5", form, attention),
            image_encoder=ImageEncoderRecord(source.image_encoder.id, dense_mode),
            autoencoder=_autoencoder_record(source),
            tokenizer=TokenizerRecord(
                file=tokenizer.file,
                sha256=tokenizer.sha256,
                bytes=tokenizer.bytes,
                bos=source.tokens.bos,
                eos=source.tokens.eos,
                pad=source.tokens.pad,
            ),
            networks=networks,
            recommended=source.recommended,
            note=source.note,
            build_command=_build_command(model, output, options),
        )
        if compiler is not None:
            manifest = replace(manifest, artefacts=compiler.compile(staging, manifest))
        write_manifest(staging, manifest)
    return manifest


@dataclass(frozen=True)
class _Options:
    """How to export; see `export_engine`."""

    form: str
    attention: str
    dense_mode: str
    precision: str
    half_weights: bool


def _export_one(source: Source, spec: NetworkSpec, folder: Path, options: _Options) -> NetworkRecord:
    """Load, export and check one network; its torch module is freed before ONNX Runtime loads the graph."""
    from g4seg_export.examples import example_inputs
    from g4seg_export.graph_check import check_half_graph
    from g4seg_export.networks import load_network
    from g4seg_export.onnx_export import export_network, release_weights, round_to_half
    from g4seg_export.parity import compare_outputs, compare_rounded, reference_outputs
    from g4seg_export.precision import float32_products, set_io, set_precision, spell_out_norms
    from g4seg_export.upsampling import phase_upsampling

    def example(batch: int) -> dict[str, NDArray[Any]]:
        return example_inputs(
            spec,
            batch=batch,
            seed=batch,
            vocabulary=source.vocabulary,
            timesteps=len(source.alphas_cumprod),
        )

    precision, half_weights = options.precision, options.half_weights
    operator = spec.name == "unet" and options.attention == "operator"
    opset = _opset(precision, operator=operator)
    examples = [example(batch) for batch in _parity_batches(spec, source.dims.square)]
    rounded = None
    path = folder / f"{spec.name}.onnx"
    with load_network(source, spec.name, options.form, options.dense_mode, options.attention) as network:
        if half_weights:
            round_to_half(network)
        expected = reference_outputs(network, spec, examples)
        # Sums of half weights are not half weights: folding the upsampling would store them in full again.
        with nullcontext() if half_weights else phase_upsampling(network):
            set_precision(network, precision)
            if operator and precision == "fp32":
                spell_out_norms(network)
            set_io(network, spec.outputs[0].dtype)
            files = export_network(
                network, spec, example(min(2, spec.max_batch)), path, half_weights=half_weights, opset=opset
            )
            if precision == "bf16":
                # ONNX Runtime's CPU has no bfloat16 convolution: the module speaks for its graph.
                rounded = reference_outputs(network, spec, examples)
        islands = float32_products(network)
        release_weights(network)
    if rounded is None:
        parity = compare_outputs(path, spec, examples, expected)
    else:
        parity = compare_rounded(path, spec, examples, rounded, expected)
    if precision != "fp32":
        parity |= check_half_graph(path, spec.name, precision, islands)
    return network_record(spec, files, opset=opset, precision=precision, parity=parity)


def _opset(precision: str, *, operator: bool) -> int:
    from g4seg_export.onnx_export import ATTENTION_OPSET, BF16_OPSET, OPSET

    if operator:
        return ATTENTION_OPSET
    return BF16_OPSET if precision == "bf16" else OPSET


def _parity_batches(spec: NetworkSpec, square: int) -> tuple[int, ...]:
    large = square > _SMALL_SQUARE and spec.name in ("unet", "vae_decoder")
    return (1,) if spec.max_batch == 1 or large else (1, 2)


def _autoencoder_record(source: Source) -> AutoencoderRecord:
    encoder, decoder = (half.id if half.option else "" for half in (source.vae_encoder, source.vae_decoder))
    return AutoencoderRecord(encoder, decoder)


def _autoencoder_options(source: Source) -> dict[str, str | None]:
    encoder, decoder = source.vae_encoder.option or None, source.vae_decoder.option or None
    if encoder == decoder:
        return {"--vae": encoder}
    return {"--vae-encoder": encoder, "--vae-decoder": decoder}


def _build_command(model: str, output: Path, options: dict[str, str | None]) -> str:
    # --overwrite: the command is shown when the engine that is there turned out to be damaged.
    words = ["g4seg-build-engines", "--model", model, "--output", str(output), "--overwrite"]
    for option, value in options.items():
        if value is not None:
            words += [option, value]
    return shlex.join(words)
