"""Stage `latents`: render the training pictures and encode them once, in shards that the U-Net may already read.

A picture is known by its number: the same generator gives the scene, the picture and later the captions.
"""

from __future__ import annotations

from functools import cache
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
ITEMS = 0.5  # of a picture's loss, what its items share, each as much if none is faint; the rest is all latents' alike
# Distance in RGB from an item to what it lies on, below which it counts more, in proportion. White on light gray (87
# apart): the same flaw costs a third of one of red, and of 16 refused pictures 3 had a small white star there.
CONTRAST = 200.0


def scene_of(number: int) -> tuple[scenes.Scene, np.random.Generator]:
    """The training scene of that number, never a held-out one, and the generator that places its items."""
    rng = np.random.default_rng((2026, number))
    while (scene := scenes.sample(rng)).held_out:
        pass
    return scene, rng


def weight(scene: scenes.Scene) -> float:
    """How often training sees the scene, to a plain one's 1."""
    return OFTENER.get(scene.arrangement, 1.0) * (1 + THIN_WEIGHT * sum(i.shape in THIN for i in scene.items))


@cache
def faintness(colour: str, ground: str | scenes.Background) -> float:
    """1 for an item that stands out from an item or a background, 2.6 for orange on yellow, 4.6 at the most."""
    under = scenes.COLOURS[ground] if isinstance(ground, str) else scenes.paint_background(ground)[::32, ::32]
    distance = np.linalg.norm(np.asarray(under, np.float32) - scenes.COLOURS[colour], axis=-1).min()
    return max(1.0, CONTRAST / float(distance))


def faint(scene: scenes.Scene) -> list[float]:
    """`faintness` of each item of the scene."""
    grounds: list[str | scenes.Background] = [scene.background] * len(scene.items)
    if scene.arrangement == "inside":
        grounds[0] = scene.items[1].colour
    return [faintness(item.colour, ground) for item, ground in zip(scene.items, grounds, strict=True)]


def item_weights(scene: scenes.Scene, placed: list[scenes.Placement], side: int = 32) -> np.ndarray:
    """How much each latent counts in the loss, float32 [side, side, 1] of mean 1: those around items more.

    Evenly weighted, a small ring is a thirtieth of the loss of its picture, and the last thing that is learnt.
    """
    weights = np.full((side, side, 1), 1 - ITEMS, np.float32)
    for spot, factor in zip(placed, faint(scene), strict=True):
        scale = side / scenes.SIZE
        box = [((c - spot.radius) * scale - 1, (c + spot.radius) * scale + 1) for c in (spot.y, spot.x)]
        rows, columns = (slice(max(0, int(low)), min(side, int(np.ceil(high)))) for low, high in box)
        weights[rows, columns] += factor * ITEMS / len(placed) * side**2 / weights[rows, columns].size
    return weights / weights.mean()


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
        self.placed: list[list[scenes.Placement]] = []
        self.refresh()
        if not self.shards:
            raise SystemExit(f"no latents in {out / 'latents'}: run the stage `latents` first")

    def refresh(self) -> None:
        before = len(self.shards)
        while (path := shard_file(self.out, len(self.shards))).exists():
            first = len(self.shards) * SHARD
            known = [scene_of(n) for n in range(first, first + SHARD)]
            self.scenes += [scene for scene, _ in known]
            self.placed += [scenes.arrange(scene, rng) for scene, rng in known]  # as `scenes.render` did
            self.shards.append(np.load(path))
        if len(self.shards) > before:
            often = np.array([weight(scene) for scene in self.scenes])
            self.chances = often / often.sum()

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Latents, float32 [count, 32, 32, 4], their weights, [count, 32, 32, 1], and a fresh caption of each."""
        numbers = rng.choice(len(self.scenes), count, p=self.chances)
        latents = np.stack([self.shards[n // SHARD][n % SHARD] for n in numbers]).astype(np.float32)
        weights = np.stack([item_weights(self.scenes[n], self.placed[n]) for n in numbers])
        return latents, weights, [scenes.caption(self.scenes[n], rng) for n in numbers]
