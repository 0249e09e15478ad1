"""Cost as it grows, drawn."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from distrijax.bench.timing import Times
from distrijax.errors import DistrijaxError


def check(path: Path) -> None:
    """Raises DistrijaxError if nothing can be drawn, before anything is measured."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise DistrijaxError(f"plot is {str(path)!r}; it must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise DistrijaxError(f"plot: there is no folder {path.parent}; make it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DistrijaxError("plot needs matplotlib: pip install matplotlib; or leave it out") from None


def draw(path: Path, axis: str, values: Sequence[int], times: Sequence[Mapping[str, Times]], title: str) -> None:
    """Medians with the range of all runs, on logarithmic axes: a straight line of slope 1 is a cost that grows evenly.

    Args:
        axis: what grows, with its unit.
        times: of each value, by what was measured.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(name for at in times for name in at):
        found = [(value, at[name]) for value, at in zip(values, times, strict=True) if name in at]
        x, medians = [value for value, _ in found], [t.median for _, t in found]
        below = [t.median - min(t.seconds) for _, t in found]
        above = [max(t.seconds) - t.median for _, t in found]
        axes.errorbar(x, medians, (below, above), marker="o", capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds")
    axes.set_title(textwrap.fill(title, 64), fontsize=10)
    axes.set_xticks(values, [f"{value:,}" for value in values], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-6, 6) for m in (1, 2, 3, 5) if low <= m * 10.0**e <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
