"""The kinds of adapters: the tensors of each, and its formula for the change of a weight.

A formula returns `Step`s, each the work of one compiled program (`distrijax.adapters.merge`), from arrays with torch's
order of axes: [O, I] for linear layers, [O, I, H, W] for convolutions, [O] for vectors.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from distrijax.checkpoint.tensors import Shape

Arrays = Mapping[str, np.ndarray]


class Step(NamedTuple):
    """Something to add to a weight.

    Attributes:
        program: `product`, `hadamard`, `kron` or `whole`.
        arrays: its arguments.
        scale: what the result is multiplied by.
    """

    program: str
    arrays: tuple[np.ndarray, ...]
    scale: float


@dataclasses.dataclass(frozen=True)
class Norms:
    """DoRA (arXiv 2402.09353): the norms that the changed weight's rows or columns are given.

    Attributes:
        magnitude: norm of each row or column, a vector.
        axis: `o` if each output channel has a norm, `i` if each input channel has.
    """

    magnitude: np.ndarray
    axis: str


@dataclasses.dataclass(frozen=True, eq=False)
class Delta:
    """The change of one parameter by one adapter at weight 1.

    Attributes:
        layer: diffusers' name of the layer.
        steps: what is added.
        norms: for DoRA.
    """

    layer: str
    steps: tuple[Step, ...]
    norms: Norms | None = None


class Scaling(NamedTuple):
    """What decides the scale of a layer besides its rank.

    Attributes:
        alpha: None if the file has none, or 0.
        rank_stabilised: divide by the root of the rank (arXiv 2312.03732).
    """

    alpha: float | None
    rank_stabilised: bool = False

    def of(self, rank: int) -> float:
        """Return the scale: 1 without alpha, as in all programs."""
        if not self.alpha:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


class MisfitError(Exception):
    """A tensor does not have the shape that its layer and the tensors beside it need."""

    def __init__(self, tensor: str, shape: Shape, need: object):
        super().__init__(tensor, shape, need)
        self.tensor, self.shape, self.need = tensor, shape, need


class Kind(NamedTuple):
    """A kind of adapter.

    Attributes:
        needs: the tensors that it always has; the first one tells the kind.
        may: those that it may have. Norms of DoRA and `alpha` may be beside any.
        steps: the formula.
    """

    needs: tuple[str, ...]
    may: tuple[str, ...]
    steps: Callable[[Arrays, Shape, Scaling], list[Step]]


def lora(tensors: Arrays, shape: Shape, scaling: Scaling) -> list[Step]:
    """Return up·down (arXiv 2106.09685). A convolution's kernel is in `down`, or in Tucker's form in `mid`."""
    down, up = tensors["down"], tensors["up"]
    rank = up.size // shape[0]  # down has as many rows, or `mid` lies between
    if "mid" in tensors:
        mid = fit("mid", tensors["mid"], (rank, len(down), *shape[2:]))
        down = fit("down", down, (len(down), shape[1]))
        down = np.einsum("mn...,ni->mi...", *_wide(mid, down))
    product = fit("up", up, (shape[0], rank)), fit("down", down, (rank, *shape[1:]))
    return [Step("product", product, scaling.of(rank))]


def loha(tensors: Arrays, shape: Shape, scaling: Scaling) -> list[Step]:
    """Return (w1_a·w1_b)∘(w2_a·w2_b) (arXiv 2108.06098)."""
    factors: list[np.ndarray] = []
    rank = len(tensors["hada_w1_b"])
    for number in "12":
        a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
        core, own = tensors.get(f"hada_t{number}"), len(b)
        if core is None:
            a = fit(f"hada_w{number}_a", a, (shape[0], own))
            b = fit(f"hada_w{number}_b", b, (own, math.prod(shape[1:]))).reshape(own, *shape[1:])
        else:
            core = fit(f"hada_t{number}", core, (len(a), own, *shape[2:]))
            a, b = fit(f"hada_w{number}_a", a, (len(a), shape[0])).T, fit(f"hada_w{number}_b", b, (own, shape[1]))
            b = np.einsum("mn...,ni->mi...", *_wide(core, b))
        factors += a, b
    return [Step("hadamard", tuple(factors), scaling.of(rank))]


def lokr(tensors: Arrays, shape: Shape, scaling: Scaling) -> list[Step]:
    """Return the Kronecker product of w1 and w2, each whole or of two factors (LyCORIS, arXiv 2309.14859)."""
    ranks = []
    if "lokr_w1" in tensors:
        first = tensors["lokr_w1"]
    else:
        a, b = _wide(_present(tensors, "lokr_w1_a"), _present(tensors, "lokr_w1_b"))
        ranks.append(len(b))
        first = fit("lokr_w1_a", a, (len(a), len(b))) @ b
    if first.ndim != 2 or shape[0] % first.shape[0] or shape[1] % first.shape[1]:
        raise MisfitError("lokr_w1", first.shape, f"divisors of {list(shape[:2])}")
    need = shape[0] // first.shape[0], shape[1] // first.shape[1], *shape[2:]
    if "lokr_w2" in tensors:
        second = fit("lokr_w2", tensors["lokr_w2"], need)
    else:
        a, b = _wide(_present(tensors, "lokr_w2_a"), _present(tensors, "lokr_w2_b"))
        ranks.append(len(b))
        if "lokr_t2" in tensors:
            core = fit("lokr_t2", tensors["lokr_t2"], (len(a), len(b), *shape[2:]))
            a, b = fit("lokr_w2_a", a, (len(a), need[0])), fit("lokr_w2_b", b, (len(b), need[1]))
            second = np.einsum("mn...,mo,ni->oi...", core.astype(np.float32), a, b)
        else:
            a = fit("lokr_w2_a", a, (need[0], len(b)))
            second = (a @ fit("lokr_w2_b", b, (len(b), math.prod(need[1:])))).reshape(need)
    # Two whole matrices have no rank, and alpha means nothing.
    return [Step("kron", (first, second), scaling.of(ranks[0]) if ranks else 1.0)]


def whole(name: str) -> Callable[[Arrays, Shape, Scaling], list[Step]]:
    """Return the formula of a difference that is stored as it is."""
    return lambda tensors, shape, scaling: [Step("whole", (fit(name, tensors[name], shape),), 1.0)]


def bias(tensors: Arrays, shape: Shape, scaling: Scaling) -> list[Step]:
    """Return PEFT's bias of `up`, which is scaled as the weight is."""
    scale = scaling.of(len(tensors["down"])) if "down" in tensors else 1.0
    return [Step("whole", (fit("up_bias", tensors["up_bias"], shape),), scale)]


KINDS: dict[str, tuple[Kind, ...]] = {
    "weight": (
        Kind(("down", "up"), ("mid",), lora),
        Kind(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2"), loha),
        Kind(("lokr_w1",), ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), lokr),
        Kind(("lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), lokr),
        Kind(("diff",), (), whole("diff")),
        Kind(("w_norm",), (), whole("w_norm")),
    ),
    "bias": (
        Kind(("up_bias",), ("down", "up"), bias),
        Kind(("diff_b",), (), whole("diff_b")),
        Kind(("b_norm",), (), whole("b_norm")),
    ),
}
"""The kinds for each parameter of a layer."""


def norms(tensors: Arrays, shape: Shape) -> Norms | None:
    """Return the norms of DoRA: PEFT's of each output channel, LyCORIS' of the channels that its shape tells."""
    for name in ("magnitude", "dora_scale"):
        if name in tensors:
            array = tensors[name]
            if name == "dora_scale" and array.ndim > 1 and array.shape[0] == 1 and shape[0] > 1:
                return Norms(fit(name, array, (1, shape[1])).reshape(-1), "i")
            return Norms(fit(name, array.reshape(-1), shape[:1]), "o")
    return None


def fit(name: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    """Return `array` in `shape`, which may have other last axes of size 1: some files keep 1x1 convolutions flat."""
    if _trimmed(array.shape) != _trimmed(shape):
        raise MisfitError(name, array.shape, list(shape))
    return array.reshape(shape)


def _trimmed(shape: Shape) -> Shape:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _present(tensors: Arrays, name: str) -> np.ndarray:
    if name not in tensors:
        raise MisfitError(name, (), "to be there")
    return tensors[name]


def _wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float32) for array in arrays]
