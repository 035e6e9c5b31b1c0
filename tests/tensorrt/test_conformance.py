"""Our use of TensorRT and Polygraphy, and the fake, against the real bindings of TensorRT 10 and 11."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("10", "11")

# What must be among the names that the walk has seen: a walk that sees nothing finds no fault.
SEEN = {
    "ICudaEngine.create_execution_context",
    "ICudaEngine.device_memory_size_v2",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_device_memory",
    "IExecutionContext.set_tensor_address",
    "ITensor.shape",
    "ITimingCache.serialize",
    "Runtime.deserialize_cuda_engine",
    "create_config(progress_monitor=)",
    "create_config(tf32=)",
    "network_from_onnx_path(strongly_typed=)",
    "polygraphy.backend.trt.engine_bytes_from_network",
    "tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED",
    "tensorrt.ILogger.log",
    "tensorrt.IProgressMonitor.step_complete",
    "tensorrt.LayerInformationFormat.JSON",
    "tensorrt.Runtime",
}

HEADER = """
from __future__ import annotations
from typing import TYPE_CHECKING, Any
if TYPE_CHECKING:
    import tensorrt as trt
"""

# Each is wrong in one way; what the walk must say about it.
WRONG = {
    "a member that is gone": ("def f(trt: Any): trt.BuilderFlag.FP17", "BuilderFlag has no FP17"),
    "a class that is not there": ("def f(trt: Any): trt.IEngine", "tensorrt has no IEngine"),
    "a method that is not there": (
        "def f(context: trt.IExecutionContext): context.execute_async_v9(1)",
        "IExecutionContext has no execute_async_v9",
    ),
    "a keyword that is not there": (
        "def f(context: trt.IExecutionContext): context.execute_async_v3(stream=1)",
        "context.execute_async_v3 takes (stream_handle)",
    ),
    "an argument too many": (
        "def f(engine: trt.ICudaEngine): engine.get_tensor_name(1, 2)",
        "engine.get_tensor_name takes (index)",
    ),
    "an argument that is missing": (
        "def f(context: trt.IExecutionContext): context.set_device_memory(1)",
        "context.set_device_memory takes (memory, size)",
    ),
    "on what a method returned": (
        "def f(trt: Any, log: trt.ILogger):\n    trt.Runtime(log).deserialize_cuda_engine(b'').num_bindings",
        "ICudaEngine has no num_bindings",
    ),
    "on an attribute of ours": (
        "class A:\n    def __init__(self, e: trt.ICudaEngine) -> None:\n        self.engine = e\n"
        "    def f(self) -> None:\n        self.engine.max_batch_size",
        "ICudaEngine has no max_batch_size",
    ),
    "a property that is read only": (
        "def f(engine: trt.ICudaEngine): engine.num_io_tensors = 1",
        "ICudaEngine.num_io_tensors cannot be set",
    ),
    "an object of unknown type": ("def f(thing: Any): thing.set_tensor_address('a', 1)", "of unknown type"),
    "an override of nothing": (
        "def f(trt: Any):\n    class A(trt.ILogger):\n        def write(self, severity, msg): ...",
        "tensorrt.ILogger has no write",
    ),
    "an override with other parameters": (
        "def f(trt: Any):\n    class A(trt.ILogger):\n        def log(self, msg): ...",
        "tensorrt.ILogger.log has parameters",
    ),
    "a function that Polygraphy has not": (
        "def f(): from polygraphy.backend.trt import engine_from_nothing",
        "polygraphy.backend.trt has no engine_from_nothing",
    ),
    "a keyword that Polygraphy has not": (
        "def f(a: Any, b: Any):\n    from polygraphy.backend.trt import create_config\n"
        "    create_config(a, b, timing_cache=None)",
        "create_config takes",
    ),
}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, install_bindings: ModuleType) -> str:
    """The version of each major that install_bindings.py installs."""
    found: str = next(full for full in install_bindings.TENSORRT if full.startswith(f"{request.param}."))
    return found


def check(install_bindings: ModuleType, folder: Path, version: str, *arguments: str | Path) -> dict[str, Any]:
    """Run conformance.py in an interpreter that finds the real bindings."""
    path = (install_bindings.tensorrt_folder(folder, version), install_bindings.polygraphy_folder(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "tests.tensorrt.conformance", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["version"] == version
    return result


def users_of_tensorrt() -> list[Path]:
    """Every module of ours that imports TensorRT or Polygraphy, or belongs to those that do."""
    found = []
    for path in (
        path for room in ("g4seg_trt", "engine", "export", "benchmarks") for path in (ROOT / room).rglob("*.py")
    ):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        text = path.read_text(encoding="utf-8")
        if names & {"tensorrt", "polygraphy"} or "from polygraphy" in text or path.name.startswith("tensorrt_"):
            found.append(path)
    return found


def test_our_modules_use_only_what_the_bindings_have(
    install_bindings: ModuleType, api_folder: Path, version: str
) -> None:
    files = users_of_tensorrt()
    assert {"tensorrt_builder.py", "tensorrt_runner.py", "tensorrt_progress.py"} <= {path.name for path in files}
    result = check(install_bindings, api_folder, version, "modules", *files)
    assert result["problems"] == []
    assert set(result["used"]) >= SEEN


def test_a_wrong_name_or_argument_is_found(
    install_bindings: ModuleType, api_folder: Path, version: str, tmp_path: Path
) -> None:
    files = []
    for number, (source, _) in enumerate(WRONG.values()):
        files.append(tmp_path / f"wrong{number}.py")
        files[-1].write_text(f"{HEADER}\n{source}\n", encoding="utf-8")
    problems = check(install_bindings, api_folder, version, "modules", *files)["problems"]
    for file, (what, (_, message)) in zip(files, WRONG.items(), strict=True):
        mine = [problem for problem in problems if problem.startswith(f"{file.name}:")]
        assert len(mine) == 1 and message in mine[0], (what, mine)


def test_the_fake_has_only_what_the_bindings_have(install_bindings: ModuleType, api_folder: Path, version: str) -> None:
    result = check(install_bindings, api_folder, version, "fake", Path(__file__).with_name("fake_tensorrt.py"))
    assert result["problems"] == []
    assert {"Runtime.deserialize_cuda_engine", "IBuilderConfig.progress_monitor", "DataType.HALF"} <= set(
        result["used"]
    )


def test_a_wrong_fake_is_found(install_bindings: ModuleType, api_folder: Path, version: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong_fake.py"
    wrong.write_text(
        "import enum\nclass Kiln: ...\nclass DataType(enum.Enum):\n    HALFISH = 1\n"
        "class Runtime:\n    def deserialize_cuda_engine(self, plan): ...\n    def fire(self): ...\n"
        "class ICudaEngine:\n    num_io_tensors = property(lambda self: 1, lambda self, value: None)\n",
        encoding="utf-8",
    )
    problems = check(install_bindings, api_folder, version, "fake", wrong)["problems"]
    assert [problem.split(" ")[0] for problem in problems] == [
        "Kiln",
        "DataType.HALFISH",
        "Runtime.deserialize_cuda_engine",
        "Runtime.fire",
        "ICudaEngine.num_io_tensors",
    ]


def test_the_bindings_without_tensorrt_give_one_clear_line(
    install_bindings: ModuleType, api_folder: Path, version: str
) -> None:
    # The stubs return null pointers, as TensorRT does on a machine that it cannot start on.
    program = (
        "from g4seg_engine.errors import EngineError\n"
        "from g4seg_engine.tensorrt_api import import_tensorrt, message_log, new_runtime\n"
        "trt = import_tensorrt()\n"
        "try:\n    new_runtime(trt, *message_log(trt))\n"
        "except EngineError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(install_bindings.tensorrt_folder(api_folder, version))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"TensorRT {version} cannot start: it gave no reason\n"
