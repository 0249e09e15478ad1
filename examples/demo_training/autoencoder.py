"""Stage `vae`: the autoencoder, trained on crops first and on whole pictures at the end."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from demo_world import drawing, scenes
from flax import nnx

from demo_training import common
from demo_training.common import WHOLE
from demo_training.configs import vae_config
from distrijax.models.vae import VAE
from distrijax.nn.conv import Conv, Downsample, PointwiseConv, Upsample

LATENT_STD = np.array([1.0, 1.0, 1.0, 0.75])  # standard deviation by channel of the latents that the U-Net sees
KL_WEIGHT = 3e-4  # relative to the mean L1 error in [-1, 1]; each latent stands for 48 pixel values
CURRICULUM = ((0.4, 64, 8), (0.75, 128, 2), (1.0, 256, 1))  # up to this fraction of the steps: side of a crop, batch


def _batches(start: int, steps: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield crops of rendered scenes, [B, side, side, 3] in [-1, 1]; most of them show an edge."""
    rng = np.random.default_rng((seed, start))
    pool = np.stack([drawing.render(scenes.sample(rng), rng) for _ in range(250)])
    for step in range(start, steps):
        if step % 4 == 0:
            pool[rng.integers(len(pool))] = drawing.render(scenes.sample(rng), rng)
        _, side, count = next(p for p in CURRICULUM if step < p[0] * steps)
        crops = []
        for _ in range(count):
            options = []
            for _ in range(3 if side == 64 else 1):
                y, x = rng.integers(0, drawing.CANVAS - side + 1, 2)
                options.append(pool[rng.integers(len(pool)), y : y + side, x : x + side])
            crops.append(max(options, key=lambda c: float(c[::4, ::4].std())) if rng.random() < 0.8 else options[0])
        yield np.stack(crops).astype(np.float32) / 127.5 - 1


def init_as_pooling(vae: VAE) -> None:
    """Initialize as average pooling over 8x8 pixels and nearest-neighbour upsampling: an autoencoder of 20 dB.

    With residual branches at zero, the rest is linear except the last norm and SiLU of each half. Colours are
    represented as pairs (x, -x), for which silu(x) - silu(-x) = x, beside a pair of constants (2, -2) that keeps the
    norm from removing the brightness. From a random start the colours alone took a thousand steps.
    """

    def copy_channels(layer: Conv | PointwiseConv, taps: tuple[tuple[int, int], ...]) -> None:
        kernel = layer.kernel[...].at[:12].set(0.0)
        for y, x in taps:
            kernel = kernel.at[:12, y, x, :12].set(jnp.eye(12) / len(taps))
        layer.kernel[...] = kernel

    for _, module in nnx.iter_modules(vae):
        if (shortcut := getattr(module, "conv_shortcut", None)) is not None:
            copy_channels(shortcut, ((0, 0),))
        if isinstance(module, Downsample):
            copy_channels(module.conv, ((0, 0), (0, 1), (1, 0), (1, 1)))
        if isinstance(module, Upsample):
            copy_channels(module.conv, ((1, 1),))
    for half in (vae.encoder, vae.decoder):
        kernel, bias = half.conv_in.kernel[...].at[:12].set(0.0), half.conv_in.bias[...]
        for colour in range(3):
            kernel = kernel.at[4 * colour, 1, 1, colour].set(1.0).at[4 * colour + 1, 1, 1, colour].set(-1.0)
            bias = bias.at[4 * colour + 2].set(2.0).at[4 * colour + 3].set(-2.0)
        half.conv_in.kernel[...], half.conv_in.bias[...] = kernel, bias
        kernel = half.conv_out.kernel[...].at[:3].set(0.0)
        for colour in range(3):
            kernel = kernel.at[colour, 1, 1, 4 * colour].set(1.5).at[colour, 1, 1, 4 * colour + 1].set(-1.5)
        half.conv_out.kernel[...] = kernel
    last = vae.encoder.conv_out
    last.kernel[...], last.bias[...] = last.kernel[...].at[4:].set(0.0), last.bias[...].at[4:].set(-5.0)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.kernel[...] = jnp.eye(len(layer.kernel[...]))[:, None, None, :]


def reconstruction_loss(error: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """Return the weighted mean of L1 and squared error."""
    return (weights * (jnp.abs(error) + 0.5 * jnp.square(error))).mean()


def train(out: Path, steps: int, resume: bool) -> None:
    """Train, write OUT/vae, and write the mean and deviation of the latents to OUT/vae/scaling.json."""
    stale = [name for name in ("latents", "degraded.npz", "decoder") if (out / name).exists()]
    if stale and max(common.checkpoints(out / "vae"), default=0) < steps:
        raise SystemExit(f"{', '.join(stale)} in {out} depend on the present autoencoder: move them away first")
    vae = VAE(vae_config(), rngs=nnx.Rngs(0))
    common.zero_residual_branches(vae)
    init_as_pooling(vae)
    graph, params = nnx.split(vae)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(common.schedule(4e-4, steps, warmup=50), b2=0.99, weight_decay=1e-4)
    )

    def loss_fn(params: nnx.State, image: jax.Array, key: jax.Array) -> tuple[jax.Array, common.Metrics]:
        vae = nnx.merge(graph, params)
        mean, logvar = vae.encode(image, WHOLE)
        latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        error = vae.decode(latents, WHOLE) - image
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
        return reconstruction_loss(error) + KL_WEIGHT * kl, {"l1": jnp.abs(error).mean(), "kl": kl}

    @partial(jax.jit, donate_argnums=0)
    def step(state: common.State, image: jax.Array) -> tuple[common.State, common.Metrics]:
        key = jax.random.fold_in(jax.random.key(1), state["count"])
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], image, key)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt, "count": state["count"] + 1}, metrics

    state = {"params": params, "opt": optimizer.init(params), "count": jnp.zeros((), jnp.int32)}
    rng = np.random.default_rng(7)
    fixed = np.stack([drawing.render(scenes.sample(rng), rng) for _ in range(8)])

    def write_samples(step: int, state: common.State) -> None:
        decoded, _ = _reconstruct(graph, state["params"], fixed)
        common.write_sheet(np.concatenate([fixed, decoded]), 8, out / f"vae-{step:06d}.png")

    folder = out / "vae"
    state = common.run(
        folder,
        state,
        step,
        partial(_batches, steps=steps),
        steps,
        resume=resume,
        every=400,
        on_checkpoint=write_samples,
    )
    statistics = evaluate(graph, state["params"])
    (folder / "scaling.json").write_text(json.dumps(statistics, indent=1))
    print(statistics)


def evaluate(graph: nnx.GraphDef[VAE], params: nnx.State) -> dict[str, float | list[float]]:
    """Return mean and deviation of the latents by channel, and the PSNR in dB, on 64 new pictures."""
    rng = np.random.default_rng(71)
    pictures = np.stack([drawing.render(scenes.sample(rng), rng) for _ in range(64)])
    decoded, latents = _reconstruct(graph, params, pictures)
    error = np.square(decoded.astype(np.float64) - pictures).mean((1, 2, 3))
    psnr = 10 * np.log10(255**2 / error)
    return {
        "latent_mean": latents.mean((0, 1, 2)).tolist(),
        "latent_std": latents.std((0, 1, 2)).tolist(),
        "psnr_mean": float(psnr.mean()),
        "psnr_worst": float(psnr.min()),
    }


def _reconstruct(graph: nnx.GraphDef[VAE], params: nnx.State, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    @jax.jit
    def both(params: nnx.State, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        vae = nnx.merge(graph, params)
        mean, _ = vae.encode(image, WHOLE)
        return vae.decode(mean, WHOLE), mean

    parts = [both(params, pictures[i : i + 4].astype(np.float32) / 127.5 - 1) for i in range(0, len(pictures), 4)]
    return common.to_uint8(np.concatenate([p[0] for p in parts])), np.concatenate([np.asarray(p[1]) for p in parts])


def load(out: Path) -> VAE:
    """Return the trained autoencoder with normalized latents, and with the decoder of OUT/decoder if that exists."""
    vae = VAE(vae_config(), rngs=nnx.Rngs(0))
    common.assign(vae, common.load_params(out / "vae"))
    statistics = json.loads((out / "vae" / "scaling.json").read_text())
    scale = LATENT_STD / np.asarray(statistics["latent_std"])
    normalize_latents(vae, np.asarray(statistics["latent_mean"]), scale)
    if common.checkpoints(out / "decoder"):
        trained = common.load_params(out / "decoder")
        for name in trained:
            common.assign(getattr(vae, name), trained[name])
    return vae


def normalize_latents(vae: VAE, mean: np.ndarray, scale: np.ndarray) -> None:
    """Put (latents - mean) * scale, by channel, into `quant_conv`, and the inverse into `post_quant_conv`.

    Three channels learned colours, with deviations near 2; the fourth draws the edges, with 0.45: noise of the same
    size for all would drown it.
    """
    count = len(mean)
    first, last = vae.quant_conv, vae.post_quant_conv
    both = np.concatenate([scale, np.ones(count)])
    shift = np.concatenate([mean * scale, -2 * np.log(scale)])
    first.kernel[...] = first.kernel[...] * jnp.asarray(both, jnp.float32)[:, None, None, None]
    first.bias[...] = first.bias[...] * jnp.asarray(both, jnp.float32) - jnp.asarray(shift, jnp.float32)
    kernel = last.kernel[...]
    last.bias[...] = last.bias[...] + kernel[:, 0, 0, :] @ jnp.asarray(mean, jnp.float32)
    last.kernel[...] = kernel / jnp.asarray(scale, jnp.float32)[None, None, None, :]
