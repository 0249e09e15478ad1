"""The runs of a picture that takes several: a base model and a refiner, a small size and a large one."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from distrijax.checkpoint import Checkpoint
from distrijax.checks import finite_number
from distrijax.pipelines.steps import call_schedule
from distrijax.tools import loop
from distrijax.tools.plan.estimate import Plan
from distrijax.tools.workload import Workload

GB = 1e9


def runs_of(
    workload: Workload,
    *,
    refiner: Checkpoint | None = None,
    switch_at: float = 0.8,
    upscale: float | None = None,
    strength: float = 0.35,
) -> list[Workload]:
    """Return the runs of a picture in order, each with its own number of steps.

    Args:
        workload: the picture as it would be made in one run.
        refiner: the model that takes the last steps of each size.
        switch_at: part of the noise schedule after which it does.
        upscale: how many times as high and wide the picture becomes, by a second part of the steps.
        strength: that part.
    """
    sizes: list[tuple[Workload, float | None]] = [(workload, None)]
    if upscale is not None:
        scale, factor = workload.vae_scale_factor, finite_number("upscale", upscale, 1, 8)
        height, width = (round(side * factor) * scale for side in workload.latents)
        sizes.append((dataclasses.replace(workload, height=height, width=width), strength))
    runs = []
    for size, part in sizes:
        parts = [(size, {})] if refiner is None else [
            (size, {"denoising_end": switch_at}),
            (dataclasses.replace(size, model=refiner), {"denoising_start": switch_at}),
        ]  # fmt: skip
        for run, cut in parts:
            begins = {} if part is None or "denoising_start" in cut else {"strength": part}
            schedule = call_schedule(loop.SCHEDULER, workload.steps, None, None, 0.0, **begins, **cut)
            runs.append(dataclasses.replace(run, steps=len(schedule)))
    return runs


def memory(plans: Sequence[Plan], *, offload: bool) -> int:
    """Return the most bytes that a device holds in any of these runs, with the weights of all their models.

    Args:
        offload: only the U-Net that is running is on the devices.
    """
    models = {plan.request.workload.model.name: plan.request.workload for plan in plans}

    def waiting(running: str) -> int:
        """Bytes of the models that do not run."""
        others = [workload for name, workload in models.items() if name != running]
        return sum(
            (w.model.parameters - offload * w.model.components["unet"].parameters) * jnp.dtype(w.dtype).itemsize
            for w in others
        )

    return max(plan.memory + waiting(plan.request.workload.model.name) for plan in plans)


def seconds(plans: Sequence[Plan]) -> float:
    """Return the seconds of denoising of all runs."""
    return sum(plan.picture_seconds for plan in plans)


def summary(plans: Sequence[Plan]) -> str:
    """Return what the runs of a picture take together."""
    lines = ["the whole picture (times estimated)"]
    for plan in plans:
        run = plan.request.workload
        what = f"{run.model.name}, {run.height}x{run.width}, {run.steps} steps"
        lines.append(f"  {what:<60}{plan.picture_seconds:8.2f} s{plan.memory / GB:8.2f} GB")
    lines.append(f"  {'all':<60}{seconds(plans):8.2f} s")
    card = plans[0].request.card.memory
    for what, offload in (("memory of each device", False), ("with one U-Net at a time (offload)", True)):
        needed = memory(plans, offload=offload)
        lines.append(f"  {what:<60}{'':10}{needed / GB:8.2f} GB{'' if needed <= 0.95 * card else ': TOO MUCH'}")
    return "\n".join(lines)
