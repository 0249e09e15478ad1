"""Draw a plan: the kernels and transfers of its steps over time, and the memory of a device (estimated).

python docs/figures/plan.py docs/figures/plan.png    # SDXL at 1024x1024 on eight H100s; needs the CUDA compiler
"""

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from distrijax import Parallel
from distrijax.checkpoint import find
from distrijax.parallel.cards import CARDS, Rates
from distrijax.tools.plan.estimate import Plan, PlannedPhase, Request, plan
from distrijax.tools.plan.gpus import prepare_cuda_compiler
from distrijax.tools.plan.kernels import CATEGORIES
from distrijax.tools.workload import Workload

COLOURS = dict(zip(CATEGORIES, ("#4c78a8", "#72b7b2", "#54a24b", "#bab0ac", "#eeca3b"), strict=True))
LINK, WAITING = "#b279a2", "#e45756"


def main() -> None:
    prepare_cuda_compiler()
    request = Request(
        Workload(find("sdxl-base"), 1024, 1024, "bfloat16", steps=50), CARDS["h100"], Rates.of(CARDS["h100"])
    )
    layout = Parallel(patch=8, emulate=True)
    draw(plan(request, layout), sys.argv[1] if len(sys.argv) > 1 else "plan.png")


def draw(plan: Plan, path: str) -> None:
    """Draw one layout: a timeline for each phase, and the memory of a device."""
    count, workload = len(plan.phases), plan.request.workload
    size, heights = (11, 2.1 * count + 2.2), [1] * count + [0.55]
    figure, axes = plt.subplots(count + 1, 1, figsize=size, dpi=110, height_ratios=heights, layout="constrained")
    for axis, phase in zip(axes, plan.phases, strict=False):
        _timeline(axis, phase)
        axis.set_xlim(0, 1e3 * max(phase.step.seconds for phase in plan.phases))
    axes[count - 1].set_xlabel("ms (estimated)")
    _memory(axes[count], plan)
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (*COLOURS.values(), LINK, WAITING)]
    labels = [*CATEGORIES, "on the link", "waiting"]
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    devices = f"{plan.parallel.size} x {plan.request.card.name}: {plan.name}"
    figure.suptitle(f"{workload.model.name} at {workload.width}x{workload.height}, {devices}", fontsize=10)
    figure.savefig(path)
    plt.close(figure)


def _timeline(axis: Axes, phase: PlannedPhase) -> None:
    step = phase.step
    for category, colour in COLOURS.items():
        spans = [(k.start * 1e3, k.took * 1e3) for k in step.kernels if k.category == category]
        axis.broken_barh(spans, (1.1, 0.9), color=colour, linewidth=0)
    sent = [(c.began * 1e3, (c.ready - c.began) * 1e3) for c in step.collectives]
    axis.broken_barh(sent, (0.05, 0.9), color=LINK, linewidth=0)
    waits = [(c.needed * 1e3, c.waited * 1e3) for c in step.collectives if c.waited > 0]
    axis.broken_barh(waits, (1.1, 0.9), color=WAITING, linewidth=0)
    axis.set(yticks=[0.5, 1.55], yticklabels=["link", "GPU"], ylim=(0, 2.1))
    waiting = f"{100 * step.wait_share:.1f} % of it waiting for {len(step.collectives)} transfers"
    axis.set_title(f"a {phase.name} step: {step.seconds * 1e3:.1f} ms, {waiting}", fontsize=9, loc="left")


def _memory(axis: Axes, plan: Plan) -> None:
    left, shades = 0.0, ("#4c78a8", "#9ecae9", "#f58518", "#ffbf79", "#d6d6d6")
    for (name, size), colour in zip(plan.memory_parts.items(), shades, strict=True):
        axis.barh(0, size / 1e9, left=left, color=colour, label=f"{name}: {size / 1e9:.2f} GB")
        left += size / 1e9
    card = plan.request.card.memory / 1e9
    axis.axvline(card, color=WAITING)
    axis.text(card, 0.45, "the card ", color=WAITING, ha="right", va="bottom", fontsize=8)
    axis.set(yticks=[], xlim=(0, 1.02 * max(card, left)), xlabel="GB a device (compiled)")
    axis.legend(loc="upper right", fontsize=7, frameon=False, bbox_to_anchor=(0.97, 1.05), labelspacing=0.2)


if __name__ == "__main__":
    main()
