"""g4seg-engine doctor: what it finds on this machine, on a machine of stubs, and with broken installations."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from g4seg_engine.version import VERSION
from g4seg_trt.backends import BACKENDS
from g4seg_trt.diagnosis import packages, trials

PROGRAM = "import sys; from g4seg_trt.cli.engine import main; sys.exit(main())"


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """g4seg-engine in a process of its own, with more environment variables."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """A diagnosis of this machine, as report and as text."""
    target = tmp_path_factory.mktemp("doctor") / "report.json"
    done = process("doctor", "--json", target)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(target.read_text("utf-8"))
    return report, done.stdout


@pytest.mark.slow
def test_the_doctor_tries_every_backend(diagnosis: tuple[dict[str, Any], str]) -> None:
    doctor, _ = diagnosis
    assert set(doctor) == {
        "command",
        "version",
        "works",
        "machine",
        "gpus",
        "torch_cuda",
        "packages",
        "package_problems",
        "backends",
        "torch",
        "build_engines",
    }
    found = {(outcome["backend"], outcome["device"]): outcome for outcome in doctor["backends"]}
    assert set(found) == {(backend, device) for backend, devices in BACKENDS.items() for device in devices}
    assert found["onnxruntime", "cpu"]["works"]
    for outcome in (*doctor["backends"], doctor["torch"], doctor["build_engines"]):
        assert outcome["works"] is (outcome["reason"] == "")
    assert doctor["packages"]["onnxruntime"]
    assert "onnxruntime-gpu" in doctor["packages"]
    assert doctor["machine"]["usable_cores"] >= 1


@pytest.mark.slow
def test_the_text_can_be_pasted_into_a_bug_report(diagnosis: tuple[dict[str, Any], str]) -> None:
    report, text = diagnosis
    assert "onnxruntime on cpu: works\n" in text
    assert f"g4seg-trt: {VERSION}\n" in text
    assert platform.python_version() in text
    assert f"numpy {report['packages']['numpy']}" in text
    private = [str(Path.home()), sys.prefix, str(Path.cwd())]
    if len(platform.node()) > 7:  # a shorter name may be a part of any word
        private.append(platform.node())
    for name in filter(lambda name: name.strip("/"), private):
        assert name not in text
        assert name not in json.dumps(report)


def blocked(folder: Path, packages: tuple[str, ...], statement: str) -> dict[str, str]:
    """The environment in which importing one of the packages executes a statement, in every process from here."""
    hook = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {packages!r}:
            {statement}

sys.meta_path.insert(0, Block())
"""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(hook, "utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))}


def test_without_any_backend_the_doctor_says_what_to_install(tmp_path: Path) -> None:
    missing = blocked(tmp_path / "hook", ("onnxruntime", "openvino"), "raise ModuleNotFoundError('gone', name=name)")
    done = process("doctor", **missing)
    assert done.returncode == 1
    reason = "does not work: onnxruntime is not installed; pip install 'g4seg-trt[cpu]'\n"
    assert f"onnxruntime on cpu: {reason}" in done.stdout
    assert (
        "openvino on cpu: does not work: openvino is not installed; pip install 'g4seg-trt[openvino]'\n" in done.stdout
    )
    assert f"g4seg-build-engines: {reason}" in done.stdout
    assert done.stderr == ("g4seg-engine: error: no backend works here; for a start: pip install 'g4seg-trt[cpu]'\n")
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise ImportError('/home/somebody/lib/onnxruntime.so: undefined symbol: x')", "onnxruntime.so: undefined"),
        ("raise OSError('libonnx.so.1: cannot open shared object file')", "libonnx.so.1: cannot open"),
        ("raise RuntimeError('module compiled for another numpy')", "RuntimeError: module compiled for another"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_broken_onnxruntime_is_a_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, words: str
) -> None:
    for name, value in blocked(tmp_path / "hook", ("onnxruntime",), statement).items():
        monkeypatch.setenv(name, value)
    outcome = trials.try_out("onnxruntime", "cpu")
    assert not outcome.works
    assert words in outcome.reason
    assert "somebody" not in outcome.reason
    assert outcome.remedy


def test_a_trial_that_hangs_is_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in blocked(tmp_path / "hook", ("onnxruntime",), "import time; time.sleep(600)").items():
        monkeypatch.setenv(name, value)
    outcome = trials.try_out("onnxruntime", "cpu", time_limit=2)
    assert not outcome.works
    assert "no answer within 2 seconds" in outcome.reason


def test_a_missing_numpy_does_not_stop_the_doctor(tmp_path: Path) -> None:
    missing = blocked(tmp_path / "hook", ("numpy",), "raise ModuleNotFoundError('No module named numpy', name=name)")
    done = process("doctor", "--json", "-", **missing)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["works"]
    assert "numpy" in report["backends"][0]["reason"]
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/venv/lib/libx.so: no symbol", "libx.so: no symbol"),
        ("in '/home/alice/a/b.py' and (/opt/alice/c.so)", "in 'b.py' and (c.so)"),
        (r"C:\Users\Alice\lib\x.dll not found", "x.dll not found"),
        ("see https://example.org/a/page and/or ask", "see https://example.org/a/page and/or ask"),
        (f"{Path.home()}/.cache", ".../.cache"),
    ],
)
def test_folders_are_cut_from_messages(text: str, expected: str) -> None:
    assert trials.without_folders(text) == expected


def test_packages_in_each_others_way_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_version", lambda name: "1.0" if name == "onnxruntime" else None)
    assert packages.package_problems() == []
    installed = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(packages, "installed_version", lambda name: "1.0" if name in installed else None)
    (problem,) = packages.package_problems()
    assert "onnxruntime and onnxruntime-gpu are both installed" in problem
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in problem


def test_requirements_of_the_build_side_come_from_the_package() -> None:
    found = packages.extra_requirements("export")
    assert {"torch", "diffusers", "transformers", "onnx"} <= set(found)
    assert all(found.values())
    assert packages.is_older("2.4.1+cu121", "2.9")
    assert not packages.is_older("2.13.0", "2.9")
    assert not packages.is_older("2.9", "2.9.0")


DRIVER = r"""
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA Imaginary", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_IMAGINARY"; return 0; }
"""


@pytest.mark.parametrize(
    ("code", "device", "problem"),
    [
        (0, ["NVIDIA Imaginary", "8.9", 8 << 30], ""),
        (100, None, "the NVIDIA driver sees no GPU"),
        (803, None, "the NVIDIA driver does not start: CUDA_ERROR_IMAGINARY (803)"),
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs a C compiler")
def test_the_driver_is_asked_through_its_own_library(
    tmp_path: Path, code: int, device: list[Any] | None, problem: str
) -> None:
    source = tmp_path / "driver.c"
    source.write_text(DRIVER.replace("INIT", str(code)), "ascii")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    program = (
        "import json; from g4seg_trt.diagnosis.gpu import read_gpus; gpus = read_gpus(); "
        "print(json.dumps([[[d.name, d.compute_capability, d.memory] for d in gpus.devices], "
        "gpus.driver_cuda, gpus.problem]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        check=True,
    )
    assert json.loads(done.stdout) == [[] if device is None else [device], "12.8", problem]
