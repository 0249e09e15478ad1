#!/usr/bin/env python3
"""Teach the demo model a word by textual inversion: "sun", a large yellow circle, in ten minutes of one core.

    pip install '.[train]'
    python examples/train_token.py --output sun.safetensors
    distrijax generate "sun above a blue square" --embedding sun.safetensors

The model does not change: only the word's vectors are trained, by the loss that the model itself was trained with
(Gal et al. 2022, arXiv 2208.01618).
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from demo_training.denoiser import SIZES, alphas_cumprod
from demo_world.captions import caption
from demo_world.drawing import render
from demo_world.scenes import Item, sample
from safetensors.numpy import save_file
from tqdm import tqdm

from distrijax import StableDiffusionXLPipeline
from distrijax.models.text_encoder import Added
from distrijax.text.prompt import encode_ids

TOKEN, SUN = "sun", Item("circle", "yellow", "large")
PHRASE = r"(?:an? )?(?:large|big) yellow circle"
START = "circle"  # the word whose vectors training starts from

Vectors = dict[str, jax.Array]


def examples(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield prompts that have the word, and pictures of them, without end."""
    rng = np.random.default_rng(seed)
    while True:
        scene = sample(rng)
        if scene.arrangement not in ("one", "above", "left", "beside"):
            continue
        if any(item.colour == SUN.colour for item in scene.items[1:]) or scene.background.colour == SUN.colour:
            continue
        first = Item(SUN.shape, SUN.colour, SUN.size, scene.items[0].place)
        scene = type(scene)((first, *scene.items[1:]), scene.arrangement, scene.background)
        text = re.sub(PHRASE, TOKEN, caption(scene, rng), count=1)
        if TOKEN in text:
            yield text, render(scene, rng)


def train(
    pipe: StableDiffusionXLPipeline, count: int, steps: int, batch: int, seed: int, rate: float
) -> Iterator[Vectors]:
    """Yield the word's vectors for both text encoders, [count, D] each, after every step."""
    encoders = {"clip_l": (pipe.text_encoder, pipe.tokenizer), "clip_g": (pipe.text_encoder_2, pipe.tokenizer_2)}
    vectors = {}
    for name, (encoder, tokenizer) in encoders.items():
        assert encoder is not None
        assert tokenizer is not None
        (start, *_), _ = tokenizer.words(START)
        vectors[name] = jnp.tile(encoder.embeddings.token_embedding.embedding[...][start], (count, 1))
    pipe.load_textual_inversion({name: np.asarray(x) for name, x in vectors.items()}, TOKEN)
    first = [np.int32(tokenizer.vocab_size) for tokenizer in pipe.tokenizers]
    power = jnp.asarray(alphas_cumprod(), jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(vectors: Vectors, ids: tuple, latents: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
        added = tuple(Added(jnp.asarray(i), vectors[name]) for i, name in zip(first, encoders, strict=True))
        context, pooled = encode_ids((pipe.text_encoder, pipe.text_encoder_2), ids, added)  # type: ignore[arg-type]
        cond = pipe.unet.condition(context, pooled, jnp.tile(SIZES, (len(latents), 1)))
        signal, sigma = (jnp.sqrt(x)[:, None, None, None] for x in (power[time], 1 - power[time]))
        v = signal * noise - sigma * latents
        return jnp.square(pipe.unet(signal * latents + sigma * noise, time.astype(jnp.float32), cond) - v).mean()

    @jax.jit
    def step(vectors: Vectors, state: optax.OptState, *data: jax.Array) -> tuple[Vectors, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(vectors, *data)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vectors, updates), state, value

    encode = jax.jit(lambda pictures: pipe.vae.encode(pictures)[0] * pipe.vae.config.scaling_factor)
    state, rng, source = optimizer.init(vectors), np.random.default_rng(seed), examples(seed)
    recent: list[float] = []
    for _ in (bar := tqdm(range(steps))):
        texts, pictures = zip(*(next(source) for _ in range(batch)), strict=True)
        ids = tuple(tokenizer(texts) for tokenizer in pipe.tokenizers)
        latents = encode(np.stack(pictures).astype(np.float32) / 127.5 - 1)
        noise = rng.standard_normal(latents.shape, np.float32)
        time = rng.integers(300, 1000, batch)  # below, what the picture shows is decided
        vectors, state, value = step(vectors, state, ids, latents, noise, time)
        recent = [*recent[-49:], float(value)]
        bar.set_postfix(loss=f"{np.mean(recent):.4f}")
        yield vectors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sun.safetensors"), help="(default: %(default)s)")
    parser.add_argument("--vectors", type=int, default=2, help="tokens that the word takes (default: 2)")
    parser.add_argument("--steps", type=int, default=120, help="(default: 120)")
    parser.add_argument("--batch", type=int, default=6, help="(default: 6)")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate (default: 0.02)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    options = parser.parse_args(arguments)
    pipe = StableDiffusionXLPipeline.from_pretrained("demo", dtype="float32", progress=False)
    for vectors in train(pipe, options.vectors, options.steps, options.batch, options.seed, options.rate):
        save_file({name: np.asarray(x) for name, x in vectors.items()}, options.output)


if __name__ == "__main__":
    main()
