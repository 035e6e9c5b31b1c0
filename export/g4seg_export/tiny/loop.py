"""The training loop that all stages share: seeded by step, so that a resumed run equals an undisturbed one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Stage:
    steps: int
    batch: int
    learning_rate: float


def run_stage(
    name: str,
    stage: Stage,
    modules: nn.ModuleDict,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    work: Path,
    seed: int,
    average: nn.Module | None = None,
) -> None:
    """The training loop: AdamW, warm-up, constant rate, linear decay over the last fifth. Saves ``work/name.pt``."""
    optimizer = torch.optim.AdamW(modules.parameters(), stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    path = work / f"{name}.pt"
    start = 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        if average is not None:
            average.load_state_dict(state["average"])

    def save(step: int) -> None:
        state = {"step": step, "modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
        if average is not None:
            state["average"] = average.state_dict()
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    saved = time.monotonic()
    smooth = math.nan
    with tqdm(total=stage.steps, initial=start, desc=name, mininterval=5) as bar:
        for step in range(start, stage.steps):
            # Each step has a generator of its own, so that a resumed run sees the batches of an undisturbed one.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 7 + len(name))
            rate = min(1.0, (step + 1) / 200, (stage.steps - step) / (0.2 * stage.steps))
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate
            loss = loss_of(generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
            if average is not None:
                _follow(average, next(iter(modules.values())), min(0.999, step / (step + 50)))
            value = float(loss.detach())
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                save(step + 1)
                saved = time.monotonic()
    if start < stage.steps:
        save(stage.steps)


@torch.no_grad()
def _follow(average: nn.Module, current: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
