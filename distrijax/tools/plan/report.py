"""Plans as text."""

from collections.abc import Sequence

from distrijax.tools.plan.estimate import Plan, PlannedPhase
from distrijax.tools.plan.layouts import ranked
from distrijax.tools.traffic import KINDS

GB, MB, MS = 1e9, 1e6, 1e3
SMALL = 0.01  # kinds of layer that take less of a step than this are summed up in one line
CLOSE = 5  # %: two estimates this close do not say which is faster, since the assumed rates are less exact


def report(plan: Plan) -> str:
    """Return everything about one layout."""
    request, workload = plan.request, plan.request.workload
    nodes = "" if request.nodes == 1 else f" on {request.nodes} nodes"
    lines = [
        f"{workload.model.name} at {workload.width}x{workload.height}, {workload.dtype}, {workload.steps} steps, "
        f"{plan.parallel.size} x {request.card.name}{nodes}: {plan.name}, mode {plan.parallel.mode}",
        "",
        "compiled",
    ]
    for phase in plan.phases:
        lines += _compiled(phase)
    lines += ["", "memory of each device while it denoises, in GB (compiled)"]
    lines += [f"  {name:<44}{size / GB:8.2f}" for name, size in plan.memory_parts.items()]
    lines.append(f"  {'total' if plan.fits else 'total: MORE THAN THE CARD HAS':<44}{plan.memory / GB:8.2f}")
    lines.append(f"  the card has {request.card.memory / GB:.1f}; decoding, a later program, is not included")
    if plan.parallel.size > 1:
        lines += ["", f"sent by each device in a {plan.phases[-1].name} step, in MB (counted)"]
        volumes = plan.traffic.steps[plan.phases[-1].name]
        lines += [f"  {KINDS[kind]:<44}{v.bytes_sent / MB:8.1f}" for kind, v in volumes.items() if v.messages]
    lines += ["", "estimated"]
    for phase in plan.phases:
        step = phase.step
        waiting = f"{step.waiting * MS:.2f} ms ({100 * step.wait_share:.1f} %)"
        lines.append(f"  {f'a {phase.name} step':<44}{step.seconds * MS:8.2f} ms, of which it waits {waiting}")
        for category, (count, seconds) in step.by_category().items():
            if count:
                lines.append(f"    {category:<32}{count:>8} x{seconds * MS:10.2f} ms")
    lines.append(f"  {f'denoising, {workload.steps} steps':<44}{plan.picture_seconds:8.2f} s")
    return "\n".join([*lines, "", *_layers(plan.phases[-1]), "", *_assumptions(plan)])


def comparison(plans: Sequence[Plan]) -> str:
    """Return the layouts side by side, and which to take."""
    workload = plans[0].request.workload
    pictures = "one picture" if workload.pictures == 1 else f"{workload.pictures} pictures"
    lines = [
        f"{workload.model.name} at {workload.width}x{workload.height}, {pictures}, {workload.steps} steps, "
        f"{plans[0].parallel.size} x {plans[0].request.card.name}",
        f"{'layout':<28}{'pictures':>9}{'memory GB':>10}{'received MB':>12}{'step ms':>9}{'waits %':>9}"
        f"{'denoising s':>13}{'an hour':>9}",
    ]
    for plan in plans:
        step = plan.phases[-1].step
        lines.append(
            f"{plan.name:<28}{plan.request.workload.pictures:>9}{plan.memory / GB:10.2f}{step.received / MB:12.1f}"
            f"{step.seconds * MS:9.2f}{100 * step.wait_share:9.2f}{plan.picture_seconds:13.2f}"
            f"{plan.pictures_per_hour:9.0f}{'' if plan.fits else '  does not fit'}"
        )
    return "\n".join([*lines, "", *_recommendation(plans), "", *_assumptions(plans[0])])


def _recommendation(plans: Sequence[Plan]) -> list[str]:
    if not (best := ranked(plans)):
        return ["none fits the card's memory: take more devices, or a larger card"]
    first, *others = best
    lines = [f"recommended: {first.name}, the first to finish ({first.picture_seconds:.2f} s, estimated)"]
    if others:
        later = 100 * (others[0].picture_seconds / first.picture_seconds - 1)
        close = "; so close that only a measurement can tell" if later < CLOSE else ""
        lines.append(f"  the next, {others[0].name}, takes {later:.1f} % longer{close}")
    most = max((p for p in plans if p.fits), key=lambda p: p.pictures_per_hour)
    if most.pictures_per_hour > first.pictures_per_hour:
        lines.append(
            f"most pictures an hour: {most.name}, {most.request.workload.pictures} at a time: "
            f"{most.pictures_per_hour:.0f}, but each takes {most.picture_seconds:.2f} s"
        )
    return lines


def _compiled(phase: PlannedPhase) -> list[str]:
    step = phase.step
    lines = [
        f"  {phase.name} step: {step.flops / 1e12:.3f} TFLOP, {len(step.kernels)} kernels, {len(step.collectives)} "
        f"transfers of {step.received / MB:.1f} MB; compiled in {phase.compile_seconds:.0f} s "
        f"({phase.trace_seconds:.0f} s of it tracing)"
    ]
    if step.collectives:
        exposed = sum(c.received for c in step.exposed)
        lines.append(f"    {len(step.exposed)} of them, {exposed / MB:.2f} MB, run under no heavy kernel")
        hidden = [c for c in step.collectives if not c.exposed]
        for kind in sorted({c.kind for c in hidden}):
            same = [c for c in hidden if c.kind == kind]
            categories = dict.fromkeys(name for c in same for name in c.under)
            means = {name: sum(c.under.get(name, 0) for c in same) / len(same) for name in categories}
            under = ", ".join(f"{mean:.1f} {name}" for name, mean in means.items())
            lines.append(f"    {len(same)} x {kind} under {under} each")
    if phase.copies:
        copies = ", ".join(f"{count} {kind} of {size / MB:.0f} MB" for kind, (count, size) in phase.copies.items())
        lines.append(f"    copies of 1 MB and more: {copies}")
    return lines


def _layers(phase: PlannedPhase) -> list[str]:
    """Return a step's kernels by kind of layer, costliest first."""
    layers, whole = phase.step.by_layer(), phase.step.seconds
    small = [totals for totals in layers.values() if totals[1] < SMALL * whole]
    table = {" ".join(f"{name:<{width}}" for name, width in zip(key, (33, 25), strict=True)): totals
             for key, totals in layers.items() if totals[1] >= SMALL * whole}  # fmt: skip
    table["less than 1 % each"] = (sum(t[0] for t in small), sum(t[1] for t in small), sum(t[2] for t in small))
    return [
        f"{f'a {phase.name} step by layer (estimated)':<62}{'kernels':>8}{'ms':>8}{'%':>7}{'moved MB':>10}",
        *(
            f"  {label:<60}{count:>8}{seconds * MS:8.2f}{100 * seconds / whole:7.1f}{size / MB:10.1f}"
            for label, (count, seconds, size) in table.items()
        ),
    ]


def _assumptions(plan: Plan) -> list[str]:
    card, rates = plan.request.card, plan.request.rates
    peak = card.peak(plan.request.workload.dtype)
    return [
        "assumed, not measured (options replace each)",
        f"  {rates.flops / 1e12:.0f} TFLOP/s (peak {peak / 1e12:.0f}), memory {rates.memory / 1e12:.2f} TB/s "
        f"(peak {card.bandwidth / 1e12:.2f}), {rates.kernel * 1e6:.0f} µs to launch a kernel",
        f"  {card.link_name} {rates.link / GB:.0f} GB/s (peak {card.link / GB:.0f}) and {rates.latency * 1e6:.0f} µs, "
        f"between nodes {rates.network / GB:.1f} GB/s (peak {card.network / GB:.1f}) and "
        f"{rates.network_latency * 1e6:.0f} µs; one transfer at a time",
        "  kernels as XLA chooses them without autotuning; text encoding and decoding are not included",
    ]
