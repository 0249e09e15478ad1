"""What the stages `unet` and `decoder` share: the optimizer, a learning rate that can follow the clock, averaging."""

import time
from collections.abc import Iterator

import jax
import optax
import optax.contrib
from flax import nnx
from jax.tree_util import KeyPath
from optax.contrib import MuonDimensionNumbers

from demo_training.common import State

PEAK, WARMUP = 1e-3, 200  # learning rate, and the steps until it is reached
AVERAGE = 0.995  # decay of the averaged weights


def progress(start: int, steps: int, minutes: float | None) -> Iterator[tuple[int, float]]:
    """Yield the number of each step and the finished fraction of the training, by steps or by the clock."""
    began = time.monotonic()
    for number in range(start, steps):
        elapsed = (time.monotonic() - began) / 60 / minutes if minutes else 0.0
        if (fraction := max(number / steps, elapsed)) >= 1:
            return
        yield number, fraction


def rate_factor(fraction: float, step: int, decay_from: float) -> float:
    """Return the learning rate in units of its peak: a warm-up, a plateau, then a linear decay to zero.

    Args:
        fraction: Finished fraction of the training.
        decay_from: The fraction at which the decay begins.
    """
    return min(1.0, (step + 1) / WARMUP, max(0.0, (1 - fraction) / (1 - decay_from)))


def make_optimizer(name: str) -> optax.GradientTransformation:
    """Return AdamW, or Muon (arXiv 2502.16982) for matrices and convolutions with AdamW for everything else."""
    clip = optax.clip_by_global_norm(1.0)
    constant = optax.constant_schedule(PEAK)
    if name == "adamw":
        return optax.chain(clip, optax.adamw(constant, b2=0.99, weight_decay=0.01))

    def axes(path: KeyPath, leaf: jax.Array) -> MuonDimensionNumbers | None:
        outer = any(getattr(key, "key", None) in ("conv_in", "conv_out") for key in path)
        if leaf.ndim == 4 and not outer:
            return MuonDimensionNumbers((1, 2, 3), 0)
        return MuonDimensionNumbers(0, 1) if leaf.ndim == 2 else None

    muon = optax.contrib.muon(
        constant,
        weight_decay=0.01,
        consistent_rms=0.2,  # updates as large as AdamW's, so that both can use one learning rate
        adam_b2=0.99,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(axes, params),
    )
    return optax.chain(clip, muon)


def apply_gradients(
    transform: optax.GradientTransformation,
    state: State,
    grads: nnx.State,
    rate: jax.Array,
    decay: float | jax.Array,
) -> State:
    """Return the next "params", "opt" and "ema".

    Args:
        rate: Learning rate in units of its peak, as `rate_factor` returns it.
        decay: Decay of the averaged weights.
    """
    updates, opt = transform.update(grads, state["opt"], state["params"])
    updates = jax.tree.map(lambda u: u * rate, updates)  # includes the weight decay
    params = optax.apply_updates(state["params"], updates)
    ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state["ema"], params)
    return {"params": params, "ema": ema, "opt": opt}
