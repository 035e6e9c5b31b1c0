"""The installed commands: they exist, and answer --help and --version without loading anything heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata

import pytest

from g4seg_engine.version import VERSION

SCRIPTS = {
    point.name: point.value
    for point in metadata.distribution("g4seg-trt").entry_points
    if point.group == "console_scripts"
}
HEAVY = ("numpy", "PIL", "onnxruntime", "tokenizers", "tqdm", "torch", "onnx")


def test_there_are_commands() -> None:
    assert {"g4seg-refine", "g4seg-build-engines"} <= set(SCRIPTS)


@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_every_console_script_has_its_target(target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("option", ["--version", "--help"])
@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_help_and_version_load_nothing_heavy(target: str, option: str) -> None:
    module, _, function = target.partition(":")
    program = f"""
import sys
from {module} import {function}
try:
    {function}(["{option}"])
except SystemExit as stop:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    sys.exit(f"loaded: {{loaded}}" if loaded or stop.code else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (VERSION if option == "--version" else "usage:") in done.stdout
