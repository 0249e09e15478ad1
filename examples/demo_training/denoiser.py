"""Stage `unet`: the U-Net, trained by v-prediction with zero terminal SNR; the text encoders are frozen."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from demo_world import captions, judge
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from demo_training import autoencoder, common, grow, optimizer, text
from demo_training.common import WHOLE
from demo_training.configs import SCHEDULER_JSON, unet_config
from demo_training.latents import Pool
from demo_training.tokenizer import Tokenizer
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet

# Caption dropout (zero embeddings, as the pipeline uses without a negative prompt) at high and at low noise. At low
# noise a caption adds nothing to the latents, and guidance of 5 multiplies the difference of the two branches' errors
# by 4: with 0.1 everywhere, outlines denoised from timestep 300 were off by 0.18, without guidance by 0.08.
DROPOUT = (0.1, 0.5)
DROPOUT_TIMES = (600, 250)  # timesteps of high and low noise; linear in between
# Weight of each latent channel in the loss. From timestep 499 the fourth, which draws the edges, had 0.62 of the
# squared error but 0.27 of the damage to pixels; with the others put right, 63 of 64 pictures were correct, not 53.
CHANNEL_WEIGHTS = np.array([1.23, 1.23, 1.23, 0.31], np.float32)
SIZES = np.array([256, 256, 0, 0, 256, 256], np.float32)  # original size, crop, target size


def alphas_cumprod() -> np.ndarray:
    """Return the signal power of each of the 1000 timesteps, float64; zero at the last (arXiv 2305.08891, alg. 1)."""
    start, end = SCHEDULER_JSON["beta_start"], SCHEDULER_JSON["beta_end"]
    root = np.sqrt(np.cumprod(1 - np.linspace(start**0.5, end**0.5, 1000) ** 2))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def build() -> UNet:
    """Return an untrained U-Net that predicts zero."""
    unet = UNet(unet_config(), rngs=nnx.Rngs(3))
    common.zero_residual_branches(unet)
    unet.conv_out.kernel[...] = jnp.zeros_like(unet.conv_out.kernel[...])
    return unet


def embed(
    encoders: Sequence[TextEncoder] | nnx.List[TextEncoder], ids: jax.Array, ids_2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return context [B, 77, D1 + D2] and pooled embedding [B, P], as the pipeline computes them."""
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
    """Return clean latents [B, 32, 32, 4] from noisy ones at the first of `times`, by a guided step at each."""
    context, pooled = (jnp.concatenate([jnp.zeros_like(c), c]) for c in (context, pooled))
    cond = unet.condition(context, pooled, jnp.tile(jnp.asarray(SIZES)[None], (len(context), 1)))
    power = jnp.asarray(alphas_cumprod(), jnp.float32)

    def step(x: jax.Array, t: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        v = unet(jnp.concatenate([x, x]), t[0].astype(jnp.float32), cond, WHOLE)
        off, on = jnp.split(v, 2)
        v = off + guidance * (on - off)
        now, then = power[t[0]], jnp.where(t[1] < 0, 1.0, power[t[1]])
        clean = jnp.sqrt(now) * x - jnp.sqrt(1 - now) * v
        eps = jnp.sqrt(now) * v + jnp.sqrt(1 - now) * x
        return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * eps, None

    return jax.lax.scan(step, x, (times, jnp.append(times[1:], -1)))[0]


class Sampler:
    """DDIM with guidance from any parameters of the U-Net, for the sample sheets and the count of correct pictures."""

    def __init__(
        self,
        out: Path,
        graph: nnx.GraphDef[UNet],
        tokenizers: Sequence[Tokenizer],
        text_graph: nnx.GraphDef[nnx.List[TextEncoder]],
        text_params: nnx.State,
    ):
        self.graph, self.tokenizers, self.text_graph, self.text_params = graph, tokenizers, text_graph, text_params
        vae = autoencoder.load(out)
        self.decode = jax.jit(lambda z: vae.decode(z, WHOLE))
        self.denoise = jax.jit(self._denoise, static_argnums=(4, 5))

    def _denoise(
        self, params: nnx.State, ids: jax.Array, ids_2: jax.Array, noise: jax.Array, steps: int, guidance: float
    ) -> jax.Array:
        unet = nnx.merge(self.graph, params)
        context, pooled = embed(nnx.merge(self.text_graph, self.text_params), ids, ids_2)
        times = jnp.round(jnp.arange(1000, 0, -1000 / steps)).astype(jnp.int32) - 1
        return ddim(unet, noise, context, pooled, times, guidance)

    def __call__(
        self, params: nnx.State, prompts: list[str], seed: int = 0, steps: int = 25, guidance: float = 5.0
    ) -> np.ndarray:
        """Return pictures, uint8 [N, 256, 256, 3]."""
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

    Args:
        minutes: Time limit; the learning rate then decays by the clock if that is sooner.
        method: Optimizer, `muon` or `adamw`.
        decay_from: Fraction of the training after which the learning rate decays.
        begin: Folder of checkpoints of another run, whose averaged weights this one starts from.
    """
    *tokenizers, encoders = text.load(out)
    text_graph, text_params = nnx.split(nnx.List(encoders))
    unet = build()
    if begin is not None:
        grow.assign_smaller(unet, common.load_params(begin))
    graph, params = nnx.split(unet)
    transform = optimizer.make_optimizer(method)
    power = jnp.asarray(alphas_cumprod(), jnp.float32)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def loss_fn(params: nnx.State, text_params: nnx.State, data: dict[str, jax.Array]) -> jax.Array:
        unet = nnx.merge(graph, params)
        context, pooled = embed(nnx.merge(text_graph, text_params), data["ids"], data["ids_2"])
        keep = data["keep"]
        cond = unet.condition(context * keep[:, None, None], pooled * keep[:, None], data["sizes"])
        signal, noise = jnp.sqrt(power[data["time"]]), jnp.sqrt(1 - power[data["time"]])
        signal, noise = signal[:, None, None, None], noise[:, None, None, None]
        noisy = signal * data["latents"] + noise * data["noise"]
        v = signal * data["noise"] - noise * data["latents"]
        # Even weights at high noise: while the layout is open, heavier items would be drawn at every possible place.
        # With `signal` (0.05 at timestep 900) instead of its cube, the plain loss at 950 rose from 0.1615 to 0.1639.
        weights = CHANNEL_WEIGHTS * (1 + signal**3 * (data["weights"] - 1))
        return (weights * jnp.square(unet(noisy, data["time"].astype(jnp.float32), cond, WHOLE) - v)).mean()

    @partial(jax.jit, donate_argnums=0)
    def update(
        state: common.State, text_params: nnx.State, data: dict[str, jax.Array], rate: jax.Array
    ) -> tuple[common.State, common.Metrics]:
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], text_params, data)
        count = state["count"] + 1
        decay = jnp.minimum(optimizer.AVERAGE, (1 + count) / (10 + count))
        return optimizer.apply_gradients(transform, state, grads, rate, decay) | {"count": count}, {"loss": loss}

    def step(state: common.State, data: dict[str, np.ndarray]) -> tuple[common.State, common.Metrics]:
        rate = jax.device_put(data.pop("rate"), whole)
        return update(state, text_params, {k: jax.device_put(v, split) for k, v in data.items()}, rate)

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        pool, rng = Pool(out), np.random.default_rng((5, start))
        for number, fraction in optimizer.progress(start, steps, minutes):
            if number % 50 == 0:
                pool.refresh()
            latents, weights, texts = pool.draw(rng, batch)
            # Shapes form at medium noise. Above it the layout is a guess, and most of the loss is noise.
            middle = 1 / (1 + np.exp(0.4 - 0.8 * rng.standard_normal(batch)))
            times = 1000 * np.where(rng.random(batch) < 0.65, middle, rng.random(batch))
            odd = rng.random((batch, 1)) < 0.1  # train on other sizes too, so that they can be passed to the pipeline
            sizes = np.where(odd, np.round(SIZES + rng.uniform(0, 1, (batch, 6)) * [256, 256, 48, 48, 256, 256]), SIZES)
            dropout = np.interp(times, DROPOUT_TIMES[::-1], DROPOUT[::-1])
            yield {
                "rate": np.asarray(optimizer.rate_factor(fraction, number, decay_from), np.float32),
                "latents": latents,
                "weights": weights,
                "noise": rng.standard_normal(latents.shape, np.float32),
                "time": np.minimum(times, 999).astype(np.int32),
                "keep": (rng.random(batch) >= dropout).astype(np.float32),
                "sizes": sizes.astype(np.float32),
                **{name: t(texts) for name, t in zip(("ids", "ids_2"), tokenizers, strict=True)},
            }

    copy = jax.tree.map(jnp.copy, params)
    state = {"params": params, "ema": copy, "opt": transform.init(params), "count": jnp.zeros((), jnp.int32)}
    state, text_params = jax.device_put(state, whole), jax.device_put(text_params, whole)
    prompts = [captions.caption(captions.EXAMPLE), *captions.held_out_prompts(15, seed=1)]
    sampler = Sampler(out, graph, tokenizers, text_graph, jax.device_put(text_params, jax.devices()[0]))

    def write_samples(number: int, state: common.State) -> None:
        pictures = sampler(jax.device_put(state["ema"], jax.devices()[0]), prompts)
        common.write_sheet(pictures, 8, out / f"unet-{number:06d}.png")
        correct = len(prompts) - len(judge.failures(pictures, prompts))
        with (out / "unet" / "adherence.jsonl").open("a") as file:
            file.write(json.dumps({"step": number, "correct": correct, "of": len(prompts)}) + "\n")

    common.run(out / "unet", state, step, batches, steps, resume=resume, every=every, on_checkpoint=write_samples)
