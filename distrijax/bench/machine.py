"""Where it was measured."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("distrijax", "jax", "jaxlib", "flax", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch", "diffusers")


def machine() -> dict[str, Any]:
    """Hardware and versions, for JSON. Packages that are not installed are left out."""
    devices = jax.devices()
    return {
        "devices": len(devices),
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,  # of other programs too
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
