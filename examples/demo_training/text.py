"""Stage `text`: both text encoders, trained on captions alone to represent their meaning.

Linear heads, discarded afterwards, predict the scene from the states that the U-Net will see: the whole scene from the
end-of-text token and from the pooled embedding, and one item from each of the three padding tokens behind it. So the
encoders learn which colour belongs to which shape before the U-Net is trained.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from demo_world.captions import caption
from demo_world.drawing import anchors
from demo_world.scenes import ARRANGEMENTS, BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, sample
from flax import nnx

from demo_training import common, tokenizer
from demo_training.configs import TEXT_WIDTHS, text_config
from distrijax.models.text_encoder import TextEncoder

SLOTS = 3
SHORT = 32  # tokens used in training; the mask is causal, so later tokens do not change them
ITEM = (2, len(COLOURS), len(SHAPES), len(SIZES), 2)  # classes of: exists, colour, shape, size; then x and y
SCENE = (len(ARRANGEMENTS), len(BACKGROUNDS), len(COLOURS) + 2)


def targets(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return classes, int [4 * SLOTS + 3], and positions, float [2 * SLOTS]; -1 and NaN where there is no item."""
    classes, places = np.full((SLOTS, 4), -1), np.full((SLOTS, 2), np.nan)
    classes[:, 0] = 0
    for slot, (item, xy) in enumerate(zip(scene.items, anchors(scene), strict=True)):
        colour, shape = list(COLOURS).index(item.colour), SHAPES.index(item.shape)
        classes[slot] = 1, colour, shape, SIZES.index(item.size)
        places[slot] = 0.5 if scene.arrangement == "beside" else xy
    colours = [None, "gray", *COLOURS]
    whole = [
        ARRANGEMENTS.index(scene.arrangement),
        BACKGROUNDS.index(scene.background.kind),
        colours.index(scene.background.colour),
    ]
    return np.concatenate([classes.reshape(-1), whole]), places.reshape(-1)


def build(out: Path) -> tuple[tokenizer.Tokenizer, tokenizer.Tokenizer, list[TextEncoder]]:
    """Return both tokenizers, which are written if they are missing, and untrained encoders."""
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        if not (out / name / "vocab.json").exists():
            tokenizer.write(out / name, pad)
    first, second = (tokenizer.Tokenizer(out / name) for name in ("tokenizer", "tokenizer_2"))
    return first, second, [TextEncoder(text_config(i, first.size), rngs=nnx.Rngs(i)) for i in range(2)]


class Heads(nnx.Module):
    """Linear heads on one encoder's states."""

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
    """Return cross-entropies plus the squared error of the positions, and the accuracy of the classes."""
    loss, correct, total, at, column = jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), 0, 0
    for index, width in enumerate((*ITEM * SLOTS, *(SCENE if whole else ()))):
        output = logits[:, at : at + width]
        at += width
        if index < SLOTS * len(ITEM) and index % len(ITEM) == len(ITEM) - 1:
            slot = index // len(ITEM)
            target = places[:, 2 * slot : 2 * slot + 2]
            exists = ~jnp.isnan(target)
            error = output - jnp.where(exists, target, 0)
            loss += 20 * jnp.where(exists, jnp.square(error), 0).sum() / len(target)
            continue
        label = classes[:, column]
        column += 1
        mask = label >= 0
        nll = optax.softmax_cross_entropy_with_integer_labels(output, jnp.maximum(label, 0))
        loss += jnp.where(mask, nll, 0).sum() / len(label)
        correct += (mask & (output.argmax(-1) == label)).sum()
        total += mask.sum()
    return loss, correct / total


def train(out: Path, steps: int, resume: bool, batch: int = 64) -> None:
    """Train both encoders and write OUT/text."""
    first, second, encoders = build(out)
    heads = [Heads(TEXT_WIDTHS[i], (None, TEXT_WIDTHS[1])[i], nnx.Rngs(10 + i)) for i in range(2)]
    graph, params = nnx.split((nnx.List(encoders), nnx.List(heads)))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(common.schedule(2e-3, steps), b2=0.98, weight_decay=0.01)
    )

    def loss_fn(params: nnx.State, data: tuple[jax.Array, ...]) -> tuple[jax.Array, common.Metrics]:
        encoders, heads = nnx.merge(graph, params)
        ids, ids_2, classes, places = data
        total, accuracies = jnp.zeros(()), []
        for encoder, head, tokens in zip(encoders, heads, (ids, ids_2), strict=True):
            output = encoder(tokens)
            logits = head(output.hidden_states[-2], output.pooled, encoder.end_of_text(tokens))
            for kind, each in enumerate(logits):
                loss, accuracy = _loss(each, classes, places, whole=kind != 1)
                total += loss
                accuracies.append(accuracy)
        names = ("end1", "pads1", "end2", "pads2", "pooled")
        return total, {"loss": total} | dict(zip(names, accuracies, strict=True))

    @partial(jax.jit, donate_argnums=0)
    def step(state: common.State, data: tuple[np.ndarray, ...]) -> tuple[common.State, common.Metrics]:
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], data)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, metrics

    def batches(start: int) -> Iterator[tuple[np.ndarray, ...]]:
        rng = np.random.default_rng((1, start))
        while True:
            scenes = [sample(rng) for _ in range(batch)]
            captions = [caption(scene, rng) for scene in scenes]
            classes, places = zip(*map(targets, scenes), strict=True)
            ids = [t(captions)[:, :SHORT] for t in (first, second)]
            yield *ids, np.stack(classes), np.stack(places).astype(np.float32)

    state = {"params": params, "opt": optimizer.init(params)}
    common.run(out / "text", state, step, batches, steps, resume=resume, every=500)


def load(out: Path) -> tuple[tokenizer.Tokenizer, tokenizer.Tokenizer, list[TextEncoder]]:
    """Return both tokenizers and the trained encoders."""
    first, second, encoders = build(out)
    trained = common.load_params(out / "text")["0"]
    for index, encoder in enumerate(encoders):
        common.assign(encoder, trained[str(index)])
    return first, second, encoders
