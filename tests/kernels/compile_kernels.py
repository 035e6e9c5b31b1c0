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
WHOLE_16S = ("stride_n", "stride_m", "stride", "per_split")  # as the launchers make them


def compiled(kernel: Any, capability: int, element: str, warps: int, stages: int, **constants: Any) -> Any:
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


def kernels(capability: int) -> Iterator[tuple[str, Any]]:
    for element, size, precision in (("*fp16", 2, "ieee"), ("*fp32", 4, "tf32x3")):
        blocks = grid_kernel.TABLE.get(capability, grid_kernel.TABLE[80])[size]
        tile: dict[str, Any] = {"BLOCK_N": blocks.queries, "BLOCK_M": blocks.candidates, "BLOCK_D": blocks.depth}
        tile["PRECISION"] = precision
        setting = (capability, element, blocks.warps, blocks.stages)
        for window in (False, True):
            yield (
                f"grid {element} window {window}",
                compiled(
                    grid_kernel._search_kernel, *setting, FILTERED=True, WINDOW=window, SPLIT=False,
                    partial_best=None, partial_index=None, **tile,
                ),
            )  # fmt: skip
        yield f"products {element}", compiled(cells_kernel._products_kernel, *setting, **tile)
        other = (capability, element, 4, 3)
        yield f"norms {element}", compiled(grid_kernel._inverse_norms_kernel, *other, BLOCK_N=32, BLOCK_D=64)
        yield f"neighbours {element}", compiled(cells_kernel._neighbours_kernel, *other, BLOCK_N=16, BLOCK_D=64)
    yield "combine", compiled(grid_kernel._combine_kernel, *other, FILTERED=True, BLOCK_N=128)
    yield "cells", compiled(cells_kernel._cells_kernel, *other, BLOCK=256)
    for window in (False, True):
        yield (
            f"pixel window {window}",
            compiled(
                pixel_kernel._search_kernel, capability, "*fp32", pixel_kernel.WARPS, 3, FILTERED=True, WINDOW=window,
                TILE=pixel_kernel.tile_for(0 if window else None), CELLS=pixel_kernel.CELLS, PIXELS=pixel_kernel.PIXELS,
            ),
        )  # fmt: skip


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
