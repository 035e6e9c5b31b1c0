"""g4seg-engine inspect: what it says about whole and damaged engine directories, and about compiled plans."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from g4seg_engine.build import record_file
from g4seg_engine.cuda_device import CudaDevice
from g4seg_engine.manifest import MANIFEST_FILE, read_manifest, write_manifest
from g4seg_engine.records import ArtefactRecord
from g4seg_engine.tensorrt_artefact import ONNX_FLAG, onnx_hashes
from g4seg_engine.version import VERSION
from g4seg_trt.diagnosis.fit import artefact_fit
from g4seg_trt.diagnosis.gpu import Gpus
from g4seg_trt.refiner import engine_directory

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]

PROGRAM = "import sys; from g4seg_trt.cli.engine import main; sys.exit(main())"
DEVICE = CudaDevice(0, "NVIDIA A100-SXM4-80GB", "8.0", 80 * 2**30, "580.65.06", "13.0")
TENSORRT = "11.4.0.106"


@pytest.fixture
def engine_here(run_here: Callable[..., Any]) -> Run:
    """engine_here(*arguments) -> Done: g4seg-engine in this process."""

    def run(*arguments: object) -> Done:
        done = run_here("g4seg_trt.cli.engine", *arguments)
        return subprocess.CompletedProcess([str(argument) for argument in arguments], done.code, done.out, done.err)

    return run


def process(*arguments: object) -> Done:
    """g4seg-engine in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the embedded engine."""
    directory = tmp_path / "engines" / "tiny"
    shutil.copytree(engine_directory("tiny"), directory)
    return directory


def add_plans(directory: Path, device: CudaDevice = DEVICE) -> ArtefactRecord:
    """Record a plan of the UNet, of bytes that no TensorRT would read."""
    (directory / "tensorrt").mkdir()
    plan = directory / "tensorrt" / "unet.b1.plan"
    plan.write_bytes(bytes(2_000_000))
    manifest = read_manifest(directory)
    artefact = ArtefactRecord(
        network="unet",
        backend="tensorrt",
        files=(record_file(plan, directory),),
        backend_version=TENSORRT,
        device=device.name,
        compute_capability=device.compute_capability,
        driver=device.driver,
        batch_sizes=(1,),
        build_flags={"optimization_level": 3, ONNX_FLAG: onnx_hashes(manifest, "unet")},
    )
    write_manifest(directory, replace(manifest, artefacts=(artefact,)))
    return artefact


def test_the_embedded_engine_is_described_whole() -> None:
    done = process("inspect", "tiny", "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    manifest = read_manifest(engine_directory("tiny"))
    for words in (
        "model: tiny, licence Apache-2.0",
        "prediction type: v_prediction",
        "square: 64 x 64 pixels, grid: 16 x 16 positions",
        "mask injection: eq5, folded",
        "image encoder: tiny/image_encoder, last",
        "timestep 200",
        "compiled: nothing",
        "size: 18.0 MB in 6 files",
        f"build command: {manifest.build_command}",
        "files: all are there, sizes agree, all hashes agree",
    ):
        assert words in done.stdout
    unet = next(line.split() for line in done.stdout.splitlines() if line.startswith("  unet "))
    assert unet == ["unet", "fp32", "18", "1-64", "3.1e-07", "12.1", "unet.onnx"]


def test_the_report_holds_the_same_for_programs(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    done = process("inspect", "tiny", "--json", target)
    assert done.returncode == 0
    assert "model: tiny" in done.stdout
    report = json.loads(target.read_text("utf-8"))
    assert set(report) == {"command", "version", "engine", "verified", "problem", "found", "cache", "contents"}
    assert (report["command"], report["version"], report["engine"]) == ("g4seg-engine inspect", VERSION, "tiny")
    assert (report["problem"], report["verified"]) == (None, False)
    manifest = read_manifest(engine_directory("tiny"))
    contents = report["contents"]
    assert set(contents["networks"]) == set(manifest.networks)
    unet = contents["networks"]["unet"]
    assert unet["files"] == [{"file": "unet.onnx", "bytes": manifest.networks["unet"].files[0].bytes}]
    assert unet["parity"] == manifest.networks["unet"].parity
    assert contents["bytes"] == sum(record.bytes for record in manifest.files())
    assert contents["recommended"] == manifest.recommended
    assert contents["artefacts"] == []


def test_json_alone_stands_on_standard_output(engine_here: Run) -> None:
    done = engine_here("inspect", "tiny", "--json", "-")
    assert json.loads(done.stdout)["contents"]["model"]["id"] == "tiny"


def test_a_truncated_file_is_named_after_what_can_be_said(tiny: Path) -> None:
    content = (tiny / "unet.onnx").read_bytes()
    (tiny / "unet.onnx").write_bytes(content[:1000])
    done = process("inspect", tiny, "--json", "-")
    report = json.loads(done.stdout)
    assert report["contents"]["model"]["id"] == "tiny"
    assert report["found"]["unet.onnx"] == 1000
    assert done.returncode == 1
    assert done.stderr == f"g4seg-engine: error: {report['problem']}\n"
    assert f"unet.onnx: expected {len(content)} bytes, found 1000" in done.stderr
    text = process("inspect", tiny)
    assert text.returncode == 1
    assert "prediction type: v_prediction" in text.stdout
    assert "sizes agree" not in text.stdout
    assert text.stderr == done.stderr


def test_a_wrong_hash_of_a_large_file_needs_verify(
    tiny: Path, engine_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4seg_engine.manifest.HASH_ON_OPEN", 10_000_000)  # so that the UNet's 12 MB are large
    content = bytearray((tiny / "unet.onnx").read_bytes())
    content[5_000_000] ^= 1
    (tiny / "unet.onnx").write_bytes(content)
    assert engine_here("inspect", tiny).returncode == 0
    done = engine_here("inspect", tiny, "--verify")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "unet.onnx: expected sha256" in done.stderr


def test_without_a_manifest_the_files_are_listed(tiny: Path, engine_here: Run) -> None:
    (tiny / MANIFEST_FILE).unlink()
    done = engine_here("inspect", tiny)
    assert done.returncode == 1
    assert "it has no manifest.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "unet.onnx" in done.stdout
    assert "12.1 MB" in done.stdout
    report = json.loads(engine_here("inspect", tiny, "--json", "-").stdout)
    assert report["contents"] is None
    assert "manifest.json" in report["problem"]


@pytest.mark.parametrize(
    ("content", "words"), [(b'{"schema": 1', "is damaged"), (b'{"schema": 99}', "newer than the schema")]
)
def test_a_manifest_that_cannot_be_read_is_one_line(tiny: Path, engine_here: Run, content: bytes, words: str) -> None:
    (tiny / MANIFEST_FILE).write_bytes(content)
    done = engine_here("inspect", tiny)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert "unet.onnx" in done.stdout


def test_no_directory_is_one_line(tmp_path: Path, engine_here: Run) -> None:
    done = engine_here("inspect", tmp_path / "none")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_report_is_not_written_into_the_engine(tiny: Path, engine_here: Run) -> None:
    before = (tiny / "unet.onnx").read_bytes()
    done = engine_here("inspect", tiny, "--json", tiny / "unet.onnx")
    assert done.returncode == 1
    assert "lies in the engine directory" in done.stderr
    assert (tiny / "unet.onnx").read_bytes() == before


@pytest.mark.parametrize("arguments", [(), ("inspect",), ("doctor", "tiny"), ("inspect", "tiny", "--ver")])
def test_wrong_usage_is_exit_2(engine_here: Run, arguments: tuple[str, ...]) -> None:
    assert engine_here(*arguments).returncode == 2


def test_plans_for_another_machine_are_shown_with_the_reason(
    tiny: Path, engine_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plans(tiny)
    other = Gpus((replace(DEVICE, name="NVIDIA H200", compute_capability="9.0"),), "580.65.06", "13.0")
    monkeypatch.setattr("g4seg_trt.diagnosis.inspection.read_gpus", lambda: other)
    monkeypatch.setattr("g4seg_trt.diagnosis.inspection.package_versions", lambda: {"tensorrt": TENSORRT})
    done = engine_here("inspect", tiny)
    # The graphs still run elsewhere: plans that do not fit are no fault of the directory.
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "compiled: tensorrt 11.4.0.106 for NVIDIA A100-SXM4-80GB, compute capability 8.0, driver 580.65.06, "
        "flags: optimization_level 3" in done.stdout
    )
    assert "  unet     1            2.0  tensorrt/unet.b1.plan" in done.stdout
    assert "does not fit this machine: built for compute capability 8.0, and 9.0 is this GPU's" in done.stdout
    artefact = json.loads(engine_here("inspect", tiny, "--json", "-").stdout)["contents"]["artefacts"][0]
    assert artefact["fits"] is False
    assert "compute capability" in artefact["reasons"][0]
    assert artefact["batch_sizes"] == [1]
    assert artefact["build_flags"]["optimization_level"] == 3


@pytest.mark.parametrize(
    ("device", "version", "words"),
    [
        (DEVICE, TENSORRT, ""),
        (replace(DEVICE, driver="590.1"), TENSORRT, ""),
        (replace(DEVICE, name="NVIDIA A100-PCIE-40GB"), TENSORRT, "NVIDIA A100-PCIE-40GB is here"),
        (replace(DEVICE, compute_capability="9.0"), TENSORRT, "9.0 is this GPU's"),
        (DEVICE, "11.5.0.1", "11.5.0.1 is installed"),
        (DEVICE, None, "TensorRT is not installed"),
        (None, TENSORRT, "no NVIDIA driver was found"),
    ],
)
def test_what_speaks_against_plans(tiny: Path, device: CudaDevice | None, version: str | None, words: str) -> None:
    artefact = add_plans(tiny)
    devices = () if device is None else (device,)
    gpus = Gpus(devices, problem="" if devices else "no NVIDIA driver was found")
    fit = artefact_fit(read_manifest(tiny), artefact, gpus, {"tensorrt": version})
    assert fit.fits is (words == "")
    assert words in "; ".join(fit.reasons)
    assert bool(fit.notes) is (device is not None and device.driver != DEVICE.driver)


def test_one_gpu_of_several_is_enough_for_plans(tiny: Path) -> None:
    artefact = add_plans(tiny)
    first = replace(DEVICE, name="NVIDIA H200", compute_capability="9.0")
    gpus = Gpus((first, replace(DEVICE, index=1)))
    fit = artefact_fit(read_manifest(tiny), artefact, gpus, {"tensorrt": TENSORRT})
    assert fit.fits
    assert fit.notes == ("use --device cuda:1",)


def test_plans_of_a_backend_that_does_not_exist_do_not_fit(tiny: Path) -> None:
    artefact = replace(add_plans(tiny), backend="abacus")
    fit = artefact_fit(read_manifest(tiny), artefact, Gpus((DEVICE,)), {"tensorrt": TENSORRT})
    assert fit.reasons == ("g4seg-trt has no backend abacus",)


def test_what_backends_keep_is_counted(tiny: Path, engine_here: Run) -> None:
    for entry, size in (("openvino-unet-1", 2_000_000), ("openvino-text_encoder-2", 3_000_000), (".killed.1.a", 9)):
        (tiny / "cache" / entry).mkdir(parents=True)
        (tiny / "cache" / entry / "model.bin").write_bytes(bytes(size))
    done = engine_here("inspect", tiny, "--json", tiny.parent / "report.json")
    assert "cache of openvino, safe to delete: 5.0 MB\n" in done.stdout
    assert json.loads((tiny.parent / "report.json").read_text("utf-8"))["cache"] == {"openvino": 5_000_000}
    assert "files: all are there" in done.stdout
