"""The denoising steps that are measured: their arguments, with random numbers for latents and text."""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distrijax import compiler_options
from distrijax.bench import weights
from distrijax.bench.timing import Work
from distrijax.checkpoint.component import Checkpoint as Model
from distrijax.compile import compile_with
from distrijax.denoise import Carry, Guidance, Steps
from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.parallel.mesh import Parallel
from distrijax.parallel.rows import Rows
from distrijax.pipelines import programs
from distrijax.pipelines.arguments import TOKENS
from distrijax.schedulers import EulerDiscreteScheduler

SCHEDULER = EulerDiscreteScheduler()  # all cost next to nothing beside the U-Net


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        height, width: of the picture, in pixels.
        dtype: of weights and arithmetic.
        guided: there is classifier-free guidance: two branches.
        pictures: in a batch.
        steps: that one dispatch takes, as one compiled scan. Times are of one of them.

    Raises:
        DistrijaxError: a value cannot be used.
    """

    model: Model
    height: int
    width: int
    dtype: str
    guided: bool = True
    pictures: int = 1
    steps: int = 2

    def __post_init__(self) -> None:
        factor = self.model.blueprints["vae"].config.scale_factor  # type: ignore[union-attr]
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < factor or value % factor:
                raise DistrijaxError(f"{name} is {value}; it must be a multiple of {factor} pixels")
        for name in ("pictures", "steps"):
            if getattr(self, name) < 1:
                raise DistrijaxError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    @property
    def latents(self) -> tuple[int, int]:
        """Rows and columns."""
        factor: int = self.model.blueprints["vae"].config.scale_factor  # type: ignore[union-attr]
        return self.height // factor, self.width // factor

    @property
    def branches(self) -> int:
        return 2 if self.guided and self.model.unet.time_cond_proj_dim is None else 1

    def unet(self, parallel: Parallel) -> UNet:
        """With its weights whole on every device."""
        arrays = weights.arrays(self.model, "unet", self.dtype, parallel.replicated)
        made: UNet = self.model.blueprints["unet"].build(arrays, self.dtype)
        return made

    def rows(self, parallel: Parallel) -> Rows:
        """How the latents' rows are dealt. Raises DistrijaxError where they are too few, or the mesh does not fit."""
        because = "it is off, or an input of this model"
        parallel.check(pictures=self.pictures, guided=self.branches == 2, because=because)
        if parallel.mode == "tensor":
            raise DistrijaxError("mode 'tensor' is not measured step by step; choose another, such as 'full_sync'")
        return parallel.rows(self.latents[0], self.model.unet.row_multiple)

    def json(self) -> dict[str, Any]:
        shapes = {"latents": [self.branches * self.pictures, *self.latents, self.model.unet.in_channels]}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "model"}
        return {"model": self.model.name, "random_weights": self.model.source is None} | fields | shapes


def text(case: Case) -> tuple[np.ndarray | None, ...]:
    """Random context, pooled vector and time ids of `UNet.condition`, [branches, B, ...], and LCM's guidance."""
    config, rng, lead = case.model.unet, np.random.default_rng(1), (case.branches, case.pictures)
    ids = 5 if case.model.index.get("requires_aesthetics_score") else 6
    pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    guidance = config.time_cond_proj_dim
    return (
        rng.standard_normal((*lead, TOKENS, config.cross_attention_dim), dtype=np.float32),
        rng.standard_normal((*lead, pooled), dtype=np.float32),
        np.full((*lead, ids), 1024, np.float32),
        rng.standard_normal((*lead, guidance), dtype=np.float32) if guidance else None,
    )


def arguments(case: Case, unet: UNet, parallel: Parallel) -> tuple[UNet, Carry, Steps, Any, Guidance]:
    """Of `programs.denoise` for its first steps, placed on the devices."""
    rows, (height, width) = case.rows(parallel), case.latents
    shape = case.pictures, height, width, case.model.unet.in_channels
    latents = rows.pad(np.random.default_rng(2).standard_normal(shape, dtype=np.float32), 1)
    schedule = SCHEDULER.schedule(max(case.steps, 30))[: case.steps]
    conditioning = jax.jit(partial(programs.condition, parallel=parallel.compiled))
    weights = ([-4.0, 5.0], [0.0, 1.0]) if case.branches == 2 else ([1.0], [1.0])
    return (
        unet,
        parallel.place(Carry(latents * schedule.init_noise_sigma, SCHEDULER.init_state(latents)), programs.CARRY),
        parallel.place(Steps(schedule.rows, schedule.timesteps, None), programs.STEPS),
        conditioning(unet, *parallel.place(text(case), programs.TEXT)),
        parallel.place(Guidance(*(np.asarray(x, np.float32) for x in weights)), programs.GUIDANCE),
    )


def works(case: Case, unet: UNet, parallel: Parallel) -> tuple[dict[str, Work], dict[str, float]]:
    """The program of each kind of step on these devices, compiled; and the seconds that took."""
    choices: dict[str, Any] = {"parallel": parallel.compiled, "rows": case.rows(parallel), "scheduler": SCHEDULER}
    function, groups = partial(programs.denoise, **choices), parallel.data * parallel.cfg
    args = arguments(case, unet, parallel)
    return compiled(function, args, displaces=parallel.displaces, groups=groups, steps=case.steps)


def compiled(
    function: Any, args: tuple[Any, ...], *, displaces: bool, groups: int, steps: int
) -> tuple[dict[str, Work], dict[str, float]]:
    """`function(unet, carry, ..., displaced=)` of either kind, compiled as the pipeline does it.

    Args:
        groups: of devices that share a picture's rows.
        steps: that a call takes.
    """
    unet, carry, *rest = args
    made: dict[str, Work] = {}
    seconds: dict[str, float] = {}
    for displaced in [False, True][: 1 + displaces]:
        start, name = time.perf_counter(), "displaced" if displaced else "synchronous"
        lowered = jax.jit(partial(function, displaced=displaced), donate_argnums=1).lower(unet, carry, *rest)
        platform = next(iter(jax.tree.leaves(unet)[0].devices())).platform
        program = compile_with(lowered, compiler_options.denoising(platform, carry.pieces, groups))
        seconds[name] = time.perf_counter() - start
        made[name] = _work(program, unet, carry, rest, steps)
        if displaces and not displaced:  # what a displaced step begins with is what a synchronous one leaves
            carry = program(unet, _copy(carry), *rest)[0]
    return made, seconds


def _work(program: Any, unet: UNet, carry: Carry, rest: list[Any], steps: int) -> Work:
    return Work(lambda fresh: program(unet, fresh, *rest), lambda: _copy(carry), steps)


def _copy(carry: Carry) -> Carry:  # a call uses it up
    return jax.tree.map(jnp.copy, carry)
