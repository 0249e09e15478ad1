"""Stage `latents`: render the training pictures and encode them once, in shards that the U-Net can read meanwhile.

A picture is identified by its number, which seeds the generator of its scene and its picture.
"""

from functools import cache
from pathlib import Path

import jax
import numpy as np
from demo_world import captions, drawing
from demo_world.drawing import Placement
from demo_world.scenes import COLOURS, Background, Scene, sample
from flax import nnx
from tqdm import tqdm

from demo_training import autoencoder, common

SHARD = 500  # pictures in a file
ARRANGEMENT_WEIGHTS = {"inside": 2.5, "row": 1.5, "column": 1.5, "three": 1.5}  # those learned last; the others have 1
THIN = {"ring", "star", "cross"}  # the shapes learned last
THIN_WEIGHT = 0.3  # added to a scene's sampling weight for each thin shape
ITEM_SHARE = 0.5  # fraction of the loss that a picture's items share; the rest is spread evenly over all latents
# Items that are nearer than this to their background, in RGB, weigh more, in proportion. White on light gray (87 apart)
# needs it: a flaw costs a third of the same flaw in red, and of 16 rejected pictures 3 had a small white star there.
CONTRAST = 200.0


def training_scene(number: int) -> tuple[Scene, np.random.Generator]:
    """Return the training scene of that number, never a held-out one, and the generator that places its items."""
    rng = np.random.default_rng((2026, number))
    while (scene := sample(rng)).held_out:
        pass
    return scene, rng


def sampling_weight(scene: Scene) -> float:
    """Return how often training sees the scene, relative to a plain one."""
    return ARRANGEMENT_WEIGHTS.get(scene.arrangement, 1.0) * (
        1 + THIN_WEIGHT * sum(i.shape in THIN for i in scene.items)
    )


def contrast_weights(scene: Scene) -> list[float]:
    """Return the weight of each item of the scene that makes up for a low contrast: 1 or more."""
    grounds: list[str | Background] = [scene.background] * len(scene.items)
    if scene.arrangement == "inside":
        grounds[0] = scene.items[1].colour
    return [_contrast_weight(item.colour, ground) for item, ground in zip(scene.items, grounds, strict=True)]


@cache
def _contrast_weight(colour: str, ground: str | Background) -> float:
    """Return 1 for a colour that stands out from `ground`, 2.6 for orange on yellow, and at most 4.6."""
    under = COLOURS[ground] if isinstance(ground, str) else drawing.paint_background(ground)[::32, ::32]
    distance = np.linalg.norm(np.asarray(under, np.float32) - COLOURS[colour], axis=-1).min()
    return max(1.0, CONTRAST / float(distance))


def loss_weights(scene: Scene, placements: list[Placement], side: int = 32) -> np.ndarray:
    """Return the weight of each latent in the loss, float32 [side, side, 1] with mean 1: larger around items.

    With even weights a small ring is a thirtieth of its picture's loss, and the last thing that is learned.
    """
    weights = np.full((side, side, 1), 1 - ITEM_SHARE, np.float32)
    for spot, factor in zip(placements, contrast_weights(scene), strict=True):
        scale = side / drawing.CANVAS
        box = [((c - spot.radius) * scale - 1, (c + spot.radius) * scale + 1) for c in (spot.y, spot.x)]
        window = tuple(slice(max(0, int(low)), min(side, int(np.ceil(high)))) for low, high in box)
        weights[window] += factor * ITEM_SHARE / len(placements) * side**2 / weights[window].size
    return weights / weights.mean()


def shard_file(out: Path, number: int) -> Path:
    return out / "latents" / f"{number:04d}.npy"


def build(out: Path, count: int) -> None:
    """Write OUT/latents/NNNN.npy, float16 [500, 32, 32, 4] each; existing files are kept."""
    (out / "latents").mkdir(parents=True, exist_ok=True)
    graph, params = nnx.split(autoencoder.load(out))
    encode = jax.jit(lambda params, image: nnx.merge(graph, params).encode(image, common.WHOLE)[0])
    for shard in tqdm(range(count // SHARD), desc="latents"):
        path = shard_file(out, shard)
        if path.exists():
            continue
        parts = []
        for start in range(shard * SHARD, (shard + 1) * SHARD, 4):
            pictures = np.stack([drawing.render(*training_scene(n)) for n in range(start, start + 4)])
            parts.append(np.asarray(encode(params, pictures.astype(np.float32) / 127.5 - 1), np.float16))
        with common.complete_file(path) as file:
            np.save(file, np.concatenate(parts))


class Pool:
    """The latents that have been encoded so far; `refresh` adds the shards that have appeared since.

    Attributes:
        scenes: The scene of each picture.
        placements: The positions of its items.
        shards: Latents, float16 [500, 32, 32, 4] each.
    """

    def __init__(self, out: Path):
        self.out = out
        self.shards: list[np.ndarray] = []
        self.scenes: list[Scene] = []
        self.placements: list[list[Placement]] = []
        self.refresh()
        if not self.shards:
            raise SystemExit(f"no latents in {out / 'latents'}: run the stage `latents` first")

    def refresh(self) -> None:
        before = len(self.shards)
        while (path := shard_file(self.out, len(self.shards))).exists():
            first = len(self.shards) * SHARD
            pairs = [training_scene(n) for n in range(first, first + SHARD)]
            self.scenes += [scene for scene, _ in pairs]
            self.placements += [drawing.arrange(scene, rng) for scene, rng in pairs]  # the same as in `build`
            self.shards.append(np.load(path))
        if len(self.shards) > before:
            weights = np.array([sampling_weight(scene) for scene in self.scenes])
            self.probabilities = weights / weights.sum()

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return latents, float32 [count, 32, 32, 4], their loss weights, [count, 32, 32, 1], and new captions."""
        numbers = rng.choice(len(self.scenes), count, p=self.probabilities)
        latents = np.stack([self.shards[n // SHARD][n % SHARD] for n in numbers]).astype(np.float32)
        weights = np.stack([loss_weights(self.scenes[n], self.placements[n]) for n in numbers])
        return latents, weights, [captions.caption(self.scenes[n], rng) for n in numbers]
