"""Stage `latents`: render the training pictures and encode them once, in shards that the U-Net may already read.

A picture is known by its number: the same generator gives the scene, the picture and later the captions.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from demo_training import autoencoder, common
from distrijax.demo import scenes

SHARD = 500  # pictures
OFTENER = {"inside": 2.5, "row": 1.5, "column": 1.5, "three": 1.5}  # arrangements learnt last; the others are 1
THIN = {"ring", "star", "cross"}  # shapes learnt last: each in a scene adds this much to how often it is drawn
THIN_WEIGHT = 0.3


def scene_of(number: int) -> tuple[scenes.Scene, np.random.Generator]:
    """The training scene of that number, never a held-out one, and the generator that places its items."""
    rng = np.random.default_rng((2026, number))
    while (scene := scenes.sample(rng)).held_out:
        pass
    return scene, rng


def weight(scene: scenes.Scene) -> float:
    """How often training sees the scene, to a plain one's 1."""
    return OFTENER.get(scene.arrangement, 1.0) * (1 + THIN_WEIGHT * sum(i.shape in THIN for i in scene.items))


def shard_file(out: Path, number: int) -> Path:
    return out / "latents" / f"{number:04d}.npy"


def build(out: Path, count: int) -> None:
    """Write OUT/latents/NNNN.npy, float16 [500, 32, 32, 4] each; present ones are kept."""
    (out / "latents").mkdir(parents=True, exist_ok=True)
    graph, params = nnx.split(autoencoder.load(out))
    encode = jax.jit(lambda params, image: nnx.merge(graph, params).encode(image, autoencoder.PX)[0])
    for shard in tqdm(range(count // SHARD), desc="latents"):
        path = shard_file(out, shard)
        if path.exists():
            continue
        parts = []
        for start in range(shard * SHARD, (shard + 1) * SHARD, 4):
            pictures = np.stack([scenes.render(*scene_of(n)) for n in range(start, start + 4)])
            parts.append(np.asarray(encode(params, pictures.astype(np.float32) / 127.5 - 1), np.float16))
        common.save_array(path, np.concatenate(parts))


class Pool:
    """The latents encoded so far; `refresh` takes up shards that have appeared since."""

    def __init__(self, out: Path):
        self.out, self.shards = out, list[np.ndarray]()
        self.scenes: list[scenes.Scene] = []
        self.refresh()
        if not self.shards:
            raise SystemExit(f"no latents in {out / 'latents'}: run the stage `latents` first")

    def refresh(self) -> None:
        while (path := shard_file(self.out, len(self.shards))).exists():
            first = len(self.shards) * SHARD
            self.scenes += [scene_of(n)[0] for n in range(first, first + SHARD)]
            self.shards.append(np.load(path))
        weights = np.array([weight(scene) for scene in self.scenes])
        self.chances = weights / weights.sum()

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
        """Latents, float32 [count, 32, 32, 4], and a fresh caption of each."""
        numbers = rng.choice(len(self.scenes), count, p=self.chances)
        latents = np.stack([self.shards[n // SHARD][n % SHARD] for n in numbers]).astype(np.float32)
        return latents, [scenes.caption(self.scenes[n], rng) for n in numbers]
