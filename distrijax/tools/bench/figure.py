"""A sweep as a picture."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from distrijax.tools.bench.report import Measurement


def draw(path: Path, axis: str, measurements: Sequence[Measurement], title: str) -> None:
    """Draw medians with the range of all runs on logarithmic axes, where a cost in proportion is a line of slope 1.

    Args:
        axis: what grows, with its unit.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(line.name for line in measurements):
        points = {line.at: line.times for line in measurements if line.name == name}
        below = [times.median - min(times.seconds) for times in points.values()]
        above = [max(times.seconds) - times.median for times in points.values()]
        medians = [times.median for times in points.values()]
        axes.errorbar(list(points), medians, (below, above), marker="o", capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds")
    axes.set_title(textwrap.fill(title, 64), fontsize=10)
    values = sorted({line.at for line in measurements if line.at is not None})
    axes.set_xticks(values, [f"{value:,}" for value in values], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-6, 6) for m in (1, 2, 3, 5) if low <= m * 10.0**e <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
