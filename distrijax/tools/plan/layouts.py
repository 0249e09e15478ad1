"""Every way to use a number of devices, planned and ranked."""

import dataclasses
from collections.abc import Callable, Sequence

from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.tools.plan import estimate
from distrijax.tools.plan.estimate import Plan, Request, layout_name


def layouts(devices: int, request: Request, base: Parallel) -> list[Parallel]:
    """Return the layouts worth planning, otherwise like `base`: with and without pictures and branches apart."""
    workload, found = request.workload, []
    most = _most_slabs(request)
    for data in (n for n in range(1, devices + 1) if devices % n == 0 and workload.pictures % n == 0):
        for cfg in range(1, workload.branches + 1):
            patch, rest = divmod(devices // data, cfg)
            if rest == 0 and patch <= most:
                found.append(dataclasses.replace(base, data=data, cfg=cfg, patch=patch))
    return found


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
        many = dataclasses.replace(request.workload, pictures=devices)
        wanted.append(
            (dataclasses.replace(request, workload=many), dataclasses.replace(base, data=devices, cfg=1, patch=1))
        )
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


def _most_slabs(request: Request) -> int:
    workload = request.workload
    return -(-workload.latents[0] // workload.model.unet.row_multiple)
