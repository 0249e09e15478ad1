"""Stage `decoder`: train the decoder alone on latents with the U-Net's errors, so that it repairs them.

A U-Net this small gets the place, colour and shape of an item right and leaves its outline ragged. The decoder can
restore the outline if it is trained on such latents: true ones are partly noised and denoised by the U-Net, and the
decoder learns to draw the true picture from them. The encoder stays as it is, and with it what the U-Net has learned.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from demo_world import captions, drawing
from flax import nnx
from tqdm import tqdm

from demo_training import autoencoder, common, denoiser, optimizer, text
from demo_training.common import WHOLE
from demo_training.latents import SHARD, contrast_weights, loss_weights, sampling_weight, shard_file, training_scene

NOISED = (200, 520)  # range of timesteps to which latents are noised: above it items move, and no outline is left
DENOISED = (1.0, 0.6, 0.25)  # fractions of such a timestep at which the three DDIM steps back to clean latents begin
GUIDANCE = 5.0
NOISE = (0.0, 0.3)  # deviation of the noise on true latents, which are the other half
CURRICULUM = ((0.6, 16, 8), (1.0, 32, 2))  # up to this fraction of the training: side of a crop in latents, batch


def choose(count: int) -> np.ndarray:
    """Return the numbers of `count` training pictures, more of those with small, thin or faint items: the hardest."""
    scenes = [training_scene(n)[0] for n in range(4 * count)]
    small = [1 + sum(item.size == "small" for item in s.items) for s in scenes]
    weights = np.array([sampling_weight(s) * max(contrast_weights(s)) * k for s, k in zip(scenes, small, strict=True)])
    return np.random.default_rng(17).choice(len(scenes), count, replace=False, p=weights / weights.sum())


def degrade(out: Path, count: int, batch: int = 16) -> None:
    """Write OUT/degraded.npz: the chosen latents, noised and denoised by the U-Net, and the numbers of their pictures.

    Raises:
        SystemExit: The file exists, with other pictures.
    """
    path, chosen = out / "degraded.npz", choose(count)
    if path.exists():
        present, _ = load_degraded(out)
        if not np.array_equal(present, chosen):
            raise SystemExit(f"{path} has {len(present)} pictures, not the {count} that are chosen: move it away")
        return
    *tokenizers, encoders = text.load(out)
    unet = denoiser.build()
    common.assign(unet, common.load_params(out / "unet"))
    graph, params = nnx.split(unet)
    power = denoiser.alphas_cumprod().astype(np.float32)

    @jax.jit
    def denoise(params: nnx.State, noisy: jax.Array, ids: jax.Array, ids_2: jax.Array, times: jax.Array) -> jax.Array:
        context, pooled = denoiser.embed(encoders, ids, ids_2)
        return denoiser.ddim(nnx.merge(graph, params), noisy, context, pooled, times, GUIDANCE)

    rng, parts = np.random.default_rng(11), []
    for start in tqdm(range(0, count, batch), desc="degraded"):
        numbers = chosen[start : start + batch]
        latents = np.stack([_shard(out, n // SHARD)[n % SHARD] for n in numbers]).astype(np.float32)
        texts = [captions.caption(training_scene(n)[0], rng) for n in numbers]
        times = np.round(rng.uniform(*NOISED) * np.array(DENOISED)).astype(np.int32)
        signal, noise = power[times[0]], rng.standard_normal(latents.shape, np.float32)
        noisy = np.sqrt(signal) * latents + np.sqrt(1 - signal) * noise
        ids, ids_2 = (tokenizer(texts) for tokenizer in tokenizers)
        parts.append(np.asarray(denoise(params, noisy, ids, ids_2, times), np.float16))
    with common.complete_file(path) as file:
        np.savez(file, numbers=chosen, latents=np.concatenate(parts))


def load_degraded(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the pictures, and their degraded latents: float16 [count, 32, 32, 4]."""
    with np.load(out / "degraded.npz") as file:
        return file["numbers"], file["latents"]


def _shard(out: Path, number: int) -> np.ndarray:
    path = shard_file(out, number)
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the stage `latents` first")
    return np.load(path, mmap_mode="r")


def train(out: Path, steps: int, resume: bool, minutes: float | None = None, count: int = 1000) -> None:
    """Train, write OUT/decoder, and print the PSNR of the autoencoder with it.

    Args:
        minutes: Time limit; the learning rate then decays by the clock if that is sooner.
        count: Number of pictures, which are used both degraded and as they are.
    """
    degrade(out, count)
    vae = autoencoder.load(out)
    graph, params, *rest = nnx.split(vae, lambda path, _: path[0] in ("decoder", "post_quant_conv"), ...)
    transform = optimizer.make_optimizer("muon")

    def loss_fn(params: nnx.State, data: dict[str, jax.Array]) -> jax.Array:
        error = nnx.merge(graph, params, *rest).decode(data["latents"], WHOLE) - data["image"]
        weights = jnp.repeat(jnp.repeat(data["weights"], 8, 1), 8, 2)
        if data["latents"].shape[1] < 32:  # pixels near the edge depend on latents beyond the crop
            error, weights = (x[:, 8:-8, 8:-8] for x in (error, weights))
        return autoencoder.reconstruction_loss(error, weights)

    @partial(jax.jit, donate_argnums=0)
    def update(state: common.State, data: dict[str, jax.Array]) -> tuple[common.State, common.Metrics]:
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], data)
        return optimizer.apply_gradients(transform, state, grads, data["rate"], optimizer.AVERAGE), {"loss": loss}

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng((13, start))
        numbers, degraded = load_degraded(out)
        shards = [_shard(out, number) for number in range(int(numbers.max()) // SHARD + 1)]
        pictures: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for number, fraction in optimizer.progress(start, steps, minutes):
            _, side, batch = next(p for p in CURRICULUM if fraction < p[0])
            latents, images, weights = [], [], []
            for _ in range(batch):
                index = rng.integers(count)
                n = int(numbers[index])
                if n not in pictures:
                    scene, scene_rng = training_scene(n)
                    placements = drawing.arrange(scene, scene_rng)
                    pictures[n] = drawing.render(scene, scene_rng, placements), loss_weights(scene, placements)
                picture, weight = pictures[n]
                y, x = _crop(picture, side, rng)
                true = rng.random() < 0.5
                z = (shards[n // SHARD][n % SHARD] if true else degraded[index])[y : y + side, x : x + side]
                z = z.astype(np.float32)
                latents.append(z + rng.uniform(*NOISE) * rng.standard_normal(z.shape, np.float32) if true else z)
                images.append(picture[8 * y : 8 * (y + side), 8 * x : 8 * (x + side)])
                weights.append(weight[y : y + side, x : x + side])
            yield {
                "latents": np.stack(latents).astype(np.float32),
                "image": np.stack(images).astype(np.float32) / 127.5 - 1,
                "weights": np.stack(weights),
                "rate": np.asarray(optimizer.rate_factor(fraction, number, decay_from=0.3), np.float32),
            }

    decode = jax.jit(lambda params, latents: nnx.merge(graph, params, *rest).decode(latents, WHOLE))

    def write_samples(number: int, state: common.State) -> None:
        latents = load_degraded(out)[1][:16].astype(np.float32)
        pictures = np.concatenate([common.to_uint8(decode(state["ema"], latents[i : i + 4])) for i in range(0, 16, 4)])
        common.write_sheet(pictures, 8, out / f"decoder-{number:06d}.png")

    state = {"params": params, "ema": jax.tree.map(jnp.copy, params), "opt": transform.init(params)}
    common.run(out / "decoder", state, update, batches, steps, resume=resume, every=400, on_checkpoint=write_samples)
    statistics = autoencoder.evaluate(*nnx.split(autoencoder.load(out)))
    print({name: statistics[name] for name in ("psnr_mean", "psnr_worst")})


def _crop(picture: np.ndarray, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return row and column, in latents, of a crop that probably shows an edge."""
    corners = rng.integers(0, 32 - side + 1, (3, 2))
    contrast = [picture[8 * y : 8 * (y + side) : 4, 8 * x : 8 * (x + side) : 4].std() for y, x in corners]
    y, x = corners[int(np.argmax(contrast)) if rng.random() < 0.8 else 0]
    return int(y), int(x)
