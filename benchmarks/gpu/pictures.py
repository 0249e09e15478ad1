"""Whole pictures, and how long a new process takes to its first."""

import os
from pathlib import Path

import jax

from distrijax import Parallel
from distrijax.tools.bench.measure import measure_pictures
from distrijax.tools.bench.timing import RunSettings
from gpu.results import Json
from gpu.setup import Setup


def first(setup: Setup, *, again: bool) -> Json:
    """Return the seconds to a process's first picture by part, and of pictures after it.

    Args:
        again: the programs were compiled by an earlier process and kept on disk.
    """
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "pictures"
    if again and not folder.exists():
        raise RuntimeError("no process of this run has made a first picture before; run that stage too")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    count, runs = (6, 1) if setup.tiny else (30, 3)
    report = measure_pictures(setup.workload(1024), Parallel(), RunSettings(runs), count=count)
    prefix = "to the first picture, "
    return {
        "steps": count,
        "to_first_picture": {name.removeprefix(prefix): round(x, 2) for name, x in report.facts.items()},
        "picture": {line.name: round(line.median, 4) for line in report.measurements},
    }
