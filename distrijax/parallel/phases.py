"""The phases of a denoising run: consecutive steps that share a compiled program."""

import dataclasses
from typing import Protocol

from distrijax.parallel.exchange import OneDevice, SlabExchange
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import NOTHING_PERSISTS, Carried, Persistence
from distrijax.parallel.policies import FULL_SYNC, Policy
from distrijax.parallel.transport import MESH, Transport

RIDERS = 6
"""Number of leading layers whose stale halos are sent with the fresh latent rows, for which a step waits anyway. Too
little runs before them to hide the message with all other halos: 7 MB each way in SDXL at 1024x1024, 35 µs."""


class MakeExchange(Protocol):
    """Makes a step's exchange object."""

    def __call__(
        self, carried: Carried | None, persistence: Persistence = NOTHING_PERSISTS
    ) -> OneDevice | SlabExchange: ...


@dataclasses.dataclass(frozen=True)
class Phase:
    """The way the steps of one program exchange data.

    Attributes:
        name: "synchronous" or "displaced".
        policy: answers the layers' questions.
        successor: policy of the next phase, or its own if it is the last; decides what a step keeps for the next one.
        riders: number of leading layers whose stale halos are sent with the first fresh rows.
    """

    name: str
    policy: Policy
    successor: Policy
    riders: int = RIDERS

    def exchange(self, layout: SlabLayout, transport: Transport = MESH) -> MakeExchange:
        """Return a function that makes a step's exchange object from what the previous step kept."""

        def step(carried: Carried | None, persistence: Persistence = NOTHING_PERSISTS) -> OneDevice | SlabExchange:
            if layout.devices == 1:
                return OneDevice()
            return SlabExchange(self.policy, self.successor, self.riders, layout, transport, carried, persistence)

        return step


SYNCHRONOUS = Phase("synchronous", FULL_SYNC, FULL_SYNC)


def phases(policy: Policy, steps: int, warmup_steps: int) -> list[tuple[int, Phase]]:
    """Return the phases of `steps` denoising steps and the number of steps in each.

    A policy that uses values of the previous step needs a synchronous phase first: one step and `warmup_steps` more.
    """
    if not policy.carries:
        return [(steps, Phase("synchronous", policy, policy))]
    synchronous = min(steps, 1 + warmup_steps)
    warm_up, displaced = Phase("synchronous", FULL_SYNC, policy), Phase("displaced", policy, policy)
    both = (synchronous, warm_up), (steps - synchronous, displaced)
    return [(count, phase) for count, phase in both if count]
