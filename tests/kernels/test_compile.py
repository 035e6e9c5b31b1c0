"""The kernels compile for GPUs that are not there, use their tensor cores and fit into their memories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {80: 163 << 10, 90: 227 << 10}


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py"), str(capability)],
        capture_output=True,
        text=True,
        env=environment | {"TRITON_DEFAULT_FP_FUSION": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 24
    for kernel in kernels:
        assert kernel["shared"] <= SHARED[capability], kernel
        assert kernel["stack"] <= 32, kernel  # bytes of a thread that did not fit into registers
        assert kernel["tensor_cores"] == kernel["kernel"].startswith(("grid", "products")), kernel
