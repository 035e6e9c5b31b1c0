"""Which objects of TensorRT's a module's names stand for: from annotations, imports and the bindings' signatures."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tensorrt.signatures import property_type, signatures

Function = ast.FunctionDef | ast.Lambda


@dataclass(frozen=True)
class Instance:
    """An object of a class of TensorRT's."""

    value: type

    @property
    def name(self) -> str:
        return self.value.__name__


@dataclass(frozen=True)
class Module:
    """The module tensorrt."""

    value: Any
    name: str = "tensorrt"


@dataclass(frozen=True)
class Python:
    """A class, enum member, function or object that a name stands for itself."""

    value: Any
    name: str


@dataclass(frozen=True)
class Own:
    """An object of one of our classes."""

    name: str


@dataclass(frozen=True)
class Container:
    """A mapping or sequence of objects of one type, or a tuple of several."""

    items: tuple[Any, ...]


Type = Instance | Module | Python | Own | Container | None


@dataclass
class Scope:
    """A module or function body with the types of its names."""

    world: World
    body: ast.AST
    names: dict[str, Type]
    owner: str | None = None

    def nodes(self) -> Iterator[Any]:
        """Every node of this body; nested functions have scopes of their own."""
        pending = list(ast.iter_child_nodes(self.body))
        while pending:
            node = pending.pop()
            yield node
            if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
                pending.extend(ast.iter_child_nodes(node))

    def type_of(self, node: ast.expr) -> Type:
        """What an expression stands for, or None."""
        if isinstance(node, ast.Name):
            return Own(self.owner) if node.id == "self" and self.owner else self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.type_of(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.Subscript):
            container = self.type_of(node.value)
            return container.items[-1] if isinstance(container, Container) and container.items else None
        if isinstance(node, ast.Tuple):
            return Container(tuple(self.type_of(item) for item in node.elts))
        return None

    def callee(self, node: ast.expr) -> Any:
        """The real function, method or class that is called, or None if it is none of theirs."""
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if isinstance(owner, (Instance, Module, Python)):
                return getattr(owner.value, node.attr, None)
            return None
        target = self.type_of(node)
        return target.value if isinstance(target, Python) else None

    def _attribute(self, owner: Type, attribute: str) -> Type:
        if isinstance(owner, Own):
            return self.world.attributes.get((owner.name, attribute))
        if isinstance(owner, Instance):
            value = getattr(owner.value, attribute, None)
            return self.world.instance(property_type(value)) if isinstance(value, property) else None
        if isinstance(owner, (Module, Python)) and hasattr(owner.value, attribute):
            return Python(getattr(owner.value, attribute), f"{owner.name}.{attribute}")
        return None

    def _result(self, node: ast.Call) -> Type:
        if isinstance(node.func, ast.Name) and node.func.id in self.world.results:
            return self.world.results[node.func.id]
        if isinstance(node.func, ast.Attribute):
            owner = self.type_of(node.func.value)
            if isinstance(owner, Own):
                return self.world.results.get(f"{owner.name}.{node.func.attr}")
        function = self.callee(node.func)
        if isinstance(function, type):
            return Instance(function) if function.__module__.startswith("tensorrt") else None
        if function is None or inspect.isfunction(function) or inspect.ismethod(function):
            return None
        try:
            return self.world.instance(signatures(function)[0].returns)
        except ValueError:
            return None


@dataclass
class World:
    """What is known across all modules."""

    trt: Any
    results: dict[str, Type] = field(default_factory=dict)
    attributes: dict[tuple[str, str], Type] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)

    def instance(self, name: str) -> Type:
        """An object of the class of TensorRT's with this name, or None."""
        found = getattr(self.trt, name, None)
        return Instance(found) if isinstance(found, type) else None

    def annotated(self, node: ast.expr | None) -> Type:
        """What an annotation says."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self.annotated(node.left) or self.annotated(node.right)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
            return self.instance(node.attr)
        if isinstance(node, ast.Name) and node.id in self.classes:
            return Own(node.id)
        if isinstance(node, ast.Subscript):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            known = tuple(self.annotated(item) for item in items)
            outer = node.value.id if isinstance(node.value, ast.Name) else ""
            return known[0] if outer == "Iterator" and known else Container(known) if any(known) else None
        return None


def read_scopes(
    trt: Any, trees: Mapping[Path, ast.Module], module_names: tuple[str, ...], module_functions: tuple[str, ...]
) -> dict[Path, list[Scope]]:
    """The scopes of our modules.

    Args:
        trt: the real module.
        trees: of our modules.
        module_names: parameters that are the module.
        module_functions: functions that return it.
    """
    world = World(trt)
    world.results.update(dict.fromkeys(module_functions, Module(trt)))
    for tree in trees.values():
        world.classes |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for tree in trees.values():
        _read_declarations(world, tree)
    scopes: dict[Path, list[Scope]] = {}
    for _ in range(3):  # what one round learns of attributes, the next one uses
        scopes = {path: list(_scopes(world, tree, {}, None, module_names)) for path, tree in trees.items()}
    return scopes


def _read_declarations(world: World, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    world.results[f"{node.name}.{part.name}"] = world.annotated(part.returns)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    world.attributes[node.name, part.target.id] = world.annotated(part.annotation)
            world.results.setdefault(node.name, Own(node.name))
    for part in tree.body:
        if isinstance(part, ast.FunctionDef) and part.name not in world.results:
            world.results[part.name] = world.annotated(part.returns)


def _scopes(
    world: World, body: Any, outer: dict[str, Type], owner: str | None, module_names: tuple[str, ...]
) -> Iterator[Scope]:
    scope = Scope(world, body, dict(outer), owner)
    if isinstance(body, (ast.FunctionDef, ast.Lambda)):
        for argument in [*body.args.posonlyargs, *body.args.args, *body.args.kwonlyargs]:
            known = world.annotated(argument.annotation)
            scope.names[argument.arg] = Module(world.trt) if argument.arg in module_names else known
    nodes = sorted((node for node in scope.nodes() if hasattr(node, "lineno")), key=lambda node: node.lineno)
    for node in nodes:
        _learn(scope, node)
    yield scope
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            holder = next((n.name for n in nodes if isinstance(n, ast.ClassDef) and node in n.body), owner)
            yield from _scopes(world, node, scope.names, holder, module_names)


def _learn(scope: Scope, node: Any) -> None:
    """Take over what an import, an assignment or a with statement says about names."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name == "tensorrt":
                scope.names[alias.asname or alias.name] = Module(scope.world.trt)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polygraphy"):
        source = importlib.import_module(node.module or "")
        for alias in node.names:
            if hasattr(source, alias.name):
                scope.names[alias.asname or alias.name] = Python(getattr(source, alias.name), alias.name)
    elif isinstance(node, ast.AnnAssign):
        _assign(scope, node.target, scope.world.annotated(node.annotation))
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            _assign(scope, target, scope.type_of(node.value))
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        _assign(scope, node.optional_vars, scope.type_of(node.context_expr))


def _assign(scope: Scope, target: ast.expr, known: Type) -> None:
    if isinstance(target, ast.Tuple):
        items = known.items if isinstance(known, Container) else ()
        for part, item in zip(target.elts, items, strict=False):
            _assign(scope, part, item)
    elif known is None:
        return
    elif isinstance(target, ast.Name):
        scope.names[target.id] = known
    elif isinstance(target, ast.Attribute) and scope.type_of(target.value) == Own(scope.owner or ""):
        scope.world.attributes[scope.owner or "", target.attr] = known
