"""Adding adapters to the weights of a model: in fp32 from the weights of the checkpoint, with one rounding at the end.

Small programs, one for each shape of weights, add one thing each. Ranks are padded or cut to the same size, and scales
are arguments, so that an adapter of any rank and weight runs what the first one compiled.
"""

import dataclasses
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.sharding import Sharding

from distrijax.adapters.kinds import Delta, Step
from distrijax.checkpoint.component import put
from distrijax.nn.conv import stored_axes
from distrijax.runtime.compile import Program

RANK = 32
"""Ranks that one product adds. Lower ones are padded with zeros, higher ones take several products."""

HADAMARD_RANKS = (16, 64, 256, 1024, 4096)
"""Sizes that the ranks of a LoHa are padded to: a product of sums has no parts to add one after the other."""

Wanted = Mapping[str, Sequence[tuple[Delta, float]]]
"""The changes of each parameter, by its path, and their weights."""


def _product(acc: Array, up: Array, down: Array, scale: Array, *, axes: str, sharding: Sharding) -> Array:
    return lax.with_sharding_constraint(_wide(acc) + scale * _multiply(up, down, axes), sharding)


def _hadamard(
    acc: Array, up: Array, down: Array, up_2: Array, down_2: Array, scale: Array, *, axes: str, sharding: Sharding
) -> Array:
    product = _multiply(up, down, axes) * _multiply(up_2, down_2, axes)
    return lax.with_sharding_constraint(_wide(acc) + scale * product, sharding)


def _kron(acc: Array, first: Array, second: Array, scale: Array, *, axes: str, sharding: Sharding) -> Array:
    product = jnp.einsum("ab,cd...->acbd...", first, second)
    shape = first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:]
    return lax.with_sharding_constraint(_wide(acc) + scale * _ordered(product.reshape(shape), axes), sharding)


def _whole(acc: Array, diff: Array, scale: Array, *, axes: str, sharding: Sharding) -> Array:
    return lax.with_sharding_constraint(_wide(acc) + scale * _ordered(diff, axes), sharding)


def _normalise(
    acc: Array, changed: Array, base: Array, magnitude: Array, scale: Array, *, axes: str, axis: str, sharding: Sharding
) -> Array:
    """Add what DoRA changes: `scale` times the way from the base weight to the one with the norms `magnitude`."""
    others = tuple(i for i, letter in enumerate(axes) if letter != axis)
    norm = jnp.sqrt(jnp.square(changed).sum(others, keepdims=True))
    wanted = jnp.expand_dims(magnitude, others) / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
    return lax.with_sharding_constraint(_wide(acc) + scale * (wanted * changed - _wide(base)), sharding)


def _round(acc: Array, *, dtype: str, sharding: Sharding) -> Array:
    return lax.with_sharding_constraint(acc.astype(dtype), sharding)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def _multiply(up: Array, down: Array, axes: str) -> Array:
    letters = "oihw"[: len(axes)]
    return jnp.einsum(f"or,r{letters[1:]}->{axes}", up, down, precision=lax.Precision.HIGHEST)


def _ordered(change: Array, axes: str) -> Array:
    return change.transpose(["oihw".index(letter) for letter in axes])


_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # with the names of their choices
    "product": (_product, "axes", "sharding"),
    "hadamard": (_hadamard, "axes", "sharding"),
    "kron": (_kron, "axes", "sharding"),
    "whole": (_whole, "axes", "sharding"),
    "normalise": (_normalise, "axes", "axis", "sharding"),
}


class Merge:
    """The programs that change weights, and which weights they have changed.

    What has been changed is remembered by module, not by pipeline: pipelines share modules.
    """

    def __init__(self) -> None:
        def programs(donated: Sequence[str]) -> dict[str, Program]:
            return {
                name: Program(f"merging ({name})", function, static=static, donated=donated)
                for name, (function, *static) in _FUNCTIONS.items()
            }

        self.first = programs(donated=())  # which read the checkpoint's weight, and must leave it as it is
        self.then = programs(donated=("acc",))
        self._prepared = set[Hashable]()
        self.round = Program("merging (round)", _round, static=("dtype", "sharding"))

    @property
    def all(self) -> tuple[Program, ...]:
        """Every program."""
        return *self.first.values(), *self.then.values(), self.round

    def apply(self, module: nnx.Module, wanted: Wanted) -> bool:
        """Change the weights of a module to the checkpoint's plus what is wanted; return whether any has changed."""
        changed = _CHANGED.setdefault(module, Changed({}, {})) if wanted else _CHANGED.get(module)
        if changed is None:
            return False
        paths = [path for path in {**changed.base, **wanted} if changed.by.get(path, ()) != tuple(wanted.get(path, ()))]
        axes = _axes(module) if paths else {}
        for path in paths:
            variable, deltas = _variable(module, path), tuple(wanted.get(path, ()))
            if not deltas:
                variable.set_value(changed.base.pop(path))
                del changed.by[path]
                continue
            base = changed.base.setdefault(path, variable.get_value())
            variable.set_value(self.sum(base, deltas, axes[path]))
            changed.by[path] = deltas
        return bool(paths)

    def sum(self, base: Array, deltas: Sequence[tuple[Delta, float]], axes: str) -> Array:
        """Return a weight with changes.

        Args:
            base: the weight of the checkpoint.
            deltas: the changes and their weights.
            axes: what the axes of `base` are: `io` for a linear layer, `hwio` or `ohwi` for a convolution, `o`.
        """
        total = base
        for delta, weight in deltas:
            if delta.norms is None:
                for step in delta.steps:
                    total = self._add(total, step, weight, base, axes)
                continue
            changed = base
            for step in delta.steps:
                changed = self._add(changed, step, 1.0, base, axes)
            magnitude = _placed(delta.norms.magnitude, base.sharding)
            choices = {"axes": axes, "axis": delta.norms.axis, "sharding": base.sharding}
            normalise = (self.first if total is base else self.then)["normalise"]
            total = normalise(total, changed, base, magnitude, np.float32(weight), **choices)
        return total if total.dtype == base.dtype else self.round(total, dtype=base.dtype.name, sharding=base.sharding)

    def _add(self, acc: Array, step: Step, weight: float, base: Array, axes: str) -> Array:
        """Add a step to `acc`, which is `base` at first."""
        scale, name = np.float32(step.scale * weight), step.program
        for arrays in _padded(step):
            rest = *(_placed(array, base.sharding) for array in arrays), scale
            choices: dict[str, Any] = {"axes": axes, "sharding": base.sharding}
            if acc is base and name == "product" and (key := (acc.shape, axes, base.sharding)) not in self._prepared:
                self._prepared.add(key)
                # Compiles beside the other: the next adapter may have a higher rank.
                wide = jax.ShapeDtypeStruct(acc.shape, jnp.float32, sharding=base.sharding)
                self.then[name].prepare(wide, *rest, **choices)
            acc = (self.first if acc is base else self.then)[name](acc, *rest, **choices)
        return acc


@dataclasses.dataclass
class Changed:
    """The changed weights of a module.

    Attributes:
        base: the checkpoint's, by path; they stay on the devices, so that they come back bit for bit.
        by: the changes and their weights.
    """

    base: dict[str, Array]
    by: dict[str, tuple[tuple[Delta, float], ...]]


_CHANGED: "weakref.WeakKeyDictionary[nnx.Module, Changed]" = weakref.WeakKeyDictionary()


def is_changed(module: nnx.Module) -> bool:
    """Return whether adapters have changed weights of a module, even if they were taken out again."""
    return module in _CHANGED


def keep(module: nnx.Module) -> None:
    """Make the changed weights of a module its own, and free the checkpoint's."""
    _CHANGED.pop(module, None)


def restore(module: nnx.Module) -> None:
    """Give a module the weights of the checkpoint, bit for bit."""
    changed = _CHANGED.pop(module, None)
    for path, base in {} if changed is None else changed.base.items():
        _variable(module, path).set_value(base)


def _padded(step: Step) -> list[tuple[np.ndarray, ...]]:
    """Return the arguments of one program or more, in fp32 and in sizes that many adapters share."""
    if step.program == "product":
        up, down = step.arrays
        starts = range(0, len(down), RANK)
        return [(_pad(up[:, i : i + RANK], 1, RANK), _pad(down[i : i + RANK], 0, RANK)) for i in starts]
    arrays = step.arrays
    if step.program == "hadamard":
        ranks = [len(down) for down in arrays[1::2]]
        size = next((size for size in HADAMARD_RANKS if size >= max(ranks)), max(ranks))
        arrays = tuple(_pad(array, 1 - i % 2, size) for i, array in enumerate(arrays))
    return [tuple(np.asarray(array, np.float32) for array in arrays)]


def _pad(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    shape = *array.shape[:axis], size, *array.shape[axis + 1 :]
    padded = np.zeros(shape, np.float32)
    padded[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return padded


def _placed(array: np.ndarray, like: Sharding) -> Array:
    """Put an array on every device that holds a part of a weight."""
    if isinstance(like, jax.sharding.NamedSharding):
        like = jax.sharding.NamedSharding(like.mesh, jax.sharding.PartitionSpec())
    return put(np.asarray(array, np.float32), like)


def _variable(module: nnx.Module, path: str) -> nnx.Variable:
    place: Any = module
    for key in path.split("."):
        place = place[int(key)] if key.isdigit() else getattr(place, key)
    return place


def _axes(module: nnx.Module) -> dict[str, str]:
    """Return what the axes of each parameter are, by its path."""
    orders = {".".join(map(str, path)): axes for path, axes in stored_axes(module).items()}
    axes = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = ".".join(map(str, path))
        if name in orders:
            axes[name] = "".join("ohwi"[orders[name].index(position)] for position in range(4))
        else:
            axes[name] = "io" if variable.get_value().ndim == 2 else "o"
    return axes
