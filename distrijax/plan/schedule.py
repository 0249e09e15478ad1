"""How long a loop's body waits for its transfers: its schedule, walked with a clock.

A kernel takes max(FLOPs / rate, bytes / rate) and a launch. A collective starts when it is issued, one transfer at a
time, and takes a latency and what it receives over the link's rate; where its result is first used, the clock waits for
it. What is walked was compiled; the times are an estimate, good for comparing schedules and layouts.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from math import prod

from distrijax.plan.cards import Rates
from distrijax.plan.hlo import COLLECTIVES, Computations, Instruction, loop_bodies, parse

KERNELS = frozenset(
    {"custom-call", "fusion", "dot", "convolution", "reduce", "copy", "transpose", "concatenate"}
    | {"dynamic-update-slice", "dynamic-slice", "slice", "broadcast", "select", "add", "sort", "copy-start"}
)
CATEGORIES = ("attention", "products", "convolutions", "copies", "elementwise and norms")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """`category` is one of `CATEGORIES`, `layer` is empty where none has a name; seconds, from the step's begin."""

    name: str
    category: str
    layer: str
    start: float
    seconds: float
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer. It is issued, begins when the link is free, is ready, and is needed: seconds from the step's begin.

    Attributes:
        received: bytes on each device.
        nodes: it crosses from one node to another.
        under: products, convolutions and attentions between its start and its use, by category.
    """

    name: str
    kind: str
    layer: str
    received: int
    nodes: bool
    issued: float
    began: float
    ready: float
    needed: float
    under: dict[str, int]

    @property
    def waited(self) -> float:
        return max(0.0, self.ready - self.needed)

    @property
    def exposed(self) -> bool:
        """Nothing heavy runs meanwhile."""
        return not self.under


@dataclasses.dataclass(frozen=True)
class Body:
    """One step of a denoising loop, on one device."""

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

    def by_category(self) -> dict[str, tuple[int, float]]:
        """Number of kernels and their seconds."""
        counts = Counter(kernel.category for kernel in self.kernels)
        return {c: (counts[c], sum(k.seconds for k in self.kernels if k.category == c)) for c in CATEGORIES}

    def by_layer(self) -> dict[tuple[str, str], tuple[int, float, int]]:
        """Kind of layer and category: number of kernels, their seconds and the bytes they move. Costliest first."""
        found: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
        for kernel in self.kernels:
            found[_kind(kernel.layer), kernel.category].append(kernel)
        rows = {key: (len(ks), sum(k.seconds for k in ks), sum(k.bytes for k in ks)) for key, ks in found.items()}
        return dict(sorted(rows.items(), key=lambda row: -row[1][1]))


def read(text: str, rates: Rates, node: int) -> Body:
    """The body of a program's only loop.

    Args:
        text: the scheduled program.
        node: devices of a node; devices are numbered node by node.
    """
    computations = parse(text)
    (body,) = loop_bodies(computations)
    return walk(computations, body, rates, node)


def walk(computations: Computations, name: str, rates: Rates, node: int) -> Body:
    """A computation with a clock."""
    rows = computations[name]
    given = {row.name: row for row in rows}
    clock = link_free = 0.0
    heavy: Counter[str] = Counter()
    started: dict[str, tuple[Collective, Counter[str]]] = {}
    kernels, collectives = list[Kernel](), list[Collective]()
    for row in rows:
        kind = _collective(computations, row)
        operands = [given[o] for o in row.operands if o in given]
        if kind is not None and not row.opcode.endswith("-done"):
            received, nodes = _received(kind, row, operands, node)
            began = max(clock, link_free)
            latency, rate = (rates.network_latency, rates.network) if nodes else (rates.latency, rates.link)
            link_free = began + latency + received / rate
            issued, clock = clock, clock + rates.kernel
            one = Collective(row.name, kind, row.layer, received, nodes, issued, began, link_free, clock, {})
            if row.opcode == kind or '"is_sync":true' in row.attributes:
                collectives.append(one)
                clock = max(clock, link_free)
            else:
                started[row.name] = one, heavy.copy()
        elif row.opcode.endswith("-done") and row.operands and row.operands[0] in started:
            one, before = started.pop(row.operands[0])
            collectives.append(dataclasses.replace(one, needed=clock, under=dict(heavy - before)))
            clock = max(clock, one.ready)
        elif row.opcode == "while":
            inner = walk(computations, row.called("body") or "", rates, node)
            trips = int(next(iter(re.findall(r'known_trip_count":\{"n":"(\d+)"', row.attributes)), 1))
            kernels.append(
                Kernel(row.name, "products", row.layer, clock, trips * inner.seconds, trips * inner.flops, 0)
            )
            clock += trips * inner.seconds
            heavy["products"] += 1
        elif row.opcode in KERNELS:
            flops, moved = _flops(computations, row, operands), _moved(row, operands)
            seconds = max(flops / rates.flops, moved / rates.memory) + rates.kernel
            category = _category(computations, row, flops)
            kernels.append(Kernel(row.name, category, row.layer, clock, seconds, flops, moved))
            heavy[category] += flops > 0
            clock += seconds
    return Body(kernels, collectives, clock)


def _kind(layer: str) -> str:
    """The layer's name in any block: `resnets.conv1` for `down_blocks.1.resnets.0.conv1`."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:]) or "between layers"


def _collective(computations: Computations, row: Instruction) -> str | None:
    """Which collective an instruction starts or is."""
    kind = row.opcode.removesuffix("-start").removesuffix("-done")
    if row.opcode == "async-start":
        inside = computations.get(row.called("calls") or "", [])
        kind = next((inner.opcode for inner in inside if inner.opcode in COLLECTIVES), kind)
    return kind if kind in COLLECTIVES else None


def _received(kind: str, row: Instruction, operands: list[Instruction], node: int) -> tuple[int, bool]:
    """Bytes that a device receives, and whether any come from another node."""
    sent, groups = sum(o.bytes for o in operands), row.groups
    ranks = max((len(group) for group in groups), default=1)
    nodes = any(len({device // node for device in group}) > 1 for group in groups)
    share = {"all-gather": ranks - 1, "all-reduce": 2 * (ranks - 1) / ranks}.get(kind, 1)
    return int(sent * share), nodes


def _moved(row: Instruction, operands: list[Instruction]) -> int:
    """Bytes read and written. A slice is read and written alone, wherever it is written to."""
    if "dynamic-update-slice" in row.opcode or "dynamic_update_slice" in row.name:
        return 2 * min((o.bytes for o in operands if o.bytes > 64), default=0)
    if "slice" in row.opcode or "slice" in row.name:
        return 2 * row.bytes
    return row.bytes + sum(o.bytes for o in operands)


def _flops(computations: Computations, row: Instruction, operands: list[Instruction]) -> int:
    if row.opcode == "fusion":
        return _dots(computations, row.called("calls"))
    if row.opcode in ("dot", "convolution"):
        return _dot(row, operands) if row.opcode == "dot" else 0
    if "conv" in row.target:
        labels = re.search(r"dim_labels=\w+_(\w+)->", row.attributes)
        kernel = zip(labels[1] if labels else "", operands[1].shape, strict=False)
        return 2 * prod(row.shape) * prod(size for label, size in kernel if label != "o")
    if "fmha" in row.target:
        q, k = operands[0].shape, operands[1].shape
        keys = k[1] if k[-2:] == q[-2:] else k[2]
        return 4 * prod(q) * keys
    if re.search(r"cublas|gemm|matmul", row.target):
        found = re.search(r'lhs_contracting_dimensions":\["?(\d+)', row.attributes)
        return 2 * prod(row.shape) * operands[0].shape[int(found[1]) if found else -1]
    return 0


def _dots(computations: Computations, name: str | None) -> int:
    """FLOPs of the products inside a fusion."""
    rows = computations.get(name or "", [])
    given, total = {row.name: row for row in rows}, 0
    for row in rows:
        if row.opcode == "dot":
            total += _dot(row, [given[o] for o in row.operands])
        for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", row.attributes):
            total += _dots(computations, called)
    return total


def _dot(row: Instruction, operands: list[Instruction]) -> int:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", row.attributes)
    contracted = [int(n) for n in found[1].split(",") if n] if found else []
    return 2 * prod(row.shape) * prod(operands[0].shape[d] for d in contracted)


def _category(computations: Computations, row: Instruction, flops: int) -> str:
    if "fmha" in row.target:
        return "attention"
    if "conv" in row.target or row.opcode == "convolution":
        return "convolutions"
    if flops:
        return "products"
    return "copies" if _inside(computations, row) <= _MOVING else "elementwise and norms"


_MOVING = {"parameter", "bitcast", "copy", "transpose", "slice", "dynamic-slice", "concatenate", "pad", "constant"}
_MOVING |= {"dynamic-update-slice", "tuple", "get-tuple-element", "copy-start", "reshape", "broadcast"}


def _inside(computations: Computations, row: Instruction) -> set[str]:
    """What a kernel is made of."""
    return {inner.opcode for inner in computations.get(row.called("calls") or "", [])} or {row.opcode}


def largest_copies(text: str, least: int = 1_000_000) -> dict[str, tuple[int, int]]:
    """Kernels of a loop's body that only copy or transpose, and write `least` bytes or more: how many, their bytes."""
    computations = parse(text)
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name in loop_bodies(computations):
        for row in computations[name]:
            inside = _inside(computations, row)
            kind = "transpose" if "transpose" in inside else "copy" if "copy" in inside else None
            if row.opcode in KERNELS and kind and inside <= _MOVING and row.bytes >= least:
                count, size = found[kind]
                found[kind] = count + 1, size + row.bytes
    return dict(found)
