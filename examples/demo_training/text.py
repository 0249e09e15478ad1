"""Stage `text`: both text encoders, taught by words alone to say what a caption means.

Linear heads, thrown away afterwards, read the scene from the states that the U-Net will see: everything from the
end-of-text token and from the pooled vector, and one item each from the three tokens of padding behind it. So colour
and shape are bound together before a picture is seen, and the U-Net has only to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from demo_training import common, tokenizer
from demo_training.configs import TEXT_WIDTHS, text_config
from distrijax.demo import scenes
from distrijax.models.text_encoder import TextEncoder

SLOTS = 3
SHORT = 32  # tokens that training looks at: the mask is causal, so what comes later changes nothing before
ITEM = (2, len(scenes.COLOURS), len(scenes.SHAPES), len(scenes.RADII), 2)  # exists, colour, shape, size; x and y
SCENE = (len(scenes.ARRANGEMENTS), len(scenes.BACKGROUNDS), len(scenes.COLOURS) + 2)


def targets(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray]:
    """Classes, int [4 * SLOTS + 3], and positions, float [2 * SLOTS]; -1 and NaN where there is no item."""
    classes, places = np.full((SLOTS, 4), -1), np.full((SLOTS, 2), np.nan)
    classes[:, 0] = 0
    for slot, (item, xy) in enumerate(zip(scene.items, scenes.anchors(scene), strict=True)):
        colour, shape = list(scenes.COLOURS).index(item.colour), scenes.SHAPES.index(item.shape)
        classes[slot] = 1, colour, shape, list(scenes.RADII).index(item.size)
        places[slot] = 0.5 if scene.arrangement == "beside" else xy
    colours = [None, "gray", *scenes.COLOURS]
    whole = [
        list(scenes.ARRANGEMENTS).index(scene.arrangement),
        scenes.BACKGROUNDS.index(scene.background.kind),
        colours.index(scene.background.colour),
    ]
    return np.concatenate([classes.reshape(-1), whole]), places.reshape(-1)


def build(out: Path) -> tuple[tokenizer.Tokenizer, tokenizer.Tokenizer, list[TextEncoder]]:
    """Tokenizers (written first if they are missing) and untrained encoders."""
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        if not (out / name / "vocab.json").exists():
            tokenizer.write(out / name, pad)
    first, second = (tokenizer.Tokenizer(out / name) for name in ("tokenizer", "tokenizer_2"))
    return first, second, [TextEncoder(text_config(i, first.size), rngs=nnx.Rngs(i)) for i in range(2)]


class Heads(nnx.Module):
    """Linear readers of one encoder's states."""

    def __init__(self, width: int, pooled: int | None, rngs: nnx.Rngs):
        everything = SLOTS * sum(ITEM) + sum(SCENE)
        self.end = nnx.Linear(width, everything, rngs=rngs)
        self.pads = nnx.Linear(width, sum(ITEM), rngs=rngs)
        self.pooled = nnx.data(nnx.Linear(pooled, everything, rngs=rngs) if pooled else None)

    def __call__(self, states: jax.Array, pooled: jax.Array, end: jax.Array) -> list[jax.Array]:
        def at(offset: int) -> jax.Array:
            return jnp.take_along_axis(states, (end + offset)[:, None, None], axis=1)[:, 0]  # [B, D]

        scene = jnp.zeros((len(end), sum(SCENE)))
        slots = jnp.concatenate([*(self.pads(at(1 + k)) for k in range(SLOTS)), scene], -1)
        return [self.end(at(0)), slots, *([self.pooled(pooled)] if self.pooled is not None else [])]


def _loss(logits: jax.Array, classes: jax.Array, places: jax.Array, whole: bool) -> tuple[jax.Array, jax.Array]:
    """Cross-entropies plus squared error of the positions, and the part of all classes that is right."""
    loss, right, known, at, column = jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), 0, 0
    for index, width in enumerate((*ITEM * SLOTS, *(SCENE if whole else ()))):
        part = logits[:, at : at + width]
        at += width
        if index < SLOTS * len(ITEM) and index % len(ITEM) == len(ITEM) - 1:
            slot = index // len(ITEM)
            want = places[:, 2 * slot : 2 * slot + 2]
            there = ~jnp.isnan(want)
            loss += 20 * jnp.where(there, jnp.square(part - jnp.where(there, want, 0)), 0).sum() / len(want)
            continue
        label = classes[:, column]
        column += 1
        mask = label >= 0
        nll = optax.softmax_cross_entropy_with_integer_labels(part, jnp.maximum(label, 0))
        loss += jnp.where(mask, nll, 0).sum() / len(label)
        right += (mask & (part.argmax(-1) == label)).sum()
        known += mask.sum()
    return loss, right / known


def train(out: Path, steps: int, resume: bool, batch: int = 64) -> None:
    """Train both encoders and write OUT/text."""
    first, second, encoders = build(out)
    heads = [Heads(TEXT_WIDTHS[i], (None, TEXT_WIDTHS[1])[i], nnx.Rngs(10 + i)) for i in range(2)]
    graph, params = nnx.split((nnx.List(encoders), nnx.List(heads)))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(common.schedule(2e-3, steps), b2=0.98, weight_decay=0.01)
    )

    def loss_fn(params: Any, data: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        encoders, heads = nnx.merge(graph, params)
        ids, ids_2, classes, places = data
        total, rights = jnp.zeros(()), []
        for encoder, head, tokens in zip(encoders, heads, (ids, ids_2), strict=True):
            said = encoder(tokens)
            logits = head(said.hidden_states[-2], said.pooled, encoder.end_of_text(tokens))
            for kind, part in enumerate(logits):
                loss, right = _loss(part, classes, places, whole=kind != 1)
                total += loss
                rights.append(right)
        names = ("end1", "pads1", "end2", "pads2", "pooled")
        return total, {"loss": total} | dict(zip(names, rights, strict=True))

    @partial(jax.jit, donate_argnums=0)
    def step(state: common.State, data: tuple[np.ndarray, ...]) -> tuple[common.State, dict[str, jax.Array]]:
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], data)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, metrics

    def batches(start: int) -> Iterator[tuple[np.ndarray, ...]]:
        rng = np.random.default_rng((1, start))
        while True:
            drawn = [scenes.sample(rng) for _ in range(batch)]
            captions = [scenes.caption(scene, rng) for scene in drawn]
            classes, places = zip(*(targets(scene) for scene in drawn), strict=True)
            ids = [t(captions)[:, :SHORT] for t in (first, second)]
            yield *ids, np.stack(classes), np.stack(places).astype(np.float32)

    state = {"params": params, "opt": optimizer.init(params)}
    common.run(out / "text", state, step, batches, steps, resume=resume, every=500)


def load(out: Path) -> tuple[tokenizer.Tokenizer, tokenizer.Tokenizer, list[TextEncoder]]:
    """Tokenizers and trained encoders."""
    first, second, encoders = build(out)
    trained = common.load_params(out / "text")["0"]
    for index, encoder in enumerate(encoders):
        common.fill(encoder, trained[str(index)])
    return first, second, encoders
