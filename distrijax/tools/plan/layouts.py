"""Every way to use a number of devices: planned, ranked and set side by side."""

import dataclasses
from collections.abc import Callable, Sequence

from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.tools.plan import estimate
from distrijax.tools.plan.estimate import Plan, Request, layout_name
from distrijax.tools.plan.report import GB, MB, MS, assumptions, title

CLOSE = 5  # %: two estimates this close do not say which is faster, since the assumed rates are less exact


def layouts(devices: int, request: Request, base: Parallel) -> list[Parallel]:
    """Return the layouts worth planning, otherwise like `base`: with and without pictures and branches apart."""
    workload, most = request.workload, _most_slabs(request)
    return [
        dataclasses.replace(base, data=data, cfg=cfg, patch=devices // (data * cfg))
        for data in range(1, devices + 1)
        for cfg in range(1, workload.branches + 1)
        if devices % (data * cfg) == 0 and workload.pictures % data == 0 and devices // (data * cfg) <= most
    ]


def compare(
    devices: int, request: Request, base: Parallel, announce: Callable[[str], None] = lambda layout: None
) -> list[Plan]:
    """Plan all `layouts`.

    If there are fewer pictures than devices, the last plan is of one picture on each device, for comparison: it shows
    the highest throughput of these devices.

    Raises:
        DistrijaxError: there is no layout of this many devices.
    """
    wanted = [(request, layout) for layout in layouts(devices, request, base)]
    if not wanted:
        raise DistrijaxError(
            f"{devices} devices are too many: {_most_slabs(request)} can share a picture of {request.workload.height} "
            f"rows of pixels, twice as many with guidance; ask for fewer devices, a taller picture, or more pictures"
        )
    if request.workload.pictures % devices:
        many = dataclasses.replace(request, workload=dataclasses.replace(request.workload, pictures=devices))
        wanted.append((many, dataclasses.replace(base, data=devices, cfg=1, patch=1)))
    plans = []
    for each, layout in wanted:
        announce(layout_name(layout))
        plans.append(estimate.plan(each, layout))
    return plans


def ranked(plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans that fit and make as many pictures as the first, fastest first."""
    pictures = plans[0].request.workload.pictures
    same = [plan for plan in plans if plan.fits and plan.request.workload.pictures == pictures]
    return sorted(same, key=lambda plan: plan.picture_seconds)


def comparison(plans: Sequence[Plan]) -> str:
    """Return the layouts side by side, and which to take."""
    lines = [
        title(plans[0]),
        f"{'layout':<28}{'pictures':>9}{'memory GB':>10}{'received MB':>12}{'step ms':>9}{'waits %':>9}"
        f"{'denoising s':>13}{'an hour':>9}",
    ]
    for plan in plans:
        step = plan.phases[-1].step
        lines.append(
            f"{plan.name:<28}{plan.request.workload.pictures:>9}{plan.memory / GB:10.2f}{step.received / MB:12.1f}"
            f"{step.seconds * MS:9.2f}{100 * step.wait_share:9.2f}{plan.picture_seconds:13.2f}"
            f"{plan.pictures_per_hour:9.0f}{'' if plan.fits else '  does not fit'}"
        )
    lines += [f"{plan.name}: {plan.why}" for plan in plans if plan.why is not None]
    return "\n".join([*lines, "", *_recommendation(plans), "", *assumptions(plans[0])])


def _recommendation(plans: Sequence[Plan]) -> list[str]:
    if not (best := ranked(plans)):
        return ["none fits the card's memory: take more devices, or a larger card"]
    first, *others = best
    lines = [f"recommended: {first.name}, the first to finish ({first.picture_seconds:.2f} s, estimated)"]
    if others:
        later = 100 * (others[0].picture_seconds / first.picture_seconds - 1)
        close = "; so close that only a measurement can tell" if later < CLOSE else ""
        lines.append(f"  the next, {others[0].name}, takes {later:.1f} % longer{close}")
    most = max((p for p in plans if p.fits), key=lambda p: p.pictures_per_hour)
    if most.pictures_per_hour > first.pictures_per_hour:
        lines.append(
            f"most pictures an hour: {most.name}, {most.request.workload.pictures} at a time: "
            f"{most.pictures_per_hour:.0f}, but each takes {most.picture_seconds:.2f} s"
        )
    return lines


def _most_slabs(request: Request) -> int:
    workload = request.workload
    return -(-workload.latents[0] // workload.model.unet.row_multiple)
