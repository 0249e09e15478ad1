"""The plot of PSNR over patches, warm-up and steps, and the contact sheet."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quality_study.results import Measurements
from quality_study.settings import DISPLACED, MODES_COMPARED, ONE_DEVICE, Setting, vary_only

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#555555", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#332288", "#999933", "#882255")
MARKERS = "xosD^vP<>*"
PROPORTION = "warm-up in proportion"
FACTORS = {"patch": "patches", "warmup": "warm-up steps", "steps": "steps"}


def plot(measurements: Measurements, base: Setting, path: Path) -> None:
    """Plot PSNR over the number of patches, warm-up and steps, with standard errors, the rest as in `base`.

    Synchronous patches equal one device, about 70 dB above the others: they get a line of text instead of a curve.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.6), dpi=100, sharey=True, layout="constrained")
    exact = [m.mean_psnr for s, m in measurements.items() if s.mode == "full_sync" and m.psnr]
    shown = {s: m for s, m in measurements.items() if s.mode != "full_sync" and m.psnr}
    schedulers = sorted({s.scheduler for s in shown} - {base.scheduler})
    fixed = {"patch": f"{base.patch} patches", "warmup": f"warm-up {base.warmup}", "steps": f"{base.steps} steps"}
    for axis, (factor, label) in zip(axes, FACTORS.items(), strict=True):
        for line in [base.but(mode=mode) for mode in MODES_COMPARED] + [base.but(scheduler=s) for s in schedulers]:
            points = {s: m for s, m in shown.items() if vary_only(s, line, factor)}
            varied = len(points) > 1 and not (factor == "warmup" and line.mode not in DISPLACED)
            if varied or (points and factor == "patch"):
                _curve(axis, points, factor, base, line)
        points = {s: m for s, m in shown.items() if factor == "steps" and s == base.in_proportion(s.steps)}
        if len(points) > 1:
            _curve(axis, points, factor, base)
            axis.legend(*(part[-1:] for part in axis.get_legend_handles_labels()), fontsize=8)
        axis.set_title(", ".join(text for name, text in fixed.items() if name != factor), fontsize=10)
        axis.set_xlabel(label)
        ticks = sorted({getattr(s, factor) for s in shown if vary_only(s, base, factor, "scheduler")})
        if factor != "warmup":
            axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR against one device, dB")
    if exact:
        axes[0].set_title(f"{axes[0].get_title()}\nfull_sync: {min(exact):.0f} dB or more", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def _curve(axis: "Axes", points: Measurements, factor: str, base: Setting, line: Setting | None = None) -> None:
    """Plot PSNR over a factor, with standard errors, for the mode and scheduler of `line` (None: `PROPORTION`)."""
    values = sorted((getattr(s, factor), m.mean_psnr, _standard_error(m.psnr)) for s, m in points.items())
    x, y, error = zip(*values, strict=True)
    mode = (line or base).mode
    index = MODES_COMPARED.index(mode)
    label, marker, style, fill = mode, MARKERS[index % len(MARKERS)], "-", None
    if line is None:
        label, marker, style, fill = PROPORTION, "D", ":", "white"
    elif line.scheduler != base.scheduler:
        label, style, fill = f"{mode}, {line.scheduler}", "--", "white"
    axis.errorbar(
        x, y, error, capsize=3, linewidth=1.5, markersize=6,
        color=COLOURS[index % len(COLOURS)], label=label, marker=marker, linestyle=style, markerfacecolor=fill,
    )  # fmt: skip


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def sheet(
    columns: Sequence[Setting],
    pictures: Sequence[np.ndarray],
    measurements: Measurements,
    prompts: Sequence[str],
    path: Path,
) -> None:
    """Draw settings side by side and prompts one below the other, with the similarity under each picture.

    Args:
        pictures: For each column, [P, H, W, 3] in [0, 1].
    """
    side, gap, left, top, foot = 192, 6, 150, 46, 20
    width = left + len(columns) * (side + gap)
    canvas = Image.new("RGB", (width, top + len(prompts) * (side + foot)), "white")
    draw, font, bold = ImageDraw.Draw(canvas), _font(13), _font(13, "bold")
    for i, (setting, images) in enumerate(zip(columns, pictures, strict=True)):
        x, m = left + i * (side + gap), measurements[setting]
        title = "one device" if setting.mode == ONE_DEVICE else f"{setting.mode}, {setting.patch}"
        mean = f"mean {m.mean_psnr:.1f} dB" if m.psnr else f"{setting.steps} steps, {setting.scheduler}"
        draw.text((x + side // 2, 14), title, "black", bold, anchor="mm")
        draw.text((x + side // 2, 32), mean, "#444444", font, anchor="mm")
        for j, image in enumerate(images):
            y = top + j * (side + foot)
            whole = Image.fromarray(np.rint(np.nan_to_num(image) * 255).astype(np.uint8))
            canvas.paste(whole.resize((side, side), Image.Resampling.LANCZOS), (x, y))
            if m.psnr:
                text = f"{m.psnr[j]:.1f} dB, {m.ssim[j]:.3f}"
                draw.text((x + side // 2, y + side + 9), text, "#444444", font, anchor="mm")
    for j, prompt in enumerate(prompts):
        caption = "\n".join(textwrap.wrap(prompt, 19))
        draw.multiline_text((8, top + j * (side + foot) + side // 2), caption, "black", font, anchor="lm")
    canvas.save(path, optimize=True)


def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont  # DejaVu comes with matplotlib

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)
