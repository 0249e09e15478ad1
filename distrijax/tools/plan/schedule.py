"""How long a step waits for its transfers: its compiled schedule, walked with a clock.

A kernel takes max(FLOPs / rate, bytes / rate) plus a launch. A collective starts when it is issued, or when the link is
free, and takes a latency plus the bytes it receives over the link's rate. Where its result is first used, the clock
waits for it. The schedule is the compiler's; the times are estimates, good for comparing schedules and layouts.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from math import prod

from distrijax.tools.plan.gpus import Rates
from distrijax.tools.plan.hlo import COLLECTIVES, Computations, Instruction, loop_bodies, parse

KERNELS = frozenset(
    {"custom-call", "fusion", "dot", "convolution", "reduce", "copy", "transpose", "concatenate"}
    | {"dynamic-update-slice", "dynamic-slice", "slice", "broadcast", "select", "add", "sort", "copy-start"}
)
CATEGORIES = ("attention", "products", "convolutions", "copies", "elementwise and norms")
_MOVING = {"parameter", "bitcast", "copy", "transpose", "slice", "dynamic-slice", "concatenate", "pad", "constant"}
_MOVING |= {"dynamic-update-slice", "tuple", "get-tuple-element", "copy-start", "reshape", "broadcast"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a step.

    Attributes:
        category: one of `CATEGORIES`.
        layer: empty if it belongs to none.
        start: seconds from the start of the step.
    """

    name: str
    category: str
    layer: str
    start: float
    seconds: float
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer: begun when the link is free, ready, needed, in seconds from the start of the step.

    Attributes:
        received: bytes on each device.
        nodes: it crosses from one node to another.
        exposed: no product, convolution or attention runs between its start and its use.
    """

    kind: str
    layer: str
    received: int
    nodes: bool
    began: float
    ready: float
    needed: float
    exposed: bool = True

    @property
    def waited(self) -> float:
        return max(0.0, self.ready - self.needed)


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One denoising step on one device, which takes `seconds`."""

    kernels: list[Kernel]
    collectives: list[Collective]
    seconds: float

    @property
    def waiting(self) -> float:
        return sum(c.waited for c in self.collectives)

    @property
    def wait_share(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def received(self) -> int:
        return sum(c.received for c in self.collectives)

    @property
    def exposed(self) -> list[Collective]:
        return [c for c in self.collectives if c.exposed]

    def by_category(self) -> dict[str, tuple[int, float]]:
        """Return the number of kernels and their seconds by category."""
        counts = Counter(kernel.category for kernel in self.kernels)
        return {c: (counts[c], sum(k.seconds for k in self.kernels if k.category == c)) for c in CATEGORIES}

    def by_layer(self) -> dict[tuple[str, str], tuple[int, float, int]]:
        """Return the number of kernels, their seconds and bytes by kind of layer and category, costliest first."""
        groups: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
        for kernel in self.kernels:
            groups[_layer_kind(kernel.layer), kernel.category].append(kernel)
        totals = {key: (len(ks), sum(k.seconds for k in ks), sum(k.bytes for k in ks)) for key, ks in groups.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def read(text: str, rates: Rates, node_size: int) -> Timeline:
    """Return the timeline of the body of a scheduled program's only loop.

    Args:
        node_size: number of devices in a node; devices are numbered node by node.
    """
    computations = parse(text)
    (body,) = loop_bodies(computations)
    return walk(computations, body, rates, node_size)


def walk(computations: Computations, name: str, rates: Rates, node_size: int) -> Timeline:
    """Return the timeline of one computation."""
    instructions = computations[name]
    by_name = {instruction.name: instruction for instruction in instructions}
    clock = link_free = 0.0
    heavy = 0  # products, convolutions and attentions up to now
    started: dict[str, tuple[Collective, int]] = {}
    kernels, collectives = list[Kernel](), list[Collective]()
    for instruction in instructions:
        opcode, kind = instruction.opcode, _collective(computations, instruction)
        operands = [by_name[o] for o in instruction.operands if o in by_name]
        if kind is not None and not opcode.endswith("-done"):
            received, nodes = _received(kind, instruction, operands, node_size)
            began = max(clock, link_free)
            latency, rate = (rates.network_latency, rates.network) if nodes else (rates.latency, rates.link)
            link_free = began + latency + received / rate
            clock += rates.kernel
            transfer = Collective(kind, instruction.layer, received, nodes, began, link_free, clock)
            if opcode == kind or '"is_sync":true' in instruction.attributes:
                collectives.append(transfer)
                clock = max(clock, link_free)
            else:
                started[instruction.name] = transfer, heavy
        elif opcode.endswith("-done") and instruction.operands and instruction.operands[0] in started:
            transfer, before = started.pop(instruction.operands[0])
            collectives.append(dataclasses.replace(transfer, needed=clock, exposed=heavy == before))
            clock = max(clock, transfer.ready)
        elif opcode == "while" or opcode in KERNELS:
            if opcode == "while":
                inner = walk(computations, instruction.called("body"), rates, node_size)
                trips = int(instruction.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
                category, flops, moved, seconds = "products", trips * inner.flops, 0, trips * inner.seconds
            else:
                flops, moved = _flops(computations, instruction, operands), _moved(instruction, operands)
                seconds = max(flops / rates.flops, moved / rates.memory) + rates.kernel
                category = _category(computations, instruction, flops)
            heavy += opcode == "while" or flops > 0
            kernels.append(Kernel(instruction.name, category, instruction.layer, clock, seconds, flops, moved))
            clock += seconds
    return Timeline(kernels, collectives, clock)


def largest_copies(text: str, least: int = 1_000_000) -> dict[str, tuple[int, int]]:
    """Return count and bytes of the "copy" and "transpose" kernels of a loop that write `least` bytes or more."""
    computations = parse(text)
    totals: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for instruction in (i for name in loop_bodies(computations) for i in computations[name]):
        inside = _inside(computations, instruction)
        kind = "transpose" if "transpose" in inside else "copy" if "copy" in inside else None
        if instruction.opcode in KERNELS and kind and inside <= _MOVING and instruction.bytes >= least:
            count, size = totals[kind]
            totals[kind] = count + 1, size + instruction.bytes
    return dict(totals)


def _layer_kind(layer: str) -> str:
    """Return the layer's name in any block: `resnets.conv1` for `down_blocks.1.resnets.0.conv1`."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:]) or "between layers"


def _collective(computations: Computations, instruction: Instruction) -> str | None:
    """Return which collective an instruction starts or is, if any."""
    kind = instruction.opcode.removesuffix("-start").removesuffix("-done")
    if instruction.opcode == "async-start":
        inside = computations.get(instruction.called("calls"), [])
        kind = next((inner.opcode for inner in inside if inner.opcode in COLLECTIVES), kind)
    return kind if kind in COLLECTIVES else None


def _received(kind: str, instruction: Instruction, operands: list[Instruction], node_size: int) -> tuple[int, bool]:
    """Return the bytes that a device receives, and whether any come from another node."""
    sent, groups = sum(o.bytes for o in operands), instruction.groups
    ranks = max((len(group) for group in groups), default=1)
    nodes = any(len({device // node_size for device in group}) > 1 for group in groups)
    share = {"all-gather": ranks - 1, "all-reduce": 2 * (ranks - 1) / ranks}.get(kind, 1)
    return int(sent * share), nodes


def _moved(instruction: Instruction, operands: list[Instruction]) -> int:
    """Return the bytes read and written. Of a slice only the slice itself, not the array that it is written into."""
    if "dynamic-update-slice" in instruction.opcode or "dynamic_update_slice" in instruction.name:
        return 2 * min((o.bytes for o in operands if o.bytes > 64), default=0)
    if "slice" in instruction.opcode or "slice" in instruction.name:
        return 2 * instruction.bytes
    return instruction.bytes + sum(o.bytes for o in operands)


def _flops(computations: Computations, instruction: Instruction, operands: list[Instruction]) -> int:
    if instruction.opcode == "fusion":
        return _products(computations, instruction.called("calls"))
    if instruction.opcode == "dot":
        return _product(instruction, operands)
    if "conv" in instruction.target:
        labels = instruction.attribute(r"dim_labels=\w+_(\w+)->")
        kernel = zip(labels, operands[1].shape, strict=False)
        return 2 * prod(instruction.shape) * prod(size for label, size in kernel if label != "o")
    if "fmha" in instruction.target:
        q, k = operands[0].shape, operands[1].shape
        keys = k[1] if k[-2:] == q[-2:] else k[2]
        return 4 * prod(q) * keys
    if re.search(r"cublas|gemm|matmul", instruction.target):
        contracted = instruction.attribute(r'lhs_contracting_dimensions":\["?(\d+)') or -1
        return 2 * prod(instruction.shape) * operands[0].shape[int(contracted)]
    return 0


def _products(computations: Computations, name: str) -> int:
    """Return the FLOPs of the matrix products inside a fusion."""
    instructions = computations.get(name, [])
    by_name, total = {instruction.name: instruction for instruction in instructions}, 0
    for instruction in instructions:
        if instruction.opcode == "dot":
            total += _product(instruction, [by_name[o] for o in instruction.operands])
        for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", instruction.attributes):
            total += _products(computations, called)
    return total


def _product(dot: Instruction, operands: list[Instruction]) -> int:
    contracted = dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
    return 2 * prod(dot.shape) * prod(operands[0].shape[int(d)] for d in contracted if d)


def _category(computations: Computations, instruction: Instruction, flops: int) -> str:
    if "fmha" in instruction.target:
        return "attention"
    if "conv" in instruction.target or instruction.opcode == "convolution":
        return "convolutions"
    if flops:
        return "products"
    return "copies" if _inside(computations, instruction) <= _MOVING else "elementwise and norms"


def _inside(computations: Computations, instruction: Instruction) -> set[str]:
    """Return the opcodes of which a kernel is made."""
    return {inner.opcode for inner in computations.get(instruction.called("calls"), [])} or {instruction.opcode}
