"""Imports run downwards only, and the product runs without the build-time libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

# Package -> our packages that it may import.
ALLOWED = {
    "engine/g4seg_engine": set[str](),
    "g4seg_trt": {"g4seg_engine"},
    "export/g4seg_export": {"g4seg_engine"},
    "benchmarks/g4seg_bench": {"g4seg_engine", "g4seg_trt", "g4seg_export"},
}
# The one door from the product to the build side, opened when the command runs.
LAZY_EXPORT = {"g4seg_trt/cli/build_engines.py"}

# Rooms for callers who have torch; no other module of the product imports them when it is imported.
TORCH_ROOMS = {
    "engine/g4seg_engine/onnxruntime_tensors.py",
    "engine/g4seg_engine/tensorrt_memory.py",
    "engine/g4seg_engine/tensorrt_runner.py",
    "engine/g4seg_engine/tensors.py",
    "g4seg_trt/correspondence/cells_kernel.py",
    "g4seg_trt/correspondence/grid_kernel.py",
    "g4seg_trt/correspondence/op.py",
    "g4seg_trt/correspondence/pixel_kernel.py",
    "g4seg_trt/diagnosis/gpu_trial.py",
    "g4seg_trt/torch_chain.py",
}

# Looks into torch from inside its functions, for callers who have it.
ASKS_TORCH = {"engine/g4seg_engine/cuda_device.py"}

# Within the product, lowest first: a module imports modules of lower floors, or of its own.
FLOORS = (
    {"arrays", "atomic", "errors", "listing", "outputs", "timing"},
    {"config", "class_table", "picture", "prompt", "inputs"},
    {"geometry", "correspondence", "soften"},
    {"update", "masks", "overlay", "postprocess", "evaluate"},
    {"injection"},
    {"chain", "preparation"},
    {"torch_chain"},
    {"backends"},
    {"refinement", "run", "matches", "report"},
    {"stream"},
    {"dataset"},
    {"refiner"},
    {"cluster"},
    {"diagnosis"},
    {"cli"},
)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: everything outside functions and TYPE_CHECKING blocks."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)
        pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    own = Path(package).name
    files = modules(package)
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        allowed = ALLOWED[package] | {own} | ({"g4seg_export"} if name in LAZY_EXPORT else set())
        ours = {module.split(".")[0] for module in imports(ast.parse(path.read_text(encoding="utf-8")))}
        assert {module for module in ours if module.startswith("g4seg_")} <= allowed, name


def test_the_build_command_imports_the_export_side_only_when_it_runs() -> None:
    for name in LAZY_EXPORT:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        assert not [module for module in at_import_time(tree) if module.startswith("g4seg_export")]


def test_every_module_of_the_product_stands_on_one_floor() -> None:
    found = {path.stem if path.is_file() else path.name for path in (ROOT / "g4seg_trt").iterdir()}
    found -= {"__init__", "__pycache__", "py", "assets"}
    assert found == set().union(*FLOORS)


def test_modules_of_the_product_import_downwards() -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    for path in modules("g4seg_trt"):
        name = path.relative_to(ROOT / "g4seg_trt").with_suffix("").parts[0]
        if name == "__init__":
            continue
        for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
            parts = module.split(".")
            if parts[0] == "g4seg_trt" and len(parts) > 1:
                assert floor_of[parts[1]] <= floor_of[name], f"{path.name} imports {module}"


@pytest.mark.parametrize("package", ["g4seg_trt", "engine/g4seg_engine"])
def test_build_time_libraries_are_not_imported_by_the_product(package: str) -> None:
    for path in modules(package):
        name = path.relative_to(ROOT).as_posix()
        names = {module.split(".")[0] for module in imports(ast.parse(path.read_text(encoding="utf-8")))}
        assert not names & (set(HEAVY) - ({"torch"} if name in TORCH_ROOMS | ASKS_TORCH else set())), path


def test_only_torch_rooms_import_torch_rooms() -> None:
    for name in ASKS_TORCH:
        assert "torch" not in set(at_import_time(ast.parse((ROOT / name).read_text(encoding="utf-8"))))
    rooms = {name.removesuffix(".py").removeprefix("engine/").replace("/", ".") for name in TORCH_ROOMS}
    for path in (*modules("g4seg_trt"), *modules("engine/g4seg_engine")):
        if path.relative_to(ROOT).as_posix() not in TORCH_ROOMS:
            assert not rooms & set(at_import_time(ast.parse(path.read_text(encoding="utf-8")))), path


def loaded_after(program: str, *flags: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running the program."""
    program += "\nimport sys; print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, *flags, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("LOADED", 1)[1].split())


def test_importing_the_package_is_cheap() -> None:
    loaded = loaded_after("import g4seg_trt; assert g4seg_trt.__version__")
    assert not loaded & {*HEAVY, "numpy", "PIL", "tokenizers", "onnxruntime", "tqdm"}


REFINEMENT = """
import numpy as np
import g4seg_trt
from g4seg_trt import Refiner
assert set(g4seg_trt.__all__) <= set(dir(g4seg_trt))
for name in g4seg_trt.__all__:
    getattr(g4seg_trt, name)
rows, columns = np.mgrid[:70, :50]
image = np.stack([rows * 3, columns * 5, rows + columns], axis=-1).astype(np.uint8)
mask = ((rows - 35) ** 2 + (columns - 25) ** 2 < 300)
with Refiner.from_engine("tiny") as refiner:
    refiner.set_image(image)
    refined = refiner.refine({"circle": mask})
probability = refined.probabilities["circle"]
if probability.shape != (70, 50) or not (probability >= 0).all() or not (probability <= 1).all():
    raise SystemExit("no refinement")
if not {"unet", "correspondence", "update"} <= set(refined.timings):
    raise SystemExit("stages are missing")
"""


@pytest.mark.parametrize("flags", [(), ("-O",)])
def test_a_whole_refinement_loads_no_build_time_library(flags: tuple[str, ...]) -> None:
    loaded = loaded_after(REFINEMENT, *flags)
    assert {"numpy", "onnxruntime"} <= loaded
    assert not loaded & set(HEAVY)
