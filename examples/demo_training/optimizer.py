"""What `unet` and `decoder` share: the optimizer, a learning rate that falls by the clock, averaged weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

PEAK, WARMUP = 1e-3, 200  # learning rate, and the steps until it is reached
AVERAGE = 0.995  # decay of the averaged weights


def parts(start: int, steps: int, minutes: float | None) -> Iterator[tuple[int, float]]:
    """The number of each step, and the part of the training that is over by then, by steps or by the clock."""
    began = time.monotonic()
    for number in range(start, steps):
        spent = (time.monotonic() - began) / 60 / minutes if minutes else 0.0
        if (part := max(number / steps, spent)) >= 1:
            return
        yield number, part


def rate(part: float, step: int, decay_from: float) -> float:
    """Of the peak learning rate: a warm-up, a plateau, and from a part of the training on a linear fall to zero."""
    return min(1.0, (step + 1) / WARMUP, max(0.0, (1 - part) / (1 - decay_from)))


def make_optimizer(name: str) -> optax.GradientTransformation:
    """AdamW, or Muon (arXiv 2502.16982) for the matrices and convolutions and AdamW for all else."""
    clip = optax.clip_by_global_norm(1.0)
    constant = optax.constant_schedule(PEAK)
    if name == "adamw":
        return optax.chain(clip, optax.adamw(constant, b2=0.99, weight_decay=0.01))

    def axes(path: Any, leaf: jax.Array) -> Any:
        outside = any(getattr(key, "key", None) in ("conv_in", "conv_out") for key in path)
        if leaf.ndim == 4 and not outside:
            return MuonDimensionNumbers((1, 2, 3), 0)
        return MuonDimensionNumbers(0, 1) if leaf.ndim == 2 else None

    muon = optax.contrib.muon(
        constant,
        weight_decay=0.01,
        consistent_rms=0.2,  # updates as large as AdamW's, so that one learning rate does for both
        adam_b2=0.99,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(axes, params),
    )
    return optax.chain(clip, muon)


def descend(
    transform: optax.GradientTransformation,
    state: dict[str, Any],
    grads: Any,
    rate: jax.Array,
    decay: float | jax.Array,
) -> dict[str, Any]:
    """The next "params", "opt" and "ema" from those of `state`.

    rate: of the peak, as `rate` gives it.
    decay: of the average.
    """
    updates, opt = transform.update(grads, state["opt"], state["params"])
    updates = jax.tree.map(lambda u: u * rate, updates)  # the decay of AdamW is in them too
    params = optax.apply_updates(state["params"], updates)
    ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state["ema"], params)
    return {"params": params, "ema": ema, "opt": opt}
