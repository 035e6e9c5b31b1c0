"""The hand-written engine of the commands' tests serves here too.

What needs a real model beside its engine stands in tests/export, where one is built: tests/export/test_latency.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest


def _commands_conftest() -> Any:
    """The module tests/cli/conftest.py, under the name that pytest gives it, so that it is loaded once."""
    name = "tests.cli.conftest"
    if name not in sys.modules:
        spec = spec_from_file_location(name, Path(__file__).parents[1] / "cli" / "conftest.py")
        if spec is None or spec.loader is None:
            raise ImportError(name)
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


toy_engine = _commands_conftest().toy_engine


@pytest.fixture
def record_of(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """record_of(main, *arguments) -> the record that a benchmark writes."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> dict[str, Any]:
        file = tmp_path / "records" / "record.json"
        assert main([*map(str, arguments), "--json", str(file)]) == 0
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        assert {"benchmark", "environment"} <= set(record)
        assert str(Path.home()) not in json.dumps(record["environment"])
        return record

    return run
