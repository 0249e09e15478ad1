"""Denoising steps to time: on a mesh, and one device's share of them.

A share is the program that one of N devices runs for its own rows and guidance branches, except for the transfers: what
the device would receive is a local copy of its own data, of the same shape. Nothing waits for a network, so shares
measure the arithmetic of an N-device step without N devices. The result is not a valid image.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel
from distrijax.parallel.transport import Edges, LocalCopies
from distrijax.sampling.inputs import LoopInputs
from distrijax.tools import loop
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload


def steps(workload: Workload, unet: UNet, parallel: Parallel) -> dict[str, TimedFunction]:
    """Return a step of each phase on these devices, compiled."""
    return _compiled(loop.random_call(workload, unet, parallel), parallel, workload.steps)


class CopiedInPlace(LocalCopies):
    """Local copies in memory of their own, as a transfer leaves them: XLA would otherwise compute with one for all."""

    def swap(self, edges: Edges) -> Edges:
        return lax.optimization_barrier(super().swap(edges))

    def gather(self, x: Array) -> Array:
        return lax.optimization_barrier(super().gather(x))


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """One device of `layout`, which is emulated, since the others may be absent.

    Attributes:
        whole: what all devices make together.
    """

    whole: Workload
    layout: Parallel

    @classmethod
    def of(cls, whole: Workload, devices: int, *, cfg: int = 1, mode: str = Parallel.mode) -> "DeviceShare":
        """Return the share of one of `devices`, of which the guidance branches take `cfg` groups if there are several.

        Raises:
            DistrijaxError: the workload cannot be split like that.
        """
        cfg = 1 if devices == 1 else cfg
        if devices < 1 or devices % cfg:
            nearest = cfg * max(1, devices)
            raise DistrijaxError(f"share is {devices}; it must be a multiple of cfg={cfg}, such as {nearest}")
        share = cls(whole, Parallel(cfg=cfg, patch=devices // cfg, mode=mode, emulate=True))
        share.validate()
        return share

    def validate(self) -> None:
        """Fail early if the image cannot be split over these devices."""
        self.whole.layout(self.layout)

    @property
    def slabs(self) -> SlabLayout:
        return self.whole.layout(self.layout)

    @property
    def own(self) -> Workload:
        """Its rows and guidance branches, as a workload of one device."""
        guided = self.whole.guided and self.layout.cfg == 1
        return dataclasses.replace(self.whole, height=self.slabs.slab * self.whole.vae_scale_factor, guided=guided)

    def call(self, unet: UNet) -> loop.LoopCall:
        """Return the call of the denoising program, on one device."""
        call = loop.random_call(self.own, unet, Parallel())
        alone = Parallel(mode=self.layout.mode, warmup_steps=0)
        changed = {"parallel": alone, "layout": self.slabs, "transport": CopiedInPlace(self.layout.patch)}
        return dataclasses.replace(call, static={**call.static, **changed})

    def steps(self, unet: UNet) -> dict[str, TimedFunction]:
        """Return its part of a step of each phase, compiled."""
        return _compiled(self.call(unet), self.layout, self.whole.steps)


def _compiled(call: loop.LoopCall, layout: Parallel, repeats: int) -> dict[str, TimedFunction]:
    functions: dict[str, TimedFunction] = {}
    before: loop.PhaseProgram | None = None
    for phase in loop.phases(layout):
        if before is not None:  # a phase starts from the carry that the one before leaves
            call = call.with_carry(before.executable(*_copied(call))[0])
        before = loop.compile_phase(call, phase)
        functions[phase.name] = _timed(before, call, repeats)
    return functions


def _timed(program: loop.PhaseProgram, call: loop.LoopCall, repeats: int) -> TimedFunction:
    seconds = program.trace_seconds + program.compile_seconds
    return TimedFunction(lambda inputs: program.executable(*inputs), lambda: _copied(call), repeats, seconds)


def _copied(call: loop.LoopCall) -> LoopInputs:
    """Return the inputs with a copy of the carry, which a call donates."""
    return call.with_carry(jax.tree.map(jnp.copy, call.carry)).inputs
