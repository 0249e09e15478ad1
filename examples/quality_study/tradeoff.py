"""The figure that sets quality against speed: a point for each mode, at the costs of two sizes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrijax import DistrijaxError
from quality_study.figures import EXACT, look, standard_error
from quality_study.results import Measurement, Measurements
from quality_study.settings import MODES_COMPARED, ORIGINAL, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Costs = Mapping[str, Any]
"""What `docs/measurements/modes.py` writes: seconds of a step by size, mode and phase."""


def read_costs(path: Path) -> Costs:
    """Read the costs of the modes.

    Raises:
        DistrijaxError: the file is not one that `docs/measurements/modes.py` wrote.
    """
    try:
        costs = json.loads(path.read_text())
        for size in costs["sizes"].values():
            float(size["one device"]["synchronous"])
        int(costs["patch"]), int(costs["cfg"]), str(costs["card"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DistrijaxError(
            f"--costs: {path} cannot be used ({type(error).__name__}: {error}); docs/measurements/modes.py --compile "
            "writes such a file"
        ) from None
    return costs


def speed_up(costs: Costs, size: str, setting: Setting) -> float | None:
    """Return how many times faster than one device a picture is in a setting's mode, steps and warm-up, if known."""
    steps, seconds = costs["sizes"][size], costs["sizes"][size].get(setting.mode)
    if seconds is None:
        return None
    synchronous = setting.steps if setting.warmup is None else min(setting.steps, 1 + setting.warmup)
    phases = seconds.get("synchronous", 0.0), seconds.get("displaced", seconds.get("synchronous", 0.0))
    whole = synchronous * phases[0] + (setting.steps - synchronous) * phases[1]
    return setting.steps * steps["one device"]["synchronous"] / whole


def tradeoff(measurements: Measurements, base: Setting, costs: Costs, path: Path) -> bool:
    """Draw PSNR and SSIM over the estimated speed-up; return whether there was anything to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = [base.but(mode=mode, patch=costs["patch"]) for mode in MODES_COMPARED]
    measured = {s: measurements[s] for s in settings if s in measurements and measurements[s].psnr}
    sizes = [size for size in costs["sizes"] if any(speed_up(costs, size, s) for s in measured)]
    if not sizes:
        return False
    figure, axes = pyplot.subplots(2, len(sizes), figsize=(6.5 * len(sizes), 9), dpi=100, layout="constrained")
    devices = costs["cfg"] * costs["patch"]
    for column, size in zip(axes.reshape(2, -1).T, sizes, strict=True):
        points = {s: (x, m) for s, m in measured.items() if (x := speed_up(costs, size, s)) is not None}
        _panel(column[0], {s: (x, *_psnr(m)) for s, (x, m) in points.items()}, higher=True)
        _panel(column[1], {s: (x, *_distance(m)) for s, (x, m) in points.items()}, higher=False)
        column[0].set_title(f"costs of {size}x{size}", fontsize=11)
        column[0].set_ylabel("PSNR against one device, dB")
        column[1].set_ylabel("1 - SSIM against one device")
        column[1].set_xlabel(f"speed-up on {devices} {costs['card']} (estimated)")
    figure.suptitle(
        f"Quality measured with {base.steps} steps, warm-up {base.warmup}, {costs['patch']} patches; "
        f"open: the original's modes; top edge: equal but for rounding",
        fontsize=10,
    )
    figure.savefig(path)
    pyplot.close(figure)
    return True


def _psnr(m: Measurement) -> tuple[float, float]:
    return m.mean_psnr, standard_error(m.psnr)


def _distance(m: Measurement) -> tuple[float, float]:
    """Return 1 - SSIM and its standard error; NaN for pictures that are equal but for rounding."""
    return (1 - m.mean_ssim if m.mean_psnr < EXACT else float("nan")), standard_error(m.ssim)


def _panel(axis: "Axes", points: Mapping[Setting, tuple[float, float, float]], *, higher: bool) -> None:
    """Draw points (x, y, standard error) with labels in a column at the right, which keep a distance.

    Args:
        higher: whether higher values are better; otherwise the axis is logarithmic, and its lower end at the top.
    """
    values = {s: y for s, (_, y, _) in points.items() if np.isfinite(y) and y < EXACT}
    if not higher:
        axis.set_yscale("log")
    low, high = min(values.values(), default=1), max(values.values(), default=2)
    margin = 0.08 * (high - low) + 1.5 if higher else 1.4
    best = high + margin if higher else low / margin
    axis.set_ylim(*((low - margin, best) if higher else (high * margin, best)))
    xs = [x for x, *_ in points.values()]
    span = max(xs) - min(xs) or 1.0
    axis.set_xlim(min(xs) - 0.08 * span, max(xs) + 0.55 * span)
    where, texts = {}, list[tuple[float, str, str]]()
    for setting, (x, _, error) in points.items():
        colour, marker = look(setting.mode)
        shown = values.get(setting, best)
        axis.errorbar(
            x, shown, error if setting in values else 0, capsize=3, markersize=8, color=colour, marker=marker,
            linestyle="none", clip_on=False, markerfacecolor="white" if setting.mode in ORIGINAL else colour,
        )  # fmt: skip
        where[setting.mode] = x, shown
        texts.append(
            (float(axis.transAxes.inverted().transform(axis.transData.transform((x, shown)))[1]), setting.mode, colour)
        )
    texts.sort()
    for height, (_, mode, colour) in zip(spread_out([height for height, *_ in texts], 0.045), texts, strict=True):
        axis.annotate(
            mode, where[mode], (0.74, height), textcoords="axes fraction", color=colour, fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkB": 4},
        )  # fmt: skip
    axis.grid(alpha=0.3)


def spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Return ascending heights in [0, 1], moved as little as a few passes can, so that neighbours keep a distance."""
    moved = np.array(heights, float)
    for _ in range(200):
        gaps = np.diff(moved)
        push = np.maximum(distance - gaps, 0) / 2
        moved[:-1] -= push
        moved[1:] += push
        moved = np.clip(moved, 0.02, 0.98)
    return moved.tolist()
