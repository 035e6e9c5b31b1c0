"""g4seg-build-engines: export a checkpoint once into an engine directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from g4seg_engine.spec import IO_DTYPES, PRECISIONS
from g4seg_engine.version import VERSION
from g4seg_trt.atomic import check_writable
from g4seg_trt.cli.common import DONE, STDOUT, new_parser, run, say, write_json
from g4seg_trt.cli.options import BACKENDS
from g4seg_trt.errors import ConfigError, OutputError
from g4seg_trt.outputs import check_folder

if TYPE_CHECKING:
    from g4seg_engine.compilation import TensorRTCompiler
    from g4seg_engine.manifest import Manifest
    from g4seg_export.fp16_range import RangeReport


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = new_parser(
        "g4seg-build-engines",
        "Export a Stable Diffusion 2.1 checkpoint into an engine directory: five ONNX graphs, each compared "
        "with PyTorch, a tokenizer and a manifest.",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="ID|DIR|NAME",
        help="a hub id, a local diffusers folder, tiny, random:sd21-base or random:sd21 (random weights)",
    )
    add("--output", required=True, metavar="DIR", help="the engine directory to make")
    add("--backend", choices=BACKENDS, default="onnxruntime", help="what will run it (default: %(default)s)")
    add(
        "--precision",
        choices=PRECISIONS,
        help="of weights and activations; half graphs keep float32 islands (default: fp32, with tensorrt fp16)",
    )
    add(
        "--io",
        choices=IO_DTYPES,
        default="float32",
        help="what float inputs and outputs of the graphs are (default: %(default)s)",
    )
    add(
        "--form",
        choices=("folded", "dense"),
        default="folded",
        help="mask injection as one more attention channel, or as a bias matrix (default: %(default)s)",
    )
    add(
        "--attention",
        choices=("products", "operator"),
        default="products",
        help="the UNet's attention as matrix products, or as ONNX's own operator, which TensorRT may run faster "
        "(default: %(default)s)",
    )
    add(
        "--image-encoder",
        metavar="ID|DIR",
        help="CLIP vision model for matching (default: the model's own choice)",
    )
    add("--dense-mode", choices=("last", "maskclip", "csa"), help="how it gives features for every position")
    add(
        "--vae",
        metavar="SOURCE",
        help="another autoencoder in place of the model's, such as a distilled one for the same latents: a hub id "
        "(OWNER/NAME or OWNER/NAME@REVISION), a local folder, or random:taesd",
    )
    add("--vae-encoder", metavar="SOURCE", help="only its encoder, which turns images into latents (default: --vae)")
    add("--vae-decoder", metavar="SOURCE", help="only its decoder, which turns latents into images (default: --vae)")
    add(
        "--square",
        type=int,
        metavar="N",
        help="side of the square in which the model works, in pixels, a multiple of 64 (default: the model's own)",
    )
    add("--revision", metavar="REV", help="revision of a hub model; the manifest pins the commit")
    add("--overwrite", action="store_true", help="replace an engine directory that is there")
    add(
        "--check-fp16-range",
        metavar="IMAGES",
        help="before the export run the model in float32 on these pictures (a file, or a folder of which 16 are taken) "
        "and list every tensor whose magnitude comes near the end of float16",
    )
    plans = parser.add_argument_group("with --backend tensorrt")
    plans.add_argument(
        "--batch-sizes",
        type=batch_sizes,
        metavar="N,N",
        help="masks in one run, a plan for each (default: 1,2,4,8); more masks are split",
    )
    plans.add_argument(
        "--workspace", type=float, metavar="GB", help="GPU memory for one kernel's own use (default: all)"
    )
    plans.add_argument(
        "--optimization-level",
        type=int,
        metavar="N",
        help="0 builds fast, 5 looks longest for the fastest kernels (default: 3)",
    )
    plans.add_argument("--timing-cache", metavar="FILE", help="timings to start from; new ones are added")
    add("--json", metavar="FILE|-", help="report: networks, sizes, parity figures, range, seconds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run(build_parser(), execute, argv)


def execute(_parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Build the engine directory."""
    output = Path(arguments.output)
    check_folder(output)
    if arguments.json not in (None, STDOUT):
        place = Path(arguments.json)
        check_writable(place)
        if output.resolve() in (place.resolve(), *place.resolve().parents):
            raise OutputError(f"cannot write {place}: it lies in the engine directory; choose another place")
    compiler = _compiler(arguments, output)
    if arguments.backend == "openvino":
        # Before an export that takes minutes.
        from g4seg_engine.runner import check_backend

        if arguments.precision == "bf16":
            raise ConfigError(
                "--precision bf16 is given with --backend openvino, allowed: fp32 or fp16, from which it computes in "
                "bfloat16 by itself where the processor can"
            )
        check_backend("openvino", "cpu")
    start = perf_counter()
    ranges = None if arguments.check_fp16_range is None else _check_range(arguments, output)
    manifest = _export(arguments, output, compiler)
    if arguments.backend == "openvino":
        _get_ready(output, manifest)
    elapsed = perf_counter() - start
    if arguments.json is not None:
        report = _report(arguments, manifest, elapsed)
        write_json(arguments.json, report if ranges is None else {**report, "fp16_range": ranges.as_json()})
    if arguments.json != STDOUT:
        for name, network in manifest.networks.items():
            size = sum(file.bytes for file in network.files) / 1e6
            print(f"{name}: {size:.1f} MB, relative difference to PyTorch {network.parity['relative']:.1e}")
        if any(network.parity.get("compared") == "module" for network in manifest.networks.values()):
            print("no bfloat16 graph was run here: the differences are PyTorch's own in bfloat16 to float32")
        for artefact in manifest.artefacts:
            size = sum(file.bytes for file in artefact.files) / 1e6
            sizes = ", ".join(map(str, artefact.batch_sizes))
            print(f"{artefact.network}: {artefact.backend}, batch sizes {sizes}: {size:.1f} MB")
        print(f"engine: {output}")
        print(f"{elapsed:.1f} s")
    return DONE


def batch_sizes(text: str) -> tuple[int, ...]:
    """Parse "1,2,4"; argparse reports what does not fit."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected integers such as 1,2,4,8") from error


def _compiler(arguments: argparse.Namespace, output: Path) -> TensorRTCompiler | None:
    """TensorRT's, if it is asked for.

    Raises:
        ConfigError: for one of its options with another backend.
        EngineError: for batch sizes that are not allowed.
    """
    given = {
        "batch_sizes": arguments.batch_sizes,
        "workspace_gb": arguments.workspace,
        "optimization_level": arguments.optimization_level,
        "timing_cache": None if arguments.timing_cache is None else Path(arguments.timing_cache),
    }
    named = {name: value for name, value in given.items() if value is not None}
    if arguments.backend != "tensorrt":
        if named:
            option = "--" + next(iter(named)).removesuffix("_gb").replace("_", "-")
            raise ConfigError(f"{option} is given with --backend {arguments.backend}, allowed: with --backend tensorrt")
        return None
    from g4seg_engine.compilation import TensorRTCompiler

    return TensorRTCompiler(**named, earlier=output)


def _get_ready(output: Path, manifest: Manifest) -> None:
    """Open every network once with OpenVINO, so that what it keeps for its next start is there."""
    from tqdm import tqdm

    from g4seg_engine.runner import open_runner

    for name in tqdm(manifest.networks, unit="network", desc="openvino"):
        open_runner(output, name, "openvino", manifest=manifest).close()


def _export(arguments: argparse.Namespace, output: Path, compiler: TensorRTCompiler | None) -> Manifest:
    # Imported here: a runtime installation never needs it, and --help need not wait for numpy.
    from g4seg_export.engine import export_engine
    from g4seg_trt.config import resolve_config

    def check_recommended(settings: Mapping[str, Any]) -> None:
        try:
            resolve_config(recommended=settings)
        except ConfigError as error:
            raise ConfigError(f"{arguments.model}: g4seg.json: recommended: {error}") from error

    return export_engine(
        arguments.model,
        output,
        form=arguments.form,
        attention=arguments.attention,
        precision=arguments.precision or ("fp32" if compiler is None else "fp16"),
        io_dtype=arguments.io,
        image_encoder=arguments.image_encoder,
        dense_mode=arguments.dense_mode,
        revision=arguments.revision,
        vae_encoder=arguments.vae_encoder or arguments.vae,
        vae_decoder=arguments.vae_decoder or arguments.vae,
        square=arguments.square,
        overwrite=arguments.overwrite,
        check_recommended=check_recommended,
        compiler=compiler,
    )


def _check_range(arguments: argparse.Namespace, output: Path) -> RangeReport:
    from g4seg_export.requirements import require_export_packages

    require_export_packages()
    from g4seg_engine.build import check_output
    from g4seg_export.fp16_range import LIMIT, check_fp16_range

    check_output(output, overwrite=arguments.overwrite)  # before minutes of work
    ranges = check_fp16_range(
        arguments.model,
        Path(arguments.check_fp16_range),
        form=arguments.form,
        image_encoder=arguments.image_encoder,
        dense_mode=arguments.dense_mode,
        revision=arguments.revision,
        vae_encoder=arguments.vae_encoder or arguments.vae,
        vae_decoder=arguments.vae_decoder or arguments.vae,
        square=arguments.square,
    )
    if arguments.json != STDOUT:
        for name, network in ranges.networks.items():
            print(f"{name}: largest magnitude {network.largest:.4g} at {network.tensor}")
            for tensor, magnitude in network.above.items():
                print(f"{name}: {magnitude:.4g} at {tensor}, float16 ends at {2 * LIMIT:.0f}")
    if not ranges.fits:
        say(f"warning: some magnitudes are above {LIMIT:.0f}, half of float16's range: build with --precision bf16")
    return ranges


def _report(arguments: argparse.Namespace, manifest: Manifest, elapsed: float) -> dict[str, Any]:
    networks = {
        name: {
            "bytes": sum(file.bytes for file in network.files),
            "precision": network.precision,
            "parity": dict(network.parity),
        }
        for name, network in manifest.networks.items()
    }
    return {
        "command": "g4seg-build-engines",
        "version": VERSION,
        "engine": arguments.output,
        "backend": arguments.backend,
        "io_dtype": manifest.io_dtype,
        "model": {"id": manifest.model.id, "revision": manifest.model.revision},
        "networks": networks,
        "seconds": round(elapsed, 3),
    }
