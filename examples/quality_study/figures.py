"""The plot of PSNR over patches, warm-up and steps; colours and markers of the modes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quality_study.results import Measurements
from quality_study.settings import DISPLACED, MODES_COMPARED, Setting, vary_only

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#555555",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#d55e00",
    "#332288",
    "#999933",
    "#882255",
    "#44aa99",
    "#aa4499",
)
MARKERS = "xosD^vP<>*hd"
EXACT = 90.0  # dB: above it, pictures differ by rounding alone
PROPORTION = "warm-up in proportion"
FACTORS = {"patch": "patches", "warmup": "warm-up steps", "steps": "steps"}


def look(mode: str) -> tuple[str, str]:
    """Return the colour and the marker of a mode."""
    index = MODES_COMPARED.index(mode)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def plot(measurements: Measurements, base: Setting, path: Path) -> None:
    """Plot PSNR over the number of patches, warm-up and steps, with standard errors, the rest as in `base`.

    Synchronous patches equal one device, about 70 dB above the others: they get a line of text instead of a curve.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.6), dpi=100, sharey=True, layout="constrained")
    exact = [m.mean_psnr for m in measurements.values() if m.psnr and m.mean_psnr > EXACT]
    shown = {s: m for s, m in measurements.items() if m.psnr and m.mean_psnr <= EXACT}
    fixed = {"patch": f"{base.patch} patches", "warmup": f"warm-up {base.warmup}", "steps": f"{base.steps} steps"}
    for axis, (factor, label) in zip(axes, FACTORS.items(), strict=True):
        for line in [base.but(mode=mode) for mode in MODES_COMPARED]:
            points = {s: m for s, m in shown.items() if vary_only(s, line, factor)}
            several = len(points) > 1 and not (factor == "warmup" and line.mode not in DISPLACED)
            if several or (points and factor == "patch"):
                _curve(axis, points, factor, base, line)
        points = {s: m for s, m in shown.items() if factor == "steps" and s == base.in_proportion(s.steps)}
        if len(points) > 1:
            _curve(axis, points, factor, base)
            axis.legend(*(part[-1:] for part in axis.get_legend_handles_labels()), fontsize=8)
        axis.set_title(", ".join(text for name, text in fixed.items() if name != factor), fontsize=10)
        axis.set_xlabel(label)
        varied = {s for s in shown if vary_only(s, base, factor)}
        ticks = sorted({getattr(s, factor) for s in (*varied, *points)})
        if factor != "warmup":
            axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR against one device, dB")
    if exact:
        axes[0].set_title(f"{axes[0].get_title()}\nsynchronous modes: {min(exact):.0f} dB or more", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def _curve(axis: "Axes", points: Measurements, factor: str, base: Setting, line: Setting | None = None) -> None:
    """Plot PSNR over a factor, with standard errors, for the mode of `line` (None: `PROPORTION`)."""
    values = sorted((getattr(s, factor), m.mean_psnr, standard_error(m.psnr)) for s, m in points.items())
    x, y, error = zip(*values, strict=True)
    mode = (line or base).mode
    colour, marker = look(mode)
    label, style, fill = mode, "-", None
    if line is None:
        label, marker, style, fill = PROPORTION, "D", ":", "white"
    axis.errorbar(
        x, y, error, capsize=3, linewidth=1.5, markersize=6,
        color=colour, label=label, marker=marker, linestyle=style, markerfacecolor=fill,
    )  # fmt: skip


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, 0 for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
