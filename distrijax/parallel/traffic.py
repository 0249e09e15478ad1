"""What a device sends in a step, and what it holds between steps: counted, not measured, without weights.

The program of the denoising loop is traced for a mesh of devices that need not exist, and its collectives are added up:
what is counted is what runs. One device's share, the same for all:

- a halo goes to the two neighbours: each edge is sent once and received once. The first device and the last close the
  ring, and ignore what they get from each other;
- of a gather over N devices, each receives N - 1 pieces, and sends its own N - 1 times (a ring passes on others' pieces
  instead: the same number of bytes);
- a sum over N devices runs as two such gathers of an N-th each. The moments of group norms are one, with each device's
  at its own place; over the 2 devices of the guidance branches, each sends all of it, and receives as much.
- the fresh rows of latents, for which a step waits, take the stale halos of the first layers along.

A message is one collective as the program has it; XLA may still merge some.
"""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.denoise import Carry, Guidance, Steps
from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.nn.build import abstract
from distrijax.parallel.mesh import AXES, Parallel
from distrijax.parallel.slabs import LATENTS
from distrijax.parallel.wire import AXIS
from distrijax.pipelines import programs
from distrijax.schedulers import EulerDiscreteScheduler, Scheduler

KINDS = {
    "halos": "halos of convolutions",
    "moments": "moments of group norms",
    "tokens": "keys and values",
    "latents": "fresh latents, first halos",
    "guidance": "guidance branches",
}
_SILENT = {"axis_index", "pvary", "pcast"}  # name an axis, and send nothing along it
MB = 1e6


@dataclasses.dataclass(frozen=True)
class Sent:
    """What a device exchanges in a step."""

    messages: int = 0
    elements_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one device. By kind: `halos`, `moments`, `tokens` (keys and values), `latents`, `guidance`.

    Attributes:
        branches: guidance branches that the device computes.
        synchronous: what it exchanges in a synchronous step.
        displaced: the same in a displaced step; empty where no step is displaced.
        carry: bytes that it holds from one displaced step to the next. `latents` are those of its rows, with what the
            scheduler remembers of them.
    """

    parallel: Parallel
    branches: int
    synchronous: dict[str, Sent]
    displaced: dict[str, Sent]
    carry: dict[str, int]

    @property
    def carry_bytes(self) -> int:
        return sum(self.carry.values())

    @property
    def carry_bytes_per_branch(self) -> float:
        return self.carry_bytes / self.branches

    def step(self, *, displaced: bool) -> Sent:
        """All kinds of a step together."""
        return sum((self.displaced if displaced else self.synchronous).values(), start=Sent())

    def table(self) -> str:
        """For people."""
        p = self.parallel
        devices = "device" if p.size == 1 else f"devices (data={p.data} x cfg={p.cfg} x patch={p.patch})"
        lines = [f"{p.size} {devices}, mode {p.mode}; each of them"]
        for name, kinds in (("synchronous", self.synchronous), ("displaced", self.displaced)):
            if not kinds:
                continue
            lines.append(f"  {f'in a {name} step':<26}{'sends':>12}{'receives':>12}{'messages':>10}")
            rows = [(KINDS[kind], sent) for kind, sent in kinds.items() if sent.messages]
            for label, sent in [*rows, ("together", self.step(displaced=kinds is self.displaced))]:
                lines.append(
                    f"    {label:<24}{sent.bytes_sent / MB:>9.3f} MB{sent.bytes_received / MB:>9.3f} MB"
                    f"{sent.messages:>10}"
                )
        lines.append("  carries from step to step")
        rows_held = [(KINDS[kind], size) for kind, size in self.carry.items() if size and kind != "latents"]
        for label, held in [*rows_held, ("latents", self.carry["latents"]), ("together", self.carry_bytes)]:
            lines.append(f"    {label:<24}{held / MB:>9.3f} MB")
        if self.branches > 1:
            lines.append(f"    {'for a guidance branch':<24}{self.carry_bytes_per_branch / MB:>9.3f} MB")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


class _Imagined(Parallel):
    """Devices that need not be there: programs can be traced for them, and not run."""

    def _check_devices(self) -> None:
        pass

    @cached_property
    def mesh(self) -> Any:
        return AbstractMesh((self.data, self.cfg, self.patch), AXES, axis_types=(AxisType.Auto,) * 3)


def traffic(
    config: UNetConfig,
    parallel: Parallel,
    dtype: DTypeLike = jnp.bfloat16,
    *,
    height: int | None = None,
    width: int | None = None,
    guided: bool = True,
    pictures: int = 1,
    scheduler: Scheduler | None = None,
) -> Traffic:
    """What each device of `parallel` exchanges in a step of this U-Net, and carries to the next. Full SDXL takes 5 s.

    Args:
        parallel: with `emulate=True`, of any size; real devices exchange and carry the same.
        dtype: of the U-Net.
        height, width: of the latents, an eighth of the picture's; by default what the U-Net was trained on.
        guided: there is classifier-free guidance.
        pictures: made at a time, on all devices together.

    Raises:
        DistrijaxError: there is nothing that could be counted so.
    """
    if parallel.mode == "tensor":
        raise DistrijaxError(
            "what devices send in mode 'tensor' is up to the compiler; choose another mode to count it"
        )
    parallel.check(pictures=pictures, guided=guided)
    chosen = {name: getattr(parallel, name) for name in (*AXES, "mode", "warmup_steps")}
    imagined, rows = _Imagined(**chosen), parallel.rows(height or config.sample_size, config.row_multiple)
    branches = 2 if guided else 1
    scheduler = scheduler or EulerDiscreteScheduler()

    def blank(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.float32)

    unet = abstract(UNet, config, dtype)
    # The text's width and length do not matter here, nor how many of the added numbers are sizes.
    sizes = config.addition_time_embed_dim
    cond = jax.eval_shape(
        lambda *args: programs.condition(*args, parallel=imagined),
        unet,
        blank(branches, pictures, 1, config.cross_attention_dim),
        blank(branches, pictures, config.projection_class_embeddings_input_dim - sizes),
        blank(branches, pictures, 1),
        blank(branches, pictures, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
    )
    latents = blank(pictures, rows.slab * rows.patches, width or config.sample_size, config.in_channels)
    schedule = scheduler.schedule(4)[:1]
    noise = blank(1, *latents.shape) if schedule.draws.any() else None
    steps = Steps(schedule.rows, schedule.timesteps, noise)
    carry = Carry(latents, jax.eval_shape(scheduler.init_state, latents))
    guidance = Guidance(blank(branches), blank(branches))
    sent: dict[bool, dict[str, Sent]] = {False: {}, True: {}}
    for displaced in [False, True][: 1 + parallel.displaces]:
        program, after = jax.make_jaxpr(
            lambda *args, displaced=displaced: programs.denoise(
                *args, parallel=imagined, rows=rows, scheduler=scheduler, displaced=displaced
            )[0],
            return_shape=True,
        )(unet, carry, steps, cond, guidance)
        sent[displaced] = _counted(program.jaxpr, {"data": parallel.data, "cfg": parallel.cfg, AXIS: parallel.patch})
        carry = after
    pieces = carry.pieces or None
    own = parallel.data * parallel.patch
    held = {kind: _bytes(getattr(pieces, kind, ())) // parallel.size for kind in ("halos", "moments", "tokens")}
    held["halos"] += _bytes(getattr(pieces, "first", ())) // parallel.size
    held["latents"] = _bytes((carry.latents, carry.state)) // own
    return Traffic(parallel, branches // parallel.cfg, sent[False], sent[True], held)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _counted(program: Any, sizes: dict[str, int]) -> dict[str, Sent]:
    """The collectives of a traced program over mesh axes of these sizes. A scan's body counts once: it is one step."""
    counts = dict.fromkeys(KINDS, Sent())
    for equation in _equations(program):
        name, named = equation.primitive.name, equation.params.get("axis_name", equation.params.get("axes"))
        axes = named if isinstance(named, tuple) else (named,)
        others = prod(sizes[axis] for axis in axes if axis in sizes) - 1
        if others == 0 or name in _SILENT:
            continue
        own = [variable.aval for variable in equation.invars]
        copies: float = 1
        if name == "ppermute":
            kind = "latents" if LATENTS in str(equation.source_info.name_stack).split("/") else "halos"
        elif name in ("all_gather", "all_gather_invariant"):
            kind = "tokens" if own[0].ndim == 3 else "moments"  # [t, B, C], the moments otherwise
            copies = others
        elif name in ("psum", "psum_invariant") and len(axes) == 1:
            kind = "guidance" if axes == ("cfg",) else "moments"
            copies = 2 * others / (others + 1)
        else:
            raise NotImplementedError(f"traffic is not counted for {name} over {axes}")
        elements, size = round(copies * sum(x.size for x in own)), round(copies * _bytes(own))
        counts[kind] += Sent(1, elements, size, size)
    return counts


def _equations(program: Any) -> Iterator[Any]:
    """Of a traced program and of those inside it."""
    for equation in program.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
