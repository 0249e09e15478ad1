"""The devices of `distrijax generate`: other processes to join, and the mesh that makes a picture."""

import argparse
import dataclasses
from math import gcd

from distrijax.cli.options import AXES
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
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


def choose_devices(options: argparse.Namespace, settings: Settings, pictures: int) -> Parallel:
    """Return the devices that make a batch of `pictures`."""
    guided = settings.guidance_scale > 1
    if options.auto:
        named = [name for name in (*AXES, "emulate") if name in options]
        if named:
            raise DistrijaxError(f"--auto chooses among all devices; leave out {_flags(named)}, or --auto")
        auto = Parallel.auto(guided=guided, pictures=pictures)
        return dataclasses.replace(auto, mode=settings.mode, warmup_steps=settings.warmup_steps)
    # A picture of --like that was made beside others can be made again alone.
    data = settings.data if "data" in options else gcd(settings.data, pictures)
    parallel = Parallel(
        data, settings.cfg, settings.patch, settings.mode, settings.warmup_steps, emulate=settings.emulate
    )
    # The pipeline checks it too, but only once the model is loaded.
    parallel.check(pictures=pictures, guided=guided, because=f"guidance_scale is {settings.guidance_scale}")
    return parallel


def _flags(names: list[str] | tuple[str, ...] | dict[str, object]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)
