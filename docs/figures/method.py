"""Draw the figure of the method: slabs of one picture on four devices, what they exchange, and when they wait.

python docs/figures/method.py docs/figures/method.png
"""

import sys

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

COLOURS = ["#3b6fb6", "#e08a1e", "#3a9a5b", "#a4489b"]
INK, QUIET, WAIT = "#222222", "#777777", "#d64545"
DEVICES = len(COLOURS)
SHOWN = 1  # the device whose messages are drawn
WIDTH, SLAB, GAP = 3.0, 1.15, 0.55


def landscape(height: int = 256, width: int = 256) -> np.ndarray:
    """Return a painted landscape [H, W, 3] in [0, 1]: a sky, a sun, two ranges of hills, a lake."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    sky = np.stack([0.98 - 0.5 * (1 - y), 0.78 - 0.25 * (1 - y), 0.62 + 0.3 * (1 - y)], -1)
    picture = np.where((np.hypot(x - 0.7, y - 0.33) < 0.13)[..., None], [1.0, 0.93, 0.65], sky)
    far = 0.45 + 0.08 * np.sin(7 * x + 1) + 0.04 * np.sin(19 * x)
    near = 0.62 + 0.06 * np.sin(5 * x + 4) + 0.02 * np.sin(23 * x)
    picture = np.where((y > far)[..., None], [0.46, 0.42, 0.62], picture)
    picture = np.where((y > near)[..., None], [0.2, 0.35, 0.36], picture)
    lake = np.stack([0.5 + 0.2 * np.sin(60 * y), 0.55 + 0.1 * np.sin(60 * y), 0.7 + 0 * y], -1)
    return np.clip(np.where((y > 0.8)[..., None], lake, picture), 0, 1)


def top(device: int) -> float:
    """Return the height at which a device's slab begins, counted downwards."""
    return -device * (SLAB + GAP)


def slabs(axes: Axes, x: float, noise: float, title: str) -> None:
    """Draw one step: each device's rows of the latents, at this level of noise."""
    picture = landscape()
    cells = np.random.default_rng(0).normal(size=(64, 64, 3))
    noisy = picture + noise * np.kron(cells, np.ones((4, 4, 1)))  # noise of latents: coarser than pixels
    rows = len(picture) // DEVICES
    for device, colour in enumerate(COLOURS):
        y = top(device)
        own = np.clip(noisy[device * rows : (device + 1) * rows], 0, 1)
        axes.imshow(own, extent=(x, x + WIDTH, y - SLAB, y), aspect="auto", zorder=2)
        axes.add_patch(Rectangle((x, y - SLAB), WIDTH, SLAB, fill=False, edgecolor=colour, lw=3, zorder=4))
    axes.text(x + WIDTH / 2, top(0) + 0.55, title, ha="center", va="bottom", fontsize=13, color=INK)


def keys_and_values(axes: Axes, x: float, device: int) -> None:
    """Draw the keys and values that a device attends to: its own of this step, the others' of the step before."""
    y, size = top(device) - SLAB / 2, 0.34
    for other, colour in enumerate(COLOURS):
        fresh = other == device
        corner = x + other * (size + 0.06), y - size / 2
        alpha = 1.0 if fresh else 0.4
        axes.add_patch(Rectangle(corner, size, size, facecolor=colour, alpha=alpha, zorder=3, lw=0))
        axes.add_patch(
            Rectangle(corner, size, size, fill=False, edgecolor=colour, lw=1.5, ls="-" if fresh else ":", zorder=4)
        )


def halo(axes: Axes, x: float, device: int, other: int) -> None:
    """Draw the rows of a neighbour that a device's convolutions read, as a thin strip at its edge."""
    height = 0.13
    y = top(device) + 0.06 if other < device else top(device) - SLAB - 0.06 - height
    axes.add_patch(Rectangle((x, y), WIDTH, height, facecolor=COLOURS[other], alpha=0.4, lw=0, zorder=3))
    axes.add_patch(Rectangle((x, y), WIDTH, height, fill=False, edgecolor=COLOURS[other], ls=":", lw=1.5, zorder=4))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=15, lw=2, color=colour, zorder=5, shrinkB=1)
    )


def exchange(axes: Axes) -> None:
    """Draw two steps side by side, and what one device uses of the others."""
    before, now = 0.0, 5.6
    slabs(axes, before, 0.22, "step t − 1")
    slabs(axes, now, 0.1, "step t")
    for device in range(DEVICES):
        for other in (device - 1, device + 1):
            if 0 <= other < DEVICES:
                halo(axes, now, device, other)
        keys_and_values(axes, now + WIDTH + 0.3, device)
        axes.text(
            before - 0.2, top(device) - SLAB / 2, f"GPU {device}", ha="right", va="center", fontsize=12,
            color=COLOURS[device], weight="bold",
        )  # fmt: skip
    y = top(SHOWN) - SLAB / 2
    for other, target in ((0, y + 0.3), (2, y), (3, y - 0.3)):
        arrow(axes, (before + WIDTH + 0.08, top(other) - SLAB / 2), (now - 0.08, target), COLOURS[other])
    axes.text(
        (before + WIDTH + now) / 2, top(0) + 0.55, "sent to GPU 1\nwhile step t runs",
        ha="center", va="bottom", fontsize=11, color=QUIET,
    )  # fmt: skip
    axes.text(
        now + WIDTH + 1.1, top(0) + 0.55, "keys and values\nof attention",
        ha="center", va="bottom", fontsize=11, color=QUIET,
    )  # fmt: skip
    bottom = top(DEVICES - 1) - SLAB
    axes.add_patch(Rectangle((now, bottom - 0.62), 0.5, 0.2, facecolor=QUIET, alpha=0.4, lw=0))
    axes.add_patch(Rectangle((now, bottom - 0.62), 0.5, 0.2, fill=False, edgecolor=QUIET, ls=":", lw=1.5))
    axes.text(
        now + 0.65, bottom - 0.52, "activations of step t − 1: a neighbour's rows, or keys and values",
        va="center", ha="left", fontsize=10, color=QUIET,
    )  # fmt: skip
    axes.text(before, bottom - 0.52, "latents: a slab of rows on each GPU", va="center", fontsize=10, color=QUIET)
    axes.set_xlim(-1.25, now + WIDTH + 2.2)
    axes.set_ylim(bottom - 0.9, top(0) + 1.5)


def timeline(axes: Axes, displaced: bool) -> None:
    """Draw one GPU and its link during a step: waiting in each layer, or not at all."""
    layers, compute, transfer = 7, 1.0, 0.55
    at = 0.0
    for layer in range(layers):
        axes.add_patch(Rectangle((at, 1.0), compute, 0.8, facecolor="#5b8fd0", edgecolor="white", lw=1.5))
        at += compute
        if displaced:
            axes.add_patch(
                Rectangle((layer * compute + 0.05, 0.05), transfer, 0.7, facecolor="#b59bd1", edgecolor="white")
            )
        elif layer < layers - 1:
            axes.add_patch(Rectangle((at, 1.0), transfer, 0.8, facecolor=WAIT, edgecolor="white", lw=1.5))
            axes.add_patch(Rectangle((at, 0.05), transfer, 0.7, facecolor="#b59bd1", edgecolor="white"))
            at += transfer
    axes.text(-0.2, 1.4, "GPU", ha="right", va="center", fontsize=11, color=INK)
    axes.text(-0.2, 0.4, "link", ha="right", va="center", fontsize=11, color=INK)
    title = "displaced step: every message was ready before the step began" if displaced else "synchronous step"
    axes.text(0, 2.0, title, ha="left", va="bottom", fontsize=12, color=INK)
    axes.set_xlim(-0.9, layers * compute + (layers - 1) * transfer + 0.1)
    axes.set_ylim(-0.1, 2.7)


def legend(axes: Axes) -> None:
    entries = (("#5b8fd0", "a layer's arithmetic"), ("#b59bd1", "a transfer"), (WAIT, "waiting for it"))
    for place, (colour, text) in enumerate(entries):
        axes.add_patch(Rectangle((place * 3.6, 0.3), 0.45, 0.45, facecolor=colour))
        axes.text(place * 3.6 + 0.6, 0.52, text, va="center", fontsize=11, color=INK)
    axes.set_xlim(-0.9, 10.4)
    axes.set_ylim(0, 1)


def main() -> None:
    figure = plt.figure(figsize=(12, 8.6), facecolor="white")
    grid = figure.add_gridspec(4, 1, height_ratios=[6.2, 1.35, 1.35, 0.42], hspace=0.06)
    parts = [figure.add_subplot(grid[i]) for i in range(4)]
    for axes in parts:
        axes.set_axis_off()
    exchange(parts[0])
    timeline(parts[1], displaced=False)
    timeline(parts[2], displaced=True)
    legend(parts[3])
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "method.png", dpi=110, bbox_inches="tight", pad_inches=0.15)


if __name__ == "__main__":
    main()
