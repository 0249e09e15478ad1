"""A plan as text."""

from distrijax.parallel.cards import CARDS, RATES
from distrijax.tools.plan.estimate import Plan, PlannedPhase
from distrijax.tools.traffic import KINDS

GB, MB, MS = 1e9, 1e6, 1e3
COMPARED = {
    CARDS["h200"].name: ("8 steps of this program on one such card", -7, 2),
    CARDS["a100"].name: ("15 pictures that DistriFusion, in PyTorch, made on such cards", -25, -6),
}
"""What was measured, and the smallest and largest error of the estimate in percent: python docs/measurements/plan.py"""
LAYERS = 20  # kinds of layer that a report lists


def title(plan: Plan) -> str:
    """Return what is planned, in a line."""
    request, workload = plan.request, plan.request.workload
    nodes = "" if request.nodes == 1 else f" on {request.nodes} nodes"
    return f"{workload}, {workload.steps} steps, {plan.parallel.size} x {request.card.name}{nodes}"


def report(plan: Plan) -> str:
    """Return everything about one layout."""
    last = plan.phases[-1]
    lines = [f"{title(plan)}: {plan.name}, mode {plan.parallel.mode}"]
    lines += ([] if plan.why is None else [plan.why]) + ["", "compiled"]
    for phase in plan.phases:
        step, exposed = phase.step, phase.step.exposed
        lines.append(
            f"  {phase.name} step: {step.flops / 1e12:.3f} TFLOP, {len(step.kernels)} kernels, {len(step.collectives)} "
            f"transfers of {step.received / MB:.1f} MB, {step.launches} launches; "
            f"compiled in {phase.compile_seconds:.0f} s"
        )
        if step.collectives:
            alone = sum(c.received for c in exposed) / MB
            lines.append(f"    {len(exposed)} of them, {alone:.2f} MB, run under no heavy kernel")
    lines += ["", "memory of each device while it denoises, in GB (compiled)"]
    lines += [f"  {name:<44}{size / GB:8.2f}" for name, size in plan.memory_parts.items()]
    lines.append(f"  {'total' if plan.fits else 'total: MORE THAN THE CARD HAS':<44}{plan.memory / GB:8.2f}")
    lines.append(f"  the card has {plan.request.card.memory / GB:.1f}; decoding, a later program, is not included")
    if plan.parallel.size > 1:
        lines += ["", f"sent by each device in a {last.name} step, in MB (counted)"]
        volumes = plan.traffic.steps[last.name]
        lines += [f"  {KINDS[kind]:<44}{v.bytes / MB:8.1f}" for kind, v in volumes.items() if v.messages]
    lines += ["", "estimated"]
    for phase in plan.phases:
        step = phase.step
        waiting = f"{step.waiting * MS:.2f} ms ({100 * step.wait_share:.1f} %)"
        lines.append(f"  {f'a {phase.name} step':<44}{step.seconds * MS:8.2f} ms, of which it waits {waiting}")
        slower = ", AND SO THE DEVICE IDLES" if step.host > step.device else ""
        lines.append(f"    {'the host enqueues it in':<42}{step.host * MS:8.2f} ms{slower}")
        for category, (count, seconds) in step.by_category().items():
            if count:
                lines.append(f"    {category:<32}{count:>8} x{seconds * MS:10.2f} ms")
    lines.append(f"  {f'denoising, {plan.request.workload.steps} steps':<44}{plan.picture_seconds:8.2f} s")
    if len(plan.phases) > 1:
        saved = last.steps * (plan.phases[0].step.seconds - last.step.seconds)
        lines.append(f"  {f'the {last.steps} {last.name} steps save, against full_sync':<44}{saved:8.2f} s")
    elif plan.parallel.policy.carries:
        lines.append(f"  all steps are synchronous: mode {plan.parallel.mode} saves nothing with this warm-up")
    return "\n".join([*lines, "", *_layers(last), "", *assumptions(plan)])


def _layers(phase: PlannedPhase) -> list[str]:
    """Return a step's kernels by kind of layer, the costliest first."""
    lines = [f"{f'a {phase.name} step by layer (estimated)':<62}{'kernels':>8}{'ms':>8}{'%':>7}{'moved MB':>10}"]
    for (layer, category), (count, seconds, size) in list(phase.step.by_layer().items())[:LAYERS]:
        share = 100 * seconds / phase.step.seconds
        label = f"{layer:<34}{category}"
        lines.append(f"  {label:<60}{count:>8}{seconds * MS:8.2f}{share:7.1f}{size / MB:10.1f}")
    return lines


def assumptions(plan: Plan) -> list[str]:
    """Return how far estimates have been from measurements, and what they assume."""
    card, rates = plan.request.card.name, plan.request.rates
    compared = "{}: {:+} to {:+} %".format(*COMPARED[card]) if card in COMPARED else "nothing measured on this card"
    lines = [f"error of the estimate against {compared} (docs/performance.md)", "assumed (options replace each)"]
    for name, (meaning, unit, label) in RATES.items():
        lines.append(f"  {meaning:<46}{getattr(rates, name) / unit:8.1f} {label}")
    return [*lines, "  kernels as XLA chooses them without autotuning; text encoding and decoding are not included"]
