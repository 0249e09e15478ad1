"""A plan in words."""

from collections.abc import Sequence

from distrijax.parallel.traffic import KINDS
from distrijax.plan.estimate import Loop, Plan, ranked

GB, MB, MS = 1e9, 1e6, 1e3
SMALL = 0.01  # of a step: what is less is put together
CLOSE = 5  # % between two estimates that say nothing about which is faster: the assumed rates are that far off


def report(plan: Plan) -> str:
    """Everything about one layout."""
    request, p = plan.request, plan.parallel
    nodes = "" if request.nodes == 1 else f" on {request.nodes} nodes"
    lines = [
        f"{request.model.name} at {request.width}x{request.height}, {request.dtype}, {request.steps} steps, "
        f"{p.size} x {request.card.name}{nodes}: {plan.name}, mode {p.mode}",
        "",
        "compiled",
    ]
    for loop in plan.loops:
        lines += _compiled(loop)
    lines += ["", "memory of each device while it denoises, in GB (compiled)"]
    lines += [f"  {name:<44}{size / GB:8.2f}" for name, size in memory_rows(plan)]
    lines.append(f"  {'together' if plan.fits else 'together: MORE THAN THE CARD HAS':<44}{plan.memory / GB:8.2f}")
    lines.append(f"  of the card's {request.card.memory / GB:.1f}; decoding is another program and comes after it")
    if plan.traffic and plan.parallel.size > 1:
        lines += ["", "sent by each device in a step, in MB (counted)"]
        kinds = plan.traffic.displaced or plan.traffic.synchronous
        rows = [(KINDS[kind], sent) for kind, sent in kinds.items() if sent.messages]
        lines += [f"  {label:<44}{sent.bytes_sent / MB:8.1f}" for label, sent in rows]
    lines += ["", "estimated"]
    for loop in plan.loops:
        lines += _estimated(loop)
    lines.append(f"  denoising, {request.steps} steps{'':<28}{plan.picture_seconds:10.2f} s")
    lines += ["", *_layers(plan.loops[-1]), "", *_assumptions(plan)]
    return "\n".join(lines)


def comparison(plans: Sequence[Plan]) -> str:
    """Layouts side by side, and which to take."""
    request = plans[0].request
    pictures = "one picture" if request.pictures == 1 else f"{request.pictures} pictures"
    lines = [
        f"{request.model.name} at {request.width}x{request.height}, {pictures}, {request.steps} steps, "
        f"{plans[0].parallel.size} x {request.card.name}",
        f"{'layout':<28}{'pictures':>9}{'memory GB':>10}{'received MB':>12}{'step ms':>9}{'waits %':>9}"
        f"{'denoising s':>13}{'an hour':>9}",
    ]
    for plan in plans:
        body = plan.loops[-1].body
        lines.append(
            f"{plan.name:<28}{plan.request.pictures:>9}{plan.memory / GB:10.2f}{body.received / MB:12.1f}"
            f"{body.seconds * MS:9.2f}{100 * body.wait_share:9.2f}{plan.picture_seconds:13.2f}"
            f"{plan.pictures_per_hour:9.0f}{'' if plan.fits else '  does not fit'}"
        )
    lines += ["", *_recommendation(plans), "", *_assumptions(plans[0])]
    return "\n".join(lines)


def _recommendation(plans: Sequence[Plan]) -> list[str]:
    """Which layout to take, why, and how sure that is."""
    if not (best := ranked(plans)):
        return ["none fits the card's memory: take more devices, or a larger card"]
    first, *others = best
    lines = [f"recommended: {first.name}, which is done first ({first.picture_seconds:.2f} s, estimated)"]
    if others:
        later = 100 * (others[0].picture_seconds / first.picture_seconds - 1)
        close = "; so close that only a measurement can tell" if later < CLOSE else ""
        lines.append(f"  the next, {others[0].name}, takes {later:.1f} % longer{close}")
    most = max((p for p in plans if p.fits), key=lambda p: p.pictures_per_hour)
    if most.pictures_per_hour > first.pictures_per_hour:
        lines.append(
            f"most pictures an hour: {most.name}, {most.request.pictures} at a time: {most.pictures_per_hour:.0f}, but "
            f"each is {most.picture_seconds:.2f} s in the making"
        )
    return lines


def _compiled(loop: Loop) -> list[str]:
    body = loop.body
    exposed = [c for c in body.collectives if c.exposed]
    lines = [
        f"  {loop.name} step: {body.flops / 1e12:.3f} TFLOP, {len(body.kernels)} kernels, {len(body.collectives)} "
        f"transfers of {body.received / MB:.1f} MB; compiled in {loop.compile_seconds:.0f} s "
        f"({loop.trace_seconds:.0f} of them tracing)"
    ]
    if body.collectives:
        bare = sum(c.received for c in exposed)
        lines.append(f"    nothing heavy runs meanwhile for {len(exposed)} of them, {bare / MB:.2f} MB")
        hidden = [c for c in body.collectives if not c.exposed]
        for kind in sorted({c.kind for c in hidden}):
            some = [c for c in hidden if c.kind == kind]
            names = dict.fromkeys(name for c in some for name in c.under)
            under = {name: round(sum(c.under.get(name, 0) for c in some) / len(some), 1) for name in names}
            lines.append(f"    {len(some)} x {kind} under " + ", ".join(f"{n} {name}" for name, n in under.items()))
    if loop.copies:
        said = ", ".join(f"{count} {kind} of {size / MB:.0f} MB" for kind, (count, size) in loop.copies.items())
        lines.append(f"    copies of 1 MB and more: {said}")
    return lines


def memory_rows(plan: Plan) -> list[tuple[str, int]]:
    """What a device holds while it denoises, in bytes."""
    size = plan.weights // plan.request.model.parameters
    unet = plan.request.model.unet_parameters * size
    largest = plan.largest
    carry = plan.traffic.carry_bytes if plan.traffic else 0
    return [
        ("weights of the U-Net", unet),
        ("weights of the other parts", plan.weights - unet),
        ("carried from step to step", carry),
        (f"temporaries ({largest.name} steps)", largest.temporaries),
        ("keys and values of the text, and others", largest.held - carry),
    ]


def _estimated(loop: Loop) -> list[str]:
    body = loop.body
    lines = [
        f"  {f'a {loop.name} step':<44}{body.seconds * MS:8.2f} ms, of which it waits {body.waiting * MS:.2f} ms "
        f"({100 * body.wait_share:.1f} %)"
    ]
    for category, (count, seconds) in body.by_category().items():
        if count:
            lines.append(f"    {category:<32}{count:>8} x{seconds * MS:10.2f} ms")
    return lines


def _layers(loop: Loop) -> list[str]:
    """A step's kernels by kind of layer, costliest first."""
    lines = [f"{f'a {loop.name} step by layer (estimated)':<62}{'kernels':>8}{'ms':>8}{'%':>7}{'moved MB':>10}"]
    rest = [0.0, 0.0, 0.0]
    for (layer, category), row in loop.body.by_layer().items():
        if row[1] < SMALL * loop.body.seconds:
            rest = [a + b for a, b in zip(rest, row, strict=True)]
        else:
            lines.append(_layer(loop, layer, category, *row))
    return [*lines, _layer(loop, "less than 1 % each", "", *rest)]


def _layer(loop: Loop, layer: str, category: str, count: float, seconds: float, size: float) -> str:
    share = 100 * seconds / loop.body.seconds
    return f"  {layer:<34}{category:<26}{count:>8.0f}{seconds * MS:8.2f}{share:7.1f}{size / MB:10.1f}"


def _assumptions(plan: Plan) -> list[str]:
    card, rates = plan.request.card, plan.request.rates
    peak = card.peak(plan.request.dtype)
    return [
        "assumed, not measured (each can be given)",
        f"  {rates.flops / 1e12:.0f} TFLOP/s (peak {peak / 1e12:.0f}), memory {rates.memory / 1e12:.2f} TB/s "
        f"(peak {card.bandwidth / 1e12:.2f}), {rates.kernel * 1e6:.0f} µs a kernel",
        f"  {card.linked_by} {rates.link / GB:.0f} GB/s (peak {card.link / GB:.0f}) and {rates.latency * 1e6:.0f} µs, "
        f"between nodes {rates.network / GB:.1f} GB/s (peak {card.network / GB:.1f}) and "
        f"{rates.network_latency * 1e6:.0f} µs; one transfer at a time",
        "  kernels as XLA chooses them without trying any out; text encoding and decoding are not included",
    ]
