"""The pool of training scenes, kept as one file beside the checkpoints."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from g4seg_export.tiny.scenes import CLASS_NAMES, KINDS, SIZE, make_scene

POOL = 16384


@dataclass(frozen=True)
class Batch:
    """images float [B,3,64,64] in [0,1]; labels int64 [B,64,64], 0 for ground, 1.. the classes; present float [B,8]."""

    images: torch.Tensor
    labels: torch.Tensor
    present: torch.Tensor


class Scenes:
    """The training pool: images uint8 [N,3,64,64], labels uint8 [N,64,64]; made once, kept in ``work``."""

    def __init__(self, work: Path, seed: int) -> None:
        path = work / f"scenes-{seed}.npz"
        if not path.is_file():
            images = np.empty((POOL, 3, SIZE, SIZE), np.uint8)
            labels = np.zeros((POOL, SIZE, SIZE), np.uint8)
            for index in tqdm(range(POOL), desc="scenes"):
                scene = make_scene(np.random.default_rng([seed, index, 1]), KINDS[index % len(KINDS)])
                images[index] = scene.image.transpose(2, 0, 1)
                for name, mask in scene.masks.items():
                    labels[index][mask] = CLASS_NAMES.index(name) + 1
            partial = path.with_suffix(".part.npz")
            np.savez(partial, images=images, labels=labels)
            partial.replace(path)
        data = np.load(path)
        self.images = torch.from_numpy(data["images"])
        self.labels = torch.from_numpy(data["labels"])
        numbers = range(1, len(CLASS_NAMES) + 1)
        self.present = torch.stack([(self.labels == number).any(2).any(1) for number in numbers], dim=1).float()

    def with_images(self, images: torch.Tensor) -> Scenes:
        """The first scenes with other pictures of them, uint8 [n,3,64,64]."""
        pool = copy.copy(self)
        pool.images = images
        return pool

    def batch(self, generator: torch.Generator, count: int) -> Batch:
        """Random scenes, all turned and mirrored in one random way."""
        index = torch.randint(len(self.images), (count,), generator=generator)
        turn, mirror = (int(torch.randint(n, (1,), generator=generator)) for n in (4, 2))
        turned = [torch.rot90(part[index], turn, (-2, -1)) for part in (self.images, self.labels)]
        images, labels = (part.flip(-1) if mirror else part for part in turned)
        return Batch(images.float() / 255, labels.long(), self.present[index])
