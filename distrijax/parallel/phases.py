"""The phases of a denoising run: consecutive steps that one compiled program takes."""

import dataclasses
from collections.abc import Callable

from distrijax.parallel.exchange import OneDevice, SlabExchange
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import Carried
from distrijax.parallel.policies import FULL_SYNC, Policy
from distrijax.parallel.transport import MESH, Transport

RIDERS = 6
"""Layers whose stale halos travel with the fresh rows of latents, for which a step has to wait anyway. Nothing before
these layers is long enough to hide the message with all other halos: 7 MB each way in SDXL at 1024x1024, 35 µs."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """How the steps of one program exchange what they need.

    Attributes:
        name: for people: "synchronous" or "displaced".
        policy: answers the layers' questions.
        successor: the policy of the phase that follows, or its own; it decides what a step leaves for the next one.
        riders: layers whose stale halos travel with the first fresh rows.
    """

    name: str
    policy: Policy
    successor: Policy
    riders: int = RIDERS

    def exchange(
        self, layout: SlabLayout, transport: Transport = MESH
    ) -> Callable[[Carried | None], OneDevice | SlabExchange]:
        """Return what makes the exchange object of one step from what the step before left."""
        if layout.devices == 1:
            return lambda carried: OneDevice()
        return lambda carried: SlabExchange(self.policy, self.successor, self.riders, layout, transport, carried)


SYNCHRONOUS = Phase("synchronous", FULL_SYNC, FULL_SYNC)


def phases(policy: Policy, steps: int, warmup_steps: int) -> list[tuple[int, Phase]]:
    """Return the phases of `steps` denoising steps and the number of steps in each.

    A policy that uses what was made a step ago needs a synchronous phase first: one step and `warmup_steps` more.
    """
    if not policy.carries:
        return [(steps, Phase("synchronous", policy, policy))]
    synchronous = min(steps, 1 + warmup_steps)
    warm_up, displaced = Phase("synchronous", FULL_SYNC, policy), Phase("displaced", policy, policy)
    both = (synchronous, warm_up), (steps - synchronous, displaced)
    return [(count, phase) for count, phase in both if count]
