"""g4seg-build-engines: export a checkpoint once into an engine directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from g4seg_engine.version import VERSION
from g4seg_trt.atomic import check_writable
from g4seg_trt.cli.common import DONE, STDOUT, new_parser, run, write_json
from g4seg_trt.cli.options import BACKENDS
from g4seg_trt.cli.outputs import check_folder
from g4seg_trt.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from g4seg_engine.manifest import Manifest


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
    add("--precision", choices=("fp32",), default="fp32", help="of the graphs (default: %(default)s)")
    add(
        "--form",
        choices=("folded", "dense"),
        default="folded",
        help="mask injection as one more attention channel, or as a bias matrix (default: %(default)s)",
    )
    add(
        "--image-encoder",
        metavar="ID|DIR",
        help="CLIP vision model for matching (default: the model's own choice)",
    )
    add("--dense-mode", choices=("last", "maskclip", "csa"), help="how it gives features for every position")
    add("--revision", metavar="REV", help="revision of a hub model; the manifest pins the commit")
    add("--overwrite", action="store_true", help="replace an engine directory that is there")
    add("--json", metavar="FILE|-", help="report: networks, sizes, parity figures, seconds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run(build_parser(), execute, argv)


def execute(_parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Build the engine directory."""
    output = Path(arguments.output)
    check_folder(output)
    if arguments.json not in (None, STDOUT):
        report = Path(arguments.json)
        check_writable(report)
        if output.resolve() in (report.resolve(), *report.resolve().parents):
            raise OutputError(f"cannot write {report}: it lies in the engine directory; choose another place")
    start = perf_counter()
    manifest = _export(arguments, output)
    elapsed = perf_counter() - start
    if arguments.json is not None:
        write_json(arguments.json, _report(arguments, manifest, elapsed))
    if arguments.json != STDOUT:
        for name, network in manifest.networks.items():
            size = sum(file.bytes for file in network.files) / 1e6
            print(f"{name}: {size:.1f} MB, relative difference to PyTorch {network.parity['relative']:.1e}")
        print(f"engine: {output}")
        print(f"{elapsed:.1f} s")
    return DONE


def _export(arguments: argparse.Namespace, output: Path) -> Manifest:
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
        image_encoder=arguments.image_encoder,
        dense_mode=arguments.dense_mode,
        revision=arguments.revision,
        overwrite=arguments.overwrite,
        check_recommended=check_recommended,
    )


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
        "model": {"id": manifest.model.id, "revision": manifest.model.revision},
        "networks": networks,
        "seconds": round(elapsed, 3),
    }
