"""Stage `unet`: the U-Net, by v-prediction over a schedule that ends without any signal; text encoders are frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from demo_training import autoencoder, common, grow, optimizer, text
from demo_training.configs import SCHEDULER_JSON, unet_config
from demo_training.latents import Pool
from distrijax.demo import check, scenes
from distrijax.models.unet import UNet
from distrijax.parallel.exchange import Whole

PX = Whole()
# Captions replaced by nothing (zero embeddings, which is what the pipeline puts for no negative prompt): at much noise,
# and at little. There a caption says nothing that the latents do not, but guidance of 5 takes what the two branches err
# apart times 4: with 0.1 for all, outlines made again from timestep 300 were off by 0.18, and by 0.08 without guidance.
DROPOUT = (0.1, 0.5)
DROPOUT_TIMES = (600, 250)  # timesteps of much and little noise; linear between
# How much an error of each latent channel counts: from timestep 499 the fourth, which draws the edges, had 0.62 of the
# squared error and 0.27 of its harm to the pixels; with the other three put right, 63 of 64 pictures obeyed, not 53.
CHANNELS = np.array([1.23, 1.23, 1.23, 0.31], np.float32)
SIZES = np.array([256, 256, 0, 0, 256, 256], np.float32)  # original size, crop, target size


def alphas_cumprod() -> np.ndarray:
    """Signal power at each of the 1000 timesteps, float64; zero at the last (arXiv 2305.08891, algorithm 1)."""
    start, end = SCHEDULER_JSON["beta_start"], SCHEDULER_JSON["beta_end"]
    root = np.sqrt(np.cumprod(1 - np.linspace(start**0.5, end**0.5, 1000) ** 2))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def build() -> UNet:
    unet = UNet(unet_config(), rngs=nnx.Rngs(3))
    common.quiet_residuals(unet)
    unet.conv_out.kernel[...] = jnp.zeros_like(unet.conv_out.kernel[...])
    return unet


def embed(encoders: Any, ids: jax.Array, ids_2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Context [B, 77, D1 + D2] and pooled vector [B, P], as the pipeline makes them."""
    first, second = encoders[0](ids), encoders[1](ids_2)
    return jnp.concatenate([first.hidden_states[-2], second.hidden_states[-2]], -1), second.pooled


def ddim(
    unet: UNet,
    x: jax.Array,
    context: jax.Array,
    pooled: jax.Array,
    times: jax.Array,
    guidance: float,
) -> jax.Array:
    """Clean latents [B, 32, 32, 4] from those of the first of `times`, by one guided step at each of them."""
    context, pooled = (jnp.concatenate([jnp.zeros_like(c), c]) for c in (context, pooled))
    cond = unet.condition(context, pooled, jnp.tile(jnp.asarray(SIZES)[None], (len(context), 1)))
    power = jnp.asarray(alphas_cumprod(), jnp.float32)

    def step(x: jax.Array, t: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        v = unet(jnp.concatenate([x, x]), t[0].astype(jnp.float32), cond, PX)
        off, on = jnp.split(v, 2)
        v = off + guidance * (on - off)
        now, then = power[t[0]], jnp.where(t[1] < 0, 1.0, power[t[1]])
        clean = jnp.sqrt(now) * x - jnp.sqrt(1 - now) * v
        eps = jnp.sqrt(now) * v + jnp.sqrt(1 - now) * x
        return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * eps, None

    return jax.lax.scan(step, x, (times, jnp.append(times[1:], -1)))[0]


class Sampler:
    """DDIM with guidance from given parameters: for the sheets, and to see how many captions are obeyed."""

    def __init__(self, out: Path, graph: Any, tokenizers: Any, text_graph: Any, text_params: Any):
        self.graph, self.tokenizers, self.text_graph, self.text_params = graph, tokenizers, text_graph, text_params
        vae = autoencoder.load(out)
        self.decode = jax.jit(lambda z: vae.decode(z, PX))
        self.denoise = jax.jit(self._denoise, static_argnums=(4, 5))

    def _denoise(
        self, params: Any, ids: jax.Array, ids_2: jax.Array, noise: jax.Array, steps: int, guidance: float
    ) -> jax.Array:
        unet = nnx.merge(self.graph, params)
        context, pooled = embed(nnx.merge(self.text_graph, self.text_params), ids, ids_2)
        times = jnp.round(jnp.arange(1000, 0, -1000 / steps)).astype(jnp.int32) - 1
        return ddim(unet, noise, context, pooled, times, guidance)

    def __call__(
        self, params: Any, prompts: list[str], seed: int = 0, steps: int = 25, guidance: float = 5.0
    ) -> np.ndarray:
        """Pictures, uint8 [N, 256, 256, 3]."""
        noise = jax.random.normal(jax.random.key(seed), (len(prompts), 32, 32, 4))
        latents = self.denoise(params, *(t(prompts) for t in self.tokenizers), noise, steps, guidance)
        return np.concatenate([common.to_uint8(self.decode(latents[i : i + 4])) for i in range(0, len(prompts), 4)])


def train(
    out: Path,
    steps: int,
    resume: bool,
    batch: int = 16,
    every: int = 400,
    minutes: float | None = None,
    method: str = "muon",
    decay_from: float = 0.3,
    begin: Path | None = None,
) -> None:
    """Train and write OUT/unet, with a sheet of samples at each checkpoint.

    minutes: be done by then even if `steps` are not reached: the learning rate falls by the clock if that is sooner.
    decay_from: the part of the training after which the learning rate falls.
    begin: a folder of checkpoints of another run whose averaged weights this one starts with.
    """
    *tokenizers, encoders = text.load(out)
    text_graph, text_params = nnx.split(nnx.List(encoders))
    unet = build()
    if begin is not None:
        grow.fill(unet, common.load_params(begin))
    graph, params = nnx.split(unet)
    transform = optimizer.make_optimizer(method)
    power = jnp.asarray(alphas_cumprod(), jnp.float32)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def loss_fn(params: Any, text_params: Any, data: dict[str, jax.Array]) -> jax.Array:
        unet = nnx.merge(graph, params)
        context, pooled = embed(nnx.merge(text_graph, text_params), data["ids"], data["ids_2"])
        keep = data["keep"]
        cond = unet.condition(context * keep[:, None, None], pooled * keep[:, None], data["sizes"])
        signal, noise = jnp.sqrt(power[data["time"]]), jnp.sqrt(1 - power[data["time"]])
        signal, noise = signal[:, None, None, None], noise[:, None, None, None]
        noisy = signal * data["latents"] + noise * data["noise"]
        v = signal * data["noise"] - noise * data["latents"]
        # Not at much noise: where the layout is open, items that count more are drawn in every place where they may be.
        # Faded by `signal`, 0.05 at timestep 900, the plain loss at 950 rose from 0.1615 to 0.1639 in 2400 steps.
        weights = CHANNELS * (1 + signal**3 * (data["weights"] - 1))
        return (weights * jnp.square(unet(noisy, data["time"].astype(jnp.float32), cond, PX) - v)).mean()

    @partial(jax.jit, donate_argnums=0)
    def update(
        state: common.State, text_params: Any, data: dict[str, jax.Array], rate: jax.Array
    ) -> tuple[common.State, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], text_params, data)
        count = state["count"] + 1
        decay = jnp.minimum(optimizer.AVERAGE, (1 + count) / (10 + count))
        return optimizer.descend(transform, state, grads, rate, decay) | {"count": count}, {"loss": loss}

    def step(state: common.State, data: dict[str, Any]) -> tuple[common.State, dict[str, jax.Array]]:
        now = jax.device_put(np.float32(data.pop("rate")), whole)
        return update(state, text_params, {k: jax.device_put(v, split) for k, v in data.items()}, now)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        pool, rng = Pool(out), np.random.default_rng((5, start))
        for number, part in optimizer.parts(start, steps, minutes):
            if number % 50 == 0:
                pool.refresh()
            latents, weights, captions = pool.draw(rng, batch)
            # Shapes are made at middling noise. Above it the layout is any one's guess, and its error mere noise.
            middle = 1 / (1 + np.exp(0.4 - 0.8 * rng.standard_normal(batch)))
            times = 1000 * np.where(rng.random(batch) < 0.65, middle, rng.random(batch))
            odd = rng.random((batch, 1)) < 0.1  # other sizes now and then, so that they do no harm
            sizes = np.where(odd, np.round(SIZES + rng.uniform(0, 1, (batch, 6)) * [256, 256, 48, 48, 256, 256]), SIZES)
            dropout = np.interp(times, DROPOUT_TIMES[::-1], DROPOUT[::-1])
            yield {
                "rate": optimizer.rate(part, number, decay_from),
                "latents": latents,
                "weights": weights,
                "noise": rng.standard_normal(latents.shape, np.float32),
                "time": np.minimum(times, 999).astype(np.int32),
                "keep": (rng.random(batch) >= dropout).astype(np.float32),
                "sizes": sizes.astype(np.float32),
                **{name: t(captions) for name, t in zip(("ids", "ids_2"), tokenizers, strict=True)},
            }

    copy = jax.tree.map(jnp.copy, params)
    state = {"params": params, "ema": copy, "opt": transform.init(params), "count": jnp.zeros((), jnp.int32)}
    state, text_params = jax.device_put(state, whole), jax.device_put(text_params, whole)
    prompts = [scenes.caption(scenes.EXAMPLE), *scenes.held_out_prompts(15, seed=1)]
    sampler = Sampler(out, graph, tokenizers, text_graph, jax.device_put(text_params, jax.devices()[0]))

    def look(number: int, state: common.State) -> None:
        pictures = sampler(jax.device_put(state["ema"], jax.devices()[0]), prompts)
        common.sheet(pictures, 8, out / f"unet-{number:06d}.png")
        right = len(prompts) - len(check.refused(pictures, prompts))
        with (out / "unet" / "adherence.jsonl").open("a") as file:
            file.write(json.dumps({"step": number, "obeyed": right, "of": len(prompts)}) + "\n")

    common.run(out / "unet", state, step, batches, steps, resume=resume, every=every, at_checkpoint=look)
