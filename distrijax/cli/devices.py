"""The devices of `distrijax generate`: other processes to join, and the mesh that makes a picture."""

import argparse
import dataclasses
from math import gcd

from distrijax.cli.options import AXES
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import AUTO
from distrijax.runtime import processes

PROCESSES = ("coordinator", "num_processes", "process_id")


def join_processes(options: argparse.Namespace) -> None:
    """Join the other processes, if there are any. Call it before anything asks JAX for its devices."""
    named = {name: getattr(options, name) for name in PROCESSES if name in options}
    if options.distributed:
        if named:
            raise DistrijaxError(f"--distributed finds the other processes by itself; leave out {_flags(named)}")
        processes.initialize()
    elif len(named) == len(PROCESSES):
        processes.initialize(*named.values())
    elif named:
        missing = [name for name in PROCESSES if name not in named]
        raise DistrijaxError(f"{_flags(missing)}: missing; every process needs all of {_flags(PROCESSES)}")


def with_mode(options: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings with a note of who chooses the mode."""
    if "max_waiting" in options and settings.mode != AUTO:
        raise DistrijaxError(
            f"--max-waiting is about --mode {AUTO}, but the mode is {settings.mode}; add --mode {AUTO}"
        )
    if "mode" not in options:
        return settings
    return dataclasses.replace(settings, mode_chosen_by=AUTO if settings.mode == AUTO else None, upscale_mode=None)


def choose_devices(options: argparse.Namespace, settings: Settings, pictures: int) -> Parallel:
    """Return the devices that make a batch of `pictures`."""
    guided = settings.guidance_scale > 1
    max_waiting = Parallel.max_waiting if settings.max_waiting is None else settings.max_waiting
    if options.auto:
        named = [name for name in (*AXES, "emulate") if name in options]
        if named:
            raise DistrijaxError(f"--auto chooses among all devices; leave out {_flags(named)}, or --auto")
        auto = Parallel.auto(guided=guided, pictures=pictures)
        mode, warmup_steps = settings.mode, settings.warmup_steps
        return dataclasses.replace(auto, mode=mode, warmup_steps=warmup_steps, max_waiting=max_waiting)
    # A picture of --like that was made beside others can be made again alone.
    data = settings.data if "data" in options else gcd(settings.data, pictures)
    parallel = Parallel(
        data,
        settings.cfg,
        settings.patch,
        settings.mode,
        settings.warmup_steps,
        emulate=settings.emulate,
        max_waiting=max_waiting,
    )
    # The pipeline checks it too, but only once the model is loaded.
    parallel.check(pictures=pictures, guided=guided, because=f"guidance_scale is {settings.guidance_scale}")
    return parallel


def _flags(names: list[str] | tuple[str, ...] | dict[str, object]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)
