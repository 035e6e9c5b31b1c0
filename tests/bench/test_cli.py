"""g4seg-bench as a command: usage, and bad input in one clear line each."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from g4seg_bench import latency
from g4seg_bench.choices import BaselineChoice, EngineChoice, baseline_choice, choice, engine_choice
from g4seg_bench.cli import main
from g4seg_bench.plans import Setup
from g4seg_engine.errors import G4SegError
from g4seg_engine.processor import has_bfloat16

Record = Callable[..., dict[str, Any]]
HEAVY = ("numpy", "PIL", "onnxruntime", "openvino", "tokenizers", "tqdm", "torch", "onnx", "matplotlib")


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command ends with."""
    assert main([*map(str, arguments)]) == 1
    found = capsys.readouterr()
    lines = found.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("g4seg-bench: error: ")
    assert found.out == ""
    return lines[0]


def test_help_and_version_load_nothing_heavy() -> None:
    program = f"""
import sys
from g4seg_bench.cli import main
for option in ("--help", "--version"):
    try:
        main([option])
    except SystemExit as stop:
        assert not stop.code
sys.exit(", ".join(name for name in {HEAVY!r} if name in sys.modules) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "report RECORD" in done.stdout


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "g4seg_bench", "report", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "usage: g4seg-bench report" in done.stdout


def test_torch_s_threads_wait_asleep(toy_engine: Path) -> None:
    """What is set must be set before PyTorch reads it: a process of its own tells."""
    program = f"""
import os
from g4seg_bench import latency
from g4seg_bench.cli import main
def measure(request):
    import torch
    torch.ones(2**20).sum()
    os._exit(0)
latency.measure = measure
main(["--engine", {str(toy_engine)!r}, "--baseline", "none"])
"""
    command = [sys.executable, "-c", program]
    shown = {"OMP_DISPLAY_ENV": "TRUE", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=shown)
    assert done.returncode == 0, done.stderr
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("PyTorch was built without OpenMP")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


def test_names_of_sides() -> None:
    assert engine_choice("openvino:bf16") == EngineChoice("openvino", "bf16")
    assert baseline_choice("none") is None
    assert baseline_choice("compile") == BaselineChoice("compile")
    for name in ("onnxruntime", "openvino:fp32", "eager", "eager:bf16", "compile:own-vae", "eager:fp16:own-vae"):
        assert choice(name).name == name
    for wrong in ("fast", "eager:int8", "eager:own-vae:bf16", "eager:bf16:fp32", "eager:", "none:bf16"):
        with pytest.raises(argparse.ArgumentTypeError):
            baseline_choice(wrong)
    for wrong in ("", ":bf16", "openvino:"):
        with pytest.raises(argparse.ArgumentTypeError):
            engine_choice(wrong)


@pytest.mark.parametrize(
    "option",
    [
        ["--runs", "0"],
        ["--warmup", "0"],
        ["--threads", "x"],
        ["--classes", "1,0"],
        ["--scaling", "size"],
        ["--baseline", "fast"],
        ["--backend", "onnxruntime", "--backend", "onnxruntime"],
        ["--cold-start", "--low-memory"],
        ["--frobnicate"],
    ],
)
def test_wrong_usage(option: list[str], toy_engine: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--engine", str(toy_engine), *option])


def test_a_missing_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in failure(capsys, "--engine", tmp_path / "no", "--baseline", "none")


def test_an_unknown_backend(toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "--engine", toy_engine, "--backend", "tpu", "--baseline", "none")
    assert "'tpu'" in line
    assert "openvino" in line


def test_a_backend_that_is_not_installed(
    toy_engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    line = failure(capsys, "--engine", toy_engine, "--backend", "openvino:fp32", "--baseline", "none")
    assert "pip install 'g4seg-trt[openvino]'" in line


@pytest.mark.parametrize("backend", ["onnxruntime:bf16", "openvino:int3"])
def test_a_precision_that_a_backend_does_not_have(
    backend: str, toy_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backend.partition(":")[2] in failure(
        capsys, "--engine", toy_engine, "--backend", backend, "--baseline", "none"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_no_gpu(toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "--engine", toy_engine, "--backend", "tensorrt", "--baseline", "none")
    assert "NVIDIA" in line or "CUDA" in line


def test_sides_on_two_devices(toy_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4seg_bench.plans.cuda_device", lambda _: None)
    setup = Setup(str(toy_engine), None, None, None, classes=1, batch_size=1, threads=1, low_memory=False)
    both = [EngineChoice("onnxruntime"), EngineChoice("tensorrt")]
    with pytest.raises(G4SegError, match=r"onnxruntime on cpu, tensorrt on cuda: .* one device"):
        setup.plans(both)
    plans = replace(setup, device="cuda").plans([*both, BaselineChoice("eager")])
    assert [(plan.name, plan.device, plan.precision) for plan in plans] == [
        ("onnxruntime", "cuda", "fp32"),
        ("tensorrt", "cuda", "fp32"),
        ("eager", "cuda", "fp16"),
    ]


def test_a_baseline_whose_weights_are_not_known(toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "--engine", toy_engine)
    assert "local folder called 'toy'" in line
    assert "--model DIR" in line


def test_a_baseline_that_is_not_installed(
    toy_engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else found(name))
    line = failure(capsys, "--engine", toy_engine, "--model", "tiny")
    assert "diffusers is not installed: pip install 'g4seg-trt[export]'" in line


def test_a_record_that_cannot_be_written(
    toy_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "measure", lambda _: pytest.fail("it was measured first"))
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "record.json", tmp_path):
        line = failure(capsys, "--engine", toy_engine, "--baseline", "none", "--json", target)
        assert str(tmp_path) in line


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16 instructions")
def test_two_backends_and_the_report(
    record_of: Record, toy_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    options = ["--backend", "onnxruntime", "--backend", "openvino:bf16", "--baseline", "none", "--no-ceilings"]
    record = record_of(main, "--engine", toy_engine, *options, "--runs", 3, "--threads", 1)
    assert list(record["sides"]) == ["onnxruntime", "openvino:bf16"]
    assert record["sides"]["openvino:bf16"]["compute_precision"] == "bf16"
    assert record["ratios"]["openvino:bf16"]["baseline"] == "onnxruntime"
    assert record["sides"]["onnxruntime"]["difference"] is None
    assert record["sides"]["openvino:bf16"]["difference"]["denoised_relative"] < 0.05
    capsys.readouterr()
    assert main(["report", str(tmp_path / "records" / "record.json")]) == 0
    assert "openvino:bf16" in capsys.readouterr().out
