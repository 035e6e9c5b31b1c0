"""What all tests share; and Triton's interpreter where there is no GPU, chosen before anything imports Triton."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from g4seg_engine.manifest import Manifest

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """make_manifest(folder, name, dims, networks, **changes) -> the manifest of a made-up engine, written into it.

    The folder holds the networks' files and tokenizer.json.
    """

    def make(folder: Path, name: str, dims: Any, networks: Any, **changes: Any) -> Manifest:
        from g4seg_engine import manifest as engine
        from g4seg_engine.build import record_file

        token_file = record_file(folder / "tokenizer.json")
        made = engine.Manifest(
            model=engine.ModelRecord(name, "", "none", {}),
            prediction_type="epsilon",
            vae_scaling_factor=0.18215,
            dims=dims,
            injection=engine.InjectionRecord("eq5", "folded"),
            image_encoder=engine.ImageEncoderRecord(name, "last"),
            tokenizer=engine.TokenizerRecord(token_file.file, token_file.sha256, token_file.bytes, 1, 2, 0),
            networks=networks,
            build_command=f"g4seg-build-engines --model {name} --output {name}",
        )
        made = replace(made, **changes)
        engine.write_manifest(folder, made)
        return made

    return make
