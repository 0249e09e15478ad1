"""The work of one of N devices, on one: so the compute side of an N-device speed-up is measured without N devices.

It is the program that each of N devices runs, for its own rows and guidance branches, but for the transfers: what a
device would receive is a copy of its own, of the same shape. Nothing waits for a network, and the numbers are not a
picture's.
"""

import dataclasses
from typing import Any

from jax import Array, lax

from distrijax.bench.step import SCHEDULER, Case, arguments, compiled
from distrijax.bench.timing import Work
from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.parallel.mesh import Parallel
from distrijax.parallel.rows import Rows
from distrijax.parallel.wire import Copies, Edges
from distrijax.pipelines import programs


class Delivered(Copies):
    """Copies in memory of their own, as a transfer leaves them: XLA would else compute with one in place of N."""

    def swap(self, edges: Edges) -> Edges:
        return lax.optimization_barrier(super().swap(edges))

    def gather(self, x: Array) -> Array:
        return lax.optimization_barrier(super().gather(x))


@dataclasses.dataclass(frozen=True)
class Share:
    """One device of `layout`.

    Attributes:
        whole: what all of them make together.
        layout: of one picture; emulated, since the devices need not be there.

    Raises:
        DistrijaxError: the picture cannot be dealt so.
    """

    whole: Case
    layout: Parallel

    def __post_init__(self) -> None:
        assert self.rows.slab > 0  # asks for them: before any weights are made

    @property
    def rows(self) -> Rows:
        return self.whole.rows(self.layout)

    @property
    def case(self) -> Case:
        """Its own rows and branches, as a picture of their own."""
        factor = self.whole.height // self.whole.latents[0]
        guided = self.whole.guided and self.layout.cfg == 1
        return dataclasses.replace(self.whole, height=self.rows.slab * factor, guided=guided)

    def program(self, *args: Any, displaced: bool) -> Any:
        """`programs.denoise` of its own arguments."""
        alone = Parallel(mode=self.layout.mode, warmup_steps=0)
        choices: dict[str, Any] = {"parallel": alone, "rows": self.rows, "wire": Delivered(self.layout.patch)}
        return programs.denoise(*args, scheduler=SCHEDULER, displaced=displaced, **choices)

    def arguments(self, unet: UNet) -> tuple[Any, ...]:
        return arguments(self.case, unet, Parallel())

    def works(self, unet: UNet) -> tuple[dict[str, Work], dict[str, float]]:
        """Its part in each kind of step, compiled; and the seconds that took."""
        args, displaces = self.arguments(unet), self.layout.displaces
        return compiled(self.program, args, displaces=displaces, groups=1, steps=self.whole.steps)


def layout(devices: int, *, cfg: int = 1, mode: str = Parallel.mode) -> Parallel:
    """So many devices that need not be there, for one picture.

    Raises:
        DistrijaxError: they cannot be dealt so.
    """
    if devices < 1 or devices % cfg:
        raise DistrijaxError(f"share is {devices}; it must be a multiple of cfg={cfg}, such as {cfg * max(1, devices)}")
    return Parallel(cfg=cfg, patch=devices // cfg, mode=mode, emulate=True)
