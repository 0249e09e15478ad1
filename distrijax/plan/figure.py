"""A plan as a picture: where the step's time goes, what is on the link meanwhile, and what the memory holds."""

from pathlib import Path
from typing import Any

from distrijax.errors import DistrijaxError
from distrijax.plan.estimate import Loop, Plan
from distrijax.plan.report import memory_rows
from distrijax.plan.schedule import CATEGORIES

COLOURS = dict(zip(CATEGORIES, ("#4c78a8", "#72b7b2", "#54a24b", "#bab0ac", "#eeca3b"), strict=True))
SENT, WAITED = "#b279a2", "#e45756"


def draw(plan: Plan, path: Path) -> None:
    """Write the picture of one layout: a timeline for each kind of step, and the memory of a device.

    Raises:
        DistrijaxError: matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise DistrijaxError("a plot needs matplotlib: pip install 'distrijax[train]'") from None
    rows = len(plan.loops)
    figure, axes = pyplot.subplots(
        rows + 1,
        1,
        figsize=(11, 2.1 * rows + 2.2),
        dpi=110,
        height_ratios=[1] * rows + [0.55],
        squeeze=False,
        layout="constrained",
    )
    longest = max(loop.body.seconds for loop in plan.loops) * 1e3
    for axis, loop in zip(axes[:rows, 0], plan.loops, strict=True):
        _timeline(axis, loop)
        axis.set_xlim(0, longest)
    axes[rows - 1, 0].set_xlabel("ms (estimated)")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=c) for c in (*COLOURS.values(), SENT, WAITED)]
    request = plan.request
    figure.suptitle(
        f"{request.model.name} at {request.width}x{request.height}, {plan.parallel.size} x {request.card.name}: "
        f"{plan.name}",
        fontsize=10,
    )
    labels = [*CATEGORIES, "on the link", "waiting"]
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    _memory(axes[rows, 0], plan)
    figure.savefig(path)
    pyplot.close(figure)


def _timeline(axis: Any, loop: Loop) -> None:
    body = loop.body
    for category, colour in COLOURS.items():
        spans = [(k.start * 1e3, k.seconds * 1e3) for k in body.kernels if k.category == category]
        axis.broken_barh(spans, (1.1, 0.9), color=colour, linewidth=0)
    sent = [(c.began * 1e3, (c.ready - c.began) * 1e3) for c in body.collectives]
    axis.broken_barh(sent, (0.05, 0.9), color=SENT, linewidth=0)
    waits = [(c.needed * 1e3, c.waited * 1e3) for c in body.collectives if c.waited > 0]
    axis.broken_barh(waits, (1.1, 0.9), color=WAITED, linewidth=0)
    axis.set(yticks=[0.5, 1.55], yticklabels=["link", "GPU"], ylim=(0, 2.1))
    axis.set_title(
        f"a {loop.name} step: {body.seconds * 1e3:.1f} ms, {100 * body.wait_share:.1f} % of it waiting for "
        f"{len(body.collectives)} transfers",
        fontsize=9, loc="left",
    )  # fmt: skip


def _memory(axis: Any, plan: Plan) -> None:
    left, shades = 0.0, ("#4c78a8", "#9ecae9", "#f58518", "#ffbf79", "#d6d6d6")
    for (name, size), colour in zip(memory_rows(plan), shades, strict=True):
        axis.barh(0, size / 1e9, left=left, color=colour, label=f"{name}: {size / 1e9:.2f} GB")
        left += size / 1e9
    card = plan.request.card.memory / 1e9
    axis.axvline(card, color=WAITED)
    axis.text(card, 0.45, "the card ", color=WAITED, ha="right", va="bottom", fontsize=8)
    axis.set(yticks=[], xlim=(0, 1.02 * max(card, left)), xlabel="GB a device (compiled)")
    axis.legend(loc="upper right", fontsize=7, frameon=False, bbox_to_anchor=(0.97, 1.05), labelspacing=0.2)
