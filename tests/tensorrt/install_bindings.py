"""Installs TensorRT's Python bindings, without TensorRT, and Polygraphy into a side folder: for tests of API names.

    python tests/tensorrt/install_bindings.py [FOLDER]

The bindings are wheels of about 1 MB. The libraries that they link to are stood in for by stubs, so `import tensorrt`
shows every class, method, enum and signature, and nothing of it works. Linux with a C compiler (cc) only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TENSORRT = ("11.4.0.106", "10.16.1.11")
"""The newest of each version that the project supports."""

POLYGRAPHY = "0.53.6"

# Each library and what the bindings need of it to be loaded.
STUBS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}

# What the package tensorrt-cu13 holds; installing that one would fetch gigabytes of libraries.
SHIM = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"


DEFAULT_FOLDER = Path(sys.prefix) / "tensorrt-api"
"""In the virtual environment whose Python runs the tests, beside its packages and out of their sight."""


def tensorrt_folder(root: Path, version: str) -> Path:
    """Where these bindings are, to be put on PYTHONPATH."""
    return root / f"tensorrt-{version}"


def polygraphy_folder(root: Path) -> Path:
    """Where Polygraphy is, to be put on PYTHONPATH."""
    return root / f"polygraphy-{POLYGRAPHY}"


def install(root: Path) -> None:
    """Install what is not there yet. A folder appears whole or not at all.

    Raises:
        SystemExit: pip or the compiler failed.
    """
    root.mkdir(parents=True, exist_ok=True)
    for version in TENSORRT:
        _install(tensorrt_folder(root, version), f"tensorrt-cu13-bindings=={version}", version.partition(".")[0])
    _install(polygraphy_folder(root), f"polygraphy=={POLYGRAPHY}", None)


def _install(target: Path, requirement: str, stubs: str | None) -> None:
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        _run([*pip, "--only-binary", ":all:", "--target", str(folder), requirement])
        if stubs is not None:
            (folder / "tensorrt").mkdir()
            (folder / "tensorrt" / "__init__.py").write_text(SHIM, encoding="ascii")
            # Beside the bindings: they look there first.
            _compile_stubs(folder / "tensorrt_bindings", stubs)
        folder.rename(target)
    print(f"installed {requirement} into {target}")


def _compile_stubs(folder: Path, major: str) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("no C compiler was found: install gcc, or set CC")
    for library, symbols in STUBS.items():
        name = f"lib{library}.so.{major}"
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols), encoding="ascii")
        _run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)])
        source.unlink()


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="where to install (default: %(default)s)"
    )
    install(parser.parse_args().folder)
