"""Draw the way from a prompt to a picture, with the folder that does each part of it, and the import order.

python docs/figures/architecture.py docs/figures/architecture.png
"""

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, QUIET, LINE = "#222222", "#6b6b6b", "#444444"
FILL = {"stage": "#dbe7f5", "model": "#e3f0e0", "devices": "#f7e3cf", "data": "#f4f4f4", "host": "#eadff2"}
FOLDERS = [
    *("checks", "config", "nn", "models", "parallel", "runtime", "schedulers"),
    *("checkpoint", "text", "sampling", "pipelines", "tools", "cli"),
]


def box(axes: Axes, x: float, y: float, width: float, height: float, kind: str, title: str, text: str = "") -> None:
    """Draw a box whose lower left corner is at (x, y): a folder's name, and what it does here."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=FILL[kind], edgecolor=LINE,
            linewidth=1.2, linestyle="--" if kind == "data" else "-", zorder=2,
        )
    )  # fmt: skip
    middle = x + width / 2
    if text:
        lines = text.count("\n") + 1
        rise = 0.12 * lines
        axes.text(middle, y + height / 2 + rise, title, ha="center", va="center", fontsize=12, weight="bold", color=INK)
        axes.text(middle, y + height / 2 - 0.2, text, ha="center", va="center", fontsize=9.5, color=QUIET)
    else:
        axes.text(middle, y + height / 2, title, ha="center", va="center", fontsize=11, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", both: bool = False) -> None:
    style = "<|-|>" if both else "-|>"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=13, lw=1.5, color=LINE, zorder=3))
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if start[0] == end[0]:
            axes.text(x + 0.1, y, text, ha="left", va="center", fontsize=9, color=QUIET)
        else:
            axes.text(x, y + 0.1, text, ha="center", va="bottom", fontsize=9, color=QUIET)


def stages(axes: Axes) -> None:
    """Draw the stages of a pipeline, left to right."""
    y, height, width = 6.0, 1.15, 2.3
    axes.text(1.75, y + height + 0.5, "pipelines/: four stages", fontsize=13, weight="bold", color=INK, va="center")
    box(axes, 0, y + 0.25, 1.2, 0.65, "data", "prompt")
    columns = [
        ("text/", "tokenize the prompt,\nrun the text encoders", "host"),
        ("sampling/", "inputs of the loop: noise,\ncoefficients of each step", "host"),
        ("sampling/", "the denoising loop:\none lax.scan per phase", "stage"),
        ("models/vae", "decode, spread over\nthe same devices", "model"),
    ]
    labels = ["", "embeddings", "inputs", "latents"]
    for i, (title, text, kind) in enumerate(columns):
        x = 1.75 + i * 3.35
        box(axes, x, y, width, height, kind, title, text)
        before = 1.2 if i == 0 else x - 3.35 + width
        arrow(axes, (before, y + height / 2), (x, y + height / 2), labels[i])
    end = 1.75 + 3 * 3.35 + width
    arrow(axes, (end, y + height / 2), (end + 0.5, y + height / 2))
    box(axes, end + 0.5, y + 0.25, 1.2, 0.65, "data", "picture")


def step(axes: Axes) -> None:
    """Draw one denoising step, and what its parts are made from."""
    y, height = 2.75, 1.15
    axes.add_patch(
        FancyBboxPatch(
            (3.2, 0.85), 11.3, 3.75, boxstyle="round,pad=0,rounding_size=0.15", facecolor="none", edgecolor=QUIET,
            linewidth=1, linestyle=":", zorder=1,
        )
    )  # fmt: skip
    axes.text(14.3, 4.3, "one step of the loop", fontsize=11, style="italic", color=QUIET, ha="right", va="center")
    axes.plot([8.45, 3.2], [6.0, 4.6], color=QUIET, lw=0.8, ls=":", zorder=1)
    axes.plot([10.75, 14.5], [6.0, 4.6], color=QUIET, lw=0.8, ls=":", zorder=1)
    box(axes, 3.5, y + 0.25, 1.5, 0.65, "data", "latents")
    box(axes, 6.0, y, 2.6, height, "model", "models/unet", "built of the layers in nn/;\nweights, no devices")
    box(axes, 10.0, y, 2.3, height, "host", "schedulers/", "step(): elementwise\narithmetic")
    box(axes, 12.85, y + 0.25, 1.4, 0.65, "data", "latents")
    arrow(axes, (5.0, y + height / 2), (6.0, y + height / 2))
    arrow(axes, (8.6, y + height / 2), (10.0, y + height / 2), "prediction")
    arrow(axes, (12.3, y + height / 2), (12.85, y + height / 2))
    box(axes, 6.0, 1.05, 2.6, 1.0, "devices", "parallel/", "answers by the mode's\npolicy: fresh or stale")
    arrow(axes, (7.3, y), (7.3, 2.05), "halo? moments? attention?", both=True)
    box(axes, 10.0, 1.05, 2.3, 1.0, "devices", "other devices", "pieces of this step\nor of the last")
    arrow(axes, (8.6, 1.55), (10.0, 1.55), both=True)
    box(axes, 0, y, 2.4, height, "host", "checkpoint/", "hub, folder, .safetensors\nor converted checkpoint")
    arrow(axes, (2.4, y + height / 2), (3.2, y + height / 2), "weights")
    box(axes, 0, 1.05, 2.4, 1.0, "host", "runtime/", "compiles programs,\nkeeps them on disk")
    arrow(axes, (2.4, 1.55), (3.2, 1.55))


def order(axes: Axes) -> None:
    """Draw the import order along the bottom."""
    axes.text(0, 0.3, "imports point left:", fontsize=10, color=INK, va="center")
    x = 2.15
    for folder in FOLDERS:
        width = 0.1 * len(folder) + 0.22
        axes.text(x + width / 2, 0.3, folder, fontsize=10, color=INK, ha="center", va="center")
        x += width
        if folder != FOLDERS[-1]:
            axes.text(x + 0.05, 0.3, "‹", fontsize=11, color=QUIET, ha="center", va="center")
            x += 0.1


def main() -> None:
    figure, axes = plt.subplots(figsize=(16, 7.8), facecolor="white")
    axes.set_axis_off()
    stages(axes)
    step(axes)
    order(axes)
    axes.set_xlim(-0.1, 16)
    axes.set_ylim(0, 8)
    path = sys.argv[1] if len(sys.argv) > 1 else "architecture.png"
    figure.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.15)


if __name__ == "__main__":
    main()
