"""The plot, and the contact sheet."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distrijax.parallel.slabs import DISPLACED
from quality_study.report import Rows, same
from quality_study.settings import ONE, SPREAD, Setting

COLOURS = dict(zip(SPREAD, ("#555555", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00"), strict=True))
PROPORTION = "warm-up in proportion"
MARKERS = dict(zip(SPREAD, "xosD^vP", strict=True))


def plot(rows: Rows, base: Setting, path: Path) -> None:
    """PSNR against the number of patches, warm-up and steps, with standard errors, the rest as in `base`.

    Synchronous patches equal one device, some 70 dB above the others: they get a line of text instead of a curve.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.6), dpi=100, sharey=True, layout="constrained")
    exact = [row["psnr"] for s, row in rows.items() if s.mode == "full_sync" and "psnr" in row]
    shown = {s: row for s, row in rows.items() if s.mode != "full_sync" and "psnr" in row}
    for axis, factor, label in zip(
        axes, ("patch", "warmup", "steps"), ("patches", "warm-up steps", "steps"), strict=True
    ):
        for mode, scheduler in [(m, base.scheduler) for m in SPREAD] + [(base.mode, s) for s in other(shown, base)]:
            line = base.but(mode=mode, scheduler=scheduler)
            points = {s: row for s, row in shown.items() if same(s, line, factor)}
            varied = len(points) > 1 and not (factor == "warmup" and mode not in DISPLACED)
            if varied or (points and factor == "patch"):
                dashed = {} if scheduler == base.scheduler else {"linestyle": "--", "markerfacecolor": "white"}
                name = mode if scheduler == base.scheduler else f"{mode}, {scheduler}"
                style: dict[str, Any] = {"color": COLOURS[mode], "marker": MARKERS[mode], "label": name} | dashed
                curve(axis, points, factor, **style)
        points = {s: row for s, row in shown.items() if factor == "steps" and s == base.in_proportion(s.steps)}
        if len(points) > 1:
            style = {"color": COLOURS[base.mode], "marker": "D", "linestyle": ":", "markerfacecolor": "white"}
            curve(axis, points, factor, label=PROPORTION, **style)
            axis.legend(*(part[-1:] for part in axis.get_legend_handles_labels()), fontsize=8)
        fixed = {"patch": f"{base.patch} patches", "warmup": f"warm-up {base.warmup}", "steps": f"{base.steps} steps"}
        axis.set_title(", ".join(text for name, text in fixed.items() if name != factor), fontsize=10)
        axis.set_xlabel(label)
        ticks = sorted({getattr(s, factor) for s in shown if same(s, base, factor, "scheduler")})
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


def curve(axis: Any, points: Rows, factor: str, **style: Any) -> None:
    """PSNR over one factor, with standard errors."""
    values = sorted((getattr(s, factor), row["psnr"], spread(row)) for s, row in points.items())
    x, y, error = zip(*values, strict=True)
    axis.errorbar(x, y, error, capsize=3, linewidth=1.5, markersize=6, **style)


def other(rows: Rows, base: Setting) -> list[str]:
    return sorted({s.scheduler for s in rows} - {base.scheduler})


def spread(row: dict[str, Any]) -> float:
    """Standard error of the mean PSNR."""
    values = row["each"]["psnr"]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def sheet(
    columns: Sequence[Setting], pictures: Sequence[np.ndarray], rows: Rows, prompts: Sequence[str], path: Path
) -> None:
    """Settings side by side, prompts one below the other; under each picture how near it is to one device's.

    Args:
        pictures: of each column, [R, H, W, 3] in [0, 1].
    """
    side, gap, left, top, foot = 192, 6, 150, 46, 20
    width = left + len(columns) * (side + gap)
    canvas = Image.new("RGB", (width, top + len(prompts) * (side + foot)), "white")
    draw, font, bold = ImageDraw.Draw(canvas), _font(13), _font(13, "bold")
    for i, (setting, images) in enumerate(zip(columns, pictures, strict=True)):
        x, row = left + i * (side + gap), rows[setting]
        title = "one device" if setting.mode == ONE else f"{setting.mode}, {setting.patch}"
        mean = f"mean {row['psnr']:.1f} dB" if "psnr" in row else f"{setting.steps} steps, {setting.scheduler}"
        draw.text((x + side // 2, 14), title, "black", bold, anchor="mm")
        draw.text((x + side // 2, 32), mean, "#444444", font, anchor="mm")
        for j, image in enumerate(images):
            y = top + j * (side + foot)
            whole = Image.fromarray(np.rint(np.nan_to_num(image) * 255).astype(np.uint8))
            canvas.paste(whole.resize((side, side), Image.Resampling.LANCZOS), (x, y))
            if "psnr" in row:
                text = f"{row['each']['psnr'][j]:.1f} dB, {row['each']['ssim'][j]:.3f}"
                draw.text((x + side // 2, y + side + 9), text, "#444444", font, anchor="mm")
    for j, prompt in enumerate(prompts):
        caption = "\n".join(textwrap.wrap(prompt, 19))
        draw.multiline_text((8, top + j * (side + foot) + side // 2), caption, "black", font, anchor="lm")
    canvas.save(path, optimize=True)


def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont  # DejaVu comes with matplotlib

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)
