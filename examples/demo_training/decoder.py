"""Stage `decoder`: the decoder once more, alone, on latents with the U-Net's own errors, so that it mends them.

A U-Net this small gets an item's place, colour and kind right and leaves its outline ragged. The outline is what the
decoder can restore, if it has seen such latents: true ones are noised half way and denoised again by the U-Net, and the
decoder learns to draw the true picture from them. The encoder, and so what the U-Net has learnt, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from demo_training import autoencoder, common, denoiser, optimizer, text
from demo_training.latents import SHARD, faint, item_weights, scene_of, shard_file, weight
from distrijax.demo import scenes

PX = autoencoder.PX
NOISED = (200, 520)  # timesteps from which pictures are made again: above, items move and nothing is left to restore
REMADE = (1.0, 0.6, 0.25)  # of such a timestep: where the three DDIM steps back to the clean latents begin
GUIDANCE = 5.0
NOISE = (0.0, 0.3)  # deviation of the noise on true latents, which make up the other half
PHASES = ((0.6, 16, 8), (1.0, 32, 2))  # up to this part of the training: side of the crops in latents, batch


def chosen(count: int) -> np.ndarray:
    """Numbers of `count` training pictures, more of those with small, thin or faint items, which come out worst."""
    known = [scene_of(n)[0] for n in range(4 * count)]
    often = np.array([weight(s) * max(faint(s)) * (1 + sum(item.size == "small" for item in s.items)) for s in known])
    return np.random.default_rng(17).choice(len(known), count, replace=False, p=often / often.sum())


def remake(out: Path, count: int, group: int = 16) -> None:
    """Write OUT/remade.npz: the chosen latents, noised half way and denoised again, and the pictures' numbers."""
    path, every = out / "remade.npz", chosen(count)
    if path.exists():
        there, _ = remade(out)
        if len(there) != count or (there != every).any():
            raise SystemExit(f"{path} has {len(there)} pictures, and not the {count} that are chosen: move it away")
        return
    *tokenizers, encoders = text.load(out)
    unet = denoiser.build()
    common.fill(unet, common.load_params(out / "unet"))
    graph, params = nnx.split(unet)
    power = denoiser.alphas_cumprod().astype(np.float32)

    @jax.jit
    def again(params: Any, noisy: jax.Array, ids: jax.Array, ids_2: jax.Array, times: jax.Array) -> jax.Array:
        context, pooled = denoiser.embed(encoders, ids, ids_2)
        return denoiser.ddim(nnx.merge(graph, params), noisy, context, pooled, times, GUIDANCE)

    rng, parts = np.random.default_rng(11), []
    for start in tqdm(range(0, count, group), desc="remade"):
        numbers = every[start : start + group]
        latents = np.stack([_shard(out, n // SHARD)[n % SHARD] for n in numbers]).astype(np.float32)
        captions = [scenes.caption(scene_of(n)[0], rng) for n in numbers]
        times = np.round(rng.uniform(*NOISED) * np.array(REMADE)).astype(np.int32)
        signal, noise = power[times[0]], rng.standard_normal(latents.shape, np.float32)
        noisy = np.sqrt(signal) * latents + np.sqrt(1 - signal) * noise
        ids, ids_2 = (tokenizer(captions) for tokenizer in tokenizers)
        parts.append(np.asarray(again(params, noisy, ids, ids_2, times), np.float16))
    common.save_arrays(path, numbers=every, latents=np.concatenate(parts))


def remade(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pictures that were made again, and their latents: float16 [count, 32, 32, 4]."""
    with np.load(out / "remade.npz") as file:
        return file["numbers"], file["latents"]


def _shard(out: Path, number: int) -> np.ndarray:
    path = shard_file(out, number)
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the stage `latents` first")
    return np.load(path, mmap_mode="r")


def train(out: Path, steps: int, resume: bool, minutes: float | None = None, count: int = 1000) -> None:
    """Train and write OUT/decoder; print the autoencoder's PSNR with it.

    minutes: be done by then even if `steps` are not reached: the learning rate falls by the clock if that is sooner.
    count: how many pictures are used, remade and as they are.
    """
    remake(out, count)
    vae = autoencoder.load(out)
    graph, params, *rest = nnx.split(vae, lambda path, _: path[0] in ("decoder", "post_quant_conv"), ...)
    transform = optimizer.make_optimizer("muon")

    def loss_fn(params: Any, data: dict[str, jax.Array]) -> jax.Array:
        error = nnx.merge(graph, params, *rest).decode(data["latents"], PX) - data["image"]
        weights = jnp.repeat(jnp.repeat(data["weights"], 8, 1), 8, 2)
        if data["latents"].shape[1] < 32:  # what lies beyond a crop is unknown
            error, weights = (x[:, 8:-8, 8:-8] for x in (error, weights))
        return autoencoder.reconstruction_loss(error, weights)

    @partial(jax.jit, donate_argnums=0)
    def update(state: common.State, data: dict[str, jax.Array]) -> tuple[common.State, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], data)
        return optimizer.descend(transform, state, grads, data["rate"], optimizer.AVERAGE), {"loss": loss}

    def batches(start: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng((13, start))
        numbers, again = remade(out)
        shards = [_shard(out, number) for number in range(int(numbers.max()) // SHARD + 1)]
        known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for number, part in optimizer.parts(start, steps, minutes):
            _, side, batch = next(p for p in PHASES if part < p[0])
            latents, images, weights = [], [], []
            for _ in range(batch):
                index = rng.integers(count)
                n = int(numbers[index])
                if n not in known:
                    scene, chance = scene_of(n)
                    placed = scenes.arrange(scene, chance)
                    known[n] = scenes.render(scene, chance, placed), item_weights(scene, placed)
                picture, counts = known[n]
                y, x = _window(picture, side, rng)
                true = rng.random() < 0.5
                z = (shards[n // SHARD][n % SHARD] if true else again[index])[y : y + side, x : x + side]
                z = z.astype(np.float32)
                latents.append(z + rng.uniform(*NOISE) * rng.standard_normal(z.shape, np.float32) if true else z)
                images.append(picture[8 * y : 8 * (y + side), 8 * x : 8 * (x + side)])
                weights.append(counts[y : y + side, x : x + side])
            yield {
                "latents": np.stack(latents).astype(np.float32),
                "image": np.stack(images).astype(np.float32) / 127.5 - 1,
                "weights": np.stack(weights),
                "rate": np.float32(optimizer.rate(part, number, decay_from=0.3)),
            }

    decode = jax.jit(lambda params, latents: nnx.merge(graph, params, *rest).decode(latents, PX))

    def look(number: int, state: common.State) -> None:
        latents = remade(out)[1][:16].astype(np.float32)
        pictures = np.concatenate([common.to_uint8(decode(state["ema"], latents[i : i + 4])) for i in range(0, 16, 4)])
        common.sheet(pictures, 8, out / f"decoder-{number:06d}.png")

    state = {"params": params, "ema": jax.tree.map(jnp.copy, params), "opt": transform.init(params)}
    common.run(out / "decoder", state, update, batches, steps, resume=resume, every=400, at_checkpoint=look)
    facts = autoencoder.measure(*nnx.split(autoencoder.load(out)))
    print({name: facts[name] for name in ("psnr_mean", "psnr_worst")})


def _window(picture: np.ndarray, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column, in latents, of a crop that likely shows an edge."""
    corners = rng.integers(0, 32 - side + 1, (3, 2))
    seen = [picture[8 * y : 8 * (y + side) : 4, 8 * x : 8 * (x + side) : 4].std() for y, x in corners]
    y, x = corners[int(np.argmax(seen)) if rng.random() < 0.8 else 0]
    return int(y), int(x)
