"""Which mode `auto` takes for a picture on these devices, and why."""

import dataclasses
from functools import lru_cache
from typing import Self

import numpy as np
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.parallel.auto.estimate import Estimate, Share, estimate
from distrijax.parallel.auto.questions import questions
from distrijax.parallel.cards import CARDS, DEVICE_KINDS, Rates
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import AUTO, BY_EXACTNESS, MODES


@dataclasses.dataclass(frozen=True)
class Choice:
    """The devices with the mode of a picture.

    Attributes:
        why: what `auto` chose and for which reason, in a line; None if the mode was given.
    """

    parallel: Parallel
    why: str | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """The cards that share a picture.

    Attributes:
        network: whether they are in several machines.
    """

    name: str
    rates: Rates
    network: bool = False

    @classmethod
    def of(cls, kind: str, dtype: str, *, network: bool = False) -> Self | None:
        """Return a machine of cards that JAX calls `kind`, or None if they are not in the table."""
        card = CARDS[DEVICE_KINDS[kind]] if kind in DEVICE_KINDS else None
        return None if card is None else cls(card.name, Rates.of(card, dtype), network)


def choose(
    parallel: Parallel,
    config: UNetConfig,
    *,
    height: int,
    width: int,
    pictures: int = 1,
    guided: bool = True,
    dtype: DTypeLike,
    machine: Machine | None = None,
) -> Choice:
    """Return the mode of a picture: the given one or, for "auto", the most exact that waits little enough.

    Every process comes to the same result, since all know the same devices; those of several processes count as several
    machines.

    Args:
        height, width: of the latents.
        pictures: of a batch, on all devices together.
        guided: whether there are two guidance branches.
        machine: the cards to choose for; by default the devices themselves.
    """
    if parallel.mode != AUTO:
        return Choice(parallel)

    def chosen(mode: str, why: str) -> Choice:
        return Choice(dataclasses.replace(parallel, mode=mode), f"mode auto takes {mode}: {why}")

    exact, *_, least = BY_EXACTNESS
    if parallel.patch == 1:
        return chosen(exact, "no devices share a picture, so none waits")
    if machine is None:
        if parallel.emulate:
            return chosen(exact, "virtual devices have no transfers to wait for")
        devices = parallel.mesh.devices
        kinds = sorted({device.device_kind for device in devices.flat})
        if devices.flat[0].platform == "cpu":
            return chosen(exact, "CPUs have no transfers to hide")
        if len(kinds) > 1 or kinds[0] not in DEVICE_KINDS:
            return chosen(least, f"it waits least, and nothing is known of the speed of {' with '.join(kinds)}")
        groups = devices.reshape(-1, parallel.patch)
        network = any(len({device.process_index for device in group}) > 1 for group in groups)
        machine = Machine.of(kinds[0], np.dtype(dtype).name, network=network)
        assert machine is not None
    layout = parallel.layout(height, config.row_multiple)
    share = Share(
        height=height,
        rows=layout.slab,
        columns=width,
        pictures=max(1, pictures // parallel.data) * (2 // parallel.cfg if guided else 1),
        devices=parallel.patch,
        itemsize=np.dtype(dtype).itemsize,
        branches_apart=parallel.cfg > 1,
        network=machine.network,
    )
    found = {mode: estimates(config, mode, share, machine.rates).share for mode in BY_EXACTNESS}
    within = [mode for mode in BY_EXACTNESS if found[mode] <= parallel.max_waiting]
    mode = within[0] if within else min(found, key=found.__getitem__)
    others = "".join(f", {name} {share:.1%}" for name, share in found.items() if name != mode)
    bound = f"max_waiting is {parallel.max_waiting:g}" + ("" if within else ", and none waits so little")
    where = f"on {machine.name}" + (", across a network," if machine.network else "")
    return chosen(mode, f"{where} it waits {found[mode]:.1%} of a step{others} (estimated; {bound})")


@lru_cache(maxsize=256)
def estimates(config: UNetConfig, mode: str, share: Share, rates: Rates) -> Estimate:
    """Return how long a step of this mode takes and waits."""
    return estimate(tuple(questions(config)), MODES[mode], share, rates)
