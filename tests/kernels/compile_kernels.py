"""Compiles every kernel for GPUs that need not be there; prints a JSON line for each. Run in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from g4seg_trt.correspondence import cells_kernel, grid_kernel, pixel_kernel

Constants = dict[str, Any]
Setting = tuple[int, str, int, int]
"""Compute capability, element type, warps, stages."""

FLOAT, INT, LONG, BYTE, DOUBLE = "*fp32", "*i32", "*i64", "*u8", "*fp64"
POINTERS = {
    **dict.fromkeys(("inverse_generated", "inverse_original", "probability", "source", "refined"), FLOAT),
    **dict.fromkeys(("similarities", "partial_best", "products", "inverse_here", "inverse_there", "bounds"), FLOAT),
    **dict.fromkeys(("here_downs", "here_rights", "downs", "rights", "inverse"), FLOAT),
    **dict.fromkeys(("partial_index", "here_row_starts", "here_column_starts", "row_starts"), INT),
    **dict.fromkeys(("column_starts", "row_of", "column_of", "near_rows", "near_columns"), INT),
    **dict.fromkeys(("dots", "inverses"), DOUBLE),
    "indices": LONG,
    "where": BYTE,
}
SCALARS = dict.fromkeys(("share", "low", "high"), "fp32")
# What a launch passes as 1 the compiler takes as a constant.
ONES = dict.fromkeys(("right", "here_right", "there_right"), 1)
COLUMN = {"right": 0, "down": 1, "here_right": 0, "here_down": 1, "there_right": 0, "there_down": 1}  # of a g x 1 grid
NO_MATCHES: Constants = {"indices": None, "similarities": None}
WHOLE_16S = ("stride_n", "stride_m", "stride", "per_split")  # as the launchers make them


def compiled(kernel: Any, setting: Setting, constants: Constants) -> Any:
    capability, element, warps, stages = setting
    types = {"generated": element, "original": element, "features": element} | POINTERS | SCALARS
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    if kernel is cells_kernel._neighbours_kernel:
        signature["inverses"] = FLOAT
    hints = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in WHOLE_16S
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=hints)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def named(kernel: Any, constants: Constants) -> Constants:
    """Those constants that the kernel takes."""
    return {name: value for name, value in constants.items() if name in kernel.arg_names}


def kernels(capability: int) -> Iterator[tuple[str, Any]]:
    other: Setting = (capability, "*fp16", 4, 3)
    for element, size, precision in (("*fp16", 2, "ieee"), ("*bf16", 2, "ieee"), ("*fp32", 4, "tf32x3")):
        blocks = grid_kernel.TABLE.get(capability, grid_kernel.TABLE[80])[size]
        tile = {"BLOCK_N": blocks.queries, "BLOCK_M": blocks.candidates, "BLOCK_D": blocks.depth}
        setting, other = (capability, element, blocks.warps, blocks.stages), (capability, element, 4, 3)
        whole: Constants = {"SPLIT": False, "partial_best": None, "partial_index": None}
        variants: dict[str, Constants] = {
            "whole": {"FILTERED": True, "WINDOW": False, **whole},
            "window": {"FILTERED": True, "WINDOW": True, **whole},
            "split": {"FILTERED": False, "WINDOW": False, "SPLIT": True, "where": None, **NO_MATCHES},
        }
        product: Constants = {"PRECISION": precision, **tile}
        for name, variant in variants.items():
            yield f"grid {element} {name}", compiled(grid_kernel._search_kernel, setting, {**variant, **product})
        yield f"products {element}", compiled(cells_kernel._products_kernel, setting, product)
        blocks_of: Constants = {"BLOCK_N": 32, "BLOCK_D": 64}
        yield f"norms {element}", compiled(grid_kernel._inverse_norms_kernel, other, blocks_of)
    for name, steps in (("", ONES), (", g x 1", COLUMN)):
        near, cells, search = cells_kernel._neighbours_kernel, cells_kernel._cells_kernel, pixel_kernel._search_kernel
        yield f"neighbours{name}", compiled(near, other, {**named(near, steps), "BLOCK_N": 16, "BLOCK_D": 64})
        yield f"cells{name}", compiled(cells, other, {**named(cells, steps), "BLOCK": 256})
        for window in (False, True):
            sizes = {"CELLS": pixel_kernel.CELLS, "PIXELS": pixel_kernel.PIXELS}
            constants = {"TILE": pixel_kernel.tile_for(0 if window else None), "FILTERED": True, "WINDOW": window}
            unused: Constants = {} if name == "" else {"where": None, **NO_MATCHES}
            constants = {**constants, **sizes, **unused, **named(search, steps)}
            setting = (capability, "*fp32", pixel_kernel.WARPS, 3)
            yield f"pixel window {window}{name}", compiled(search, setting, constants)
    yield "combine", compiled(grid_kernel._combine_kernel, other, {"FILTERED": True, "BLOCK_N": 128})


def stack_bytes(binary: bytes) -> int:
    """Of a thread: what did not fit into registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        done = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    return int(done.stdout.split("STACK:")[1].split()[0])


def main() -> None:
    capability = int(sys.argv[1])
    for name, kernel in kernels(capability):
        assembly = kernel.asm["ptx"]
        found = {
            "kernel": name,
            "shared": kernel.metadata.shared,
            "stack": stack_bytes(kernel.asm["cubin"]),
            "tensor_cores": any(word in assembly for word in ("wgmma.mma_async", "mma.sync", "tcgen05.mma")),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
