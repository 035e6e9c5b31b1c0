"""Holds our TensorRT modules and the fake against the real bindings. Runs in an interpreter that has them:

    python -m tests.tensorrt.conformance modules FILE...   every name, call and assignment in our modules
    python -m tests.tensorrt.conformance fake FILE         every class, method, property and enum member of the fake

Prints JSON: {"problems": [...], "used": [...]}. Standard library only, besides TensorRT and Polygraphy.
"""

from __future__ import annotations

import ast
import enum
import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from tests.tensorrt.signatures import Signature, signatures
from tests.tensorrt.typed_source import Instance, Module, Python, Scope, read_scopes

# Parameters of our functions that are TensorRT's module. They are annotated Any: it is imported when it is needed.
MODULE_NAMES = ("trt", "module")
MODULE_FUNCTIONS = ("import_tensorrt",)


def check_modules(trt: Any, files: list[Path]) -> dict[str, list[str]]:
    """Check every use of TensorRT and Polygraphy in our modules."""
    problems: list[str] = []
    used: set[str] = set()
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    telling = _telling_names(trt)
    for file, scopes in read_scopes(trt, trees, MODULE_NAMES, MODULE_FUNCTIONS).items():
        for scope in scopes:
            for node in scope.nodes():
                problem = _check_node(scope, node, telling, used)
                if problem:
                    problems.append(f"{file.name}:{node.lineno}: {problem}")
    return {"problems": problems, "used": sorted(used)}


def check_fake(trt: Any, fake: Any) -> dict[str, list[str]]:
    """Check that what the fake offers, the real module offers with the same parameters."""
    problems: list[str] = []
    used: set[str] = set()
    for name, value in vars(fake).items():
        if (
            name.startswith("_")
            or inspect.ismodule(value)
            or getattr(value, "__module__", fake.__name__) != fake.__name__
        ):
            continue
        used.add(name)
        if not hasattr(trt, name):
            problems.append(f"{name} does not exist")
        elif isinstance(value, type):
            problems += [f"{name}.{problem}" for problem in _compare_class(getattr(trt, name), value, used, name)]
        elif callable(value):
            problems += _compare_call(name, getattr(trt, name), value)
    return {"problems": problems, "used": sorted(used)}


def _check_node(scope: Scope, node: ast.AST, telling: set[str], used: set[str]) -> str | None:
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polygraphy"):
        source = importlib.import_module(node.module or "")
        missing = [alias.name for alias in node.names if not hasattr(source, alias.name)]
        used.update(f"{node.module}.{alias.name}" for alias in node.names)
        return f"{node.module} has no {', '.join(missing)}" if missing else None
    if isinstance(node, ast.ClassDef):
        return _check_subclass(scope, node, used)
    if isinstance(node, ast.Attribute):
        return _check_attribute(scope, node, telling, used)
    if isinstance(node, ast.Call):
        return _check_call(scope, node, used)
    return None


def _check_attribute(scope: Scope, node: ast.Attribute, telling: set[str], used: set[str]) -> str | None:
    owner = scope.type_of(node.value)
    if owner is None:
        return (
            f"{ast.unparse(node)}: of unknown type; annotate {ast.unparse(node.value)}"
            if node.attr in telling
            else None
        )
    if not isinstance(owner, (Instance, Module, Python)):
        return None
    used.add(f"{owner.name}.{node.attr}")
    if not hasattr(owner.value, node.attr):
        return f"{owner.name} has no {node.attr}"
    if isinstance(node.ctx, ast.Store) and isinstance(owner, Instance):
        target = getattr(owner.value, node.attr)
        if not isinstance(target, property) or target.fset is None:
            return f"{owner.name}.{node.attr} cannot be set"
    return None


def _check_call(scope: Scope, node: ast.Call, used: set[str]) -> str | None:
    function = scope.callee(node.func)
    if function is None:
        return None
    keywords = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    if len(keywords) < len(node.keywords) or any(isinstance(argument, ast.Starred) for argument in node.args):
        return f"{ast.unparse(node.func)}: arguments must be written out"
    name = ast.unparse(node.func)
    used.update(f"{name}({keyword}=)" for keyword in keywords)
    try:
        ways = _ways(function, name)
    except ValueError as error:
        return str(error)
    if not any(way.accepts(len(node.args), keywords) for way in ways):
        shown = " or ".join(f"({', '.join(way.names)})" for way in ways)
        return f"{name} takes {shown}, not {len(node.args)} positional and {', '.join(keywords) or 'no keywords'}"
    return None


def _check_subclass(scope: Scope, node: ast.ClassDef, used: set[str]) -> str | None:
    for base in node.bases:
        parent = scope.type_of(base)
        if not isinstance(parent, Python) or not isinstance(parent.value, type):
            continue
        for method in node.body:
            if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
                continue
            used.add(f"{parent.name}.{method.name}")
            if not hasattr(parent.value, method.name):
                return f"{parent.name} has no {method.name} to override"
            names = tuple(argument.arg for argument in method.args.args[1:])
            ways = signatures(getattr(parent.value, method.name))
            if not any(way.names == names for way in ways):
                return f"{parent.name}.{method.name} has parameters {ways[0].names}, not {names}"
    return None


def _ways(function: Any, name: str) -> tuple[Signature, ...]:
    if isinstance(function, type):
        maker = _maker(function)
        if type(maker).__name__ == "wrapper_descriptor":
            raise ValueError(f"{name} cannot be made by a call")
        return signatures(maker)
    ways = signatures(function)
    if inspect.isfunction(function) and ways[0].open_names:
        return (_with_loader_names(function, ways[0]),)
    return ways


def _with_loader_names(function: Any, way: Signature) -> Signature:
    """Polygraphy's functions pass keywords on to the loader class of the same name, and that to its bases."""
    loader = getattr(importlib.import_module("polygraphy.backend.trt"), function.__name__.title().replace("_", ""))
    names = list(way.names)
    for base in inspect.getmro(loader):
        if "__init__" in vars(base):
            names += [p for p in inspect.signature(_maker(base)).parameters if p not in ("self", "args", "kwargs")]
    return Signature(tuple(dict.fromkeys(names)), way.required, "")


def _maker(kind: Any) -> Any:
    return kind.__init__


def _telling_names(trt: Any) -> set[str]:
    """Attributes that only objects of TensorRT's have: on an object of unknown type they are suspicious."""
    classes = [value for value in vars(trt).values() if isinstance(value, type)]
    names = {name for value in classes for name in dir(value)}
    return {name for name in names if "_" in name.strip("_") and not name.startswith("_")}


def _compare_class(real: Any, fake: type, used: set[str], owner: str) -> list[str]:
    problems = []
    for name, value in vars(fake).items():
        if name.startswith("_") and name != "__init__":
            continue
        if issubclass(fake, enum.Enum) and not isinstance(value, fake):
            continue
        used.add(f"{owner}.{name}")
        if not hasattr(real, name):
            problems.append(f"{name} does not exist")
            continue
        found = getattr(real, name)
        if isinstance(value, type):
            problems += [f"{name}.{problem}" for problem in _compare_class(found, value, used, f"{owner}.{name}")]
        elif inspect.isfunction(value):
            if name != "__init__" or len(inspect.signature(value).parameters) > 1:
                problems += _compare_call(name, found, value)
        elif isinstance(value, property) and not isinstance(found, property):
            problems.append(f"{name} is no property")
        elif isinstance(value, property) and value.fset is not None and found.fset is None:
            problems.append(f"{name} cannot be set")
    return problems


def _compare_call(name: str, real: Any, fake: Any) -> list[str]:
    mine = signatures(fake)[0]
    ways = signatures(real)
    for way in ways:
        # The fake may leave out what has a default.
        if way.names[: len(mine.names)] == mine.names and way.required <= len(mine.names):
            return []
    return [f"{name} has parameters {' or '.join(str(way.names) for way in ways)}, not {mine.names}"]


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    import tensorrt

    command, *paths = sys.argv[1:]
    if command == "modules":
        result = check_modules(tensorrt, [Path(path) for path in paths])
    else:
        result = check_fake(tensorrt, _load(Path(paths[0])))
    print(json.dumps({"version": tensorrt.__version__, **result}))
