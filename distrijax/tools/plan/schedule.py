"""How long a step takes and waits: its compiled schedule, walked with a clock.

A transfer starts when it is issued, or when the link is free, and takes a latency plus the bytes it receives over the
link's rate; it slows the kernels that run meanwhile. Where its result is first used, the clock waits for it. The
schedule is the compiler's, the times are estimates.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from distrijax.parallel.cards import Rates
from distrijax.tools.plan.kernels import CATEGORIES, Work

GRAPH = 5  # kernels in a row that XLA records as a CUDA graph (xla_gpu_graph_min_graph_size)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective among `groups` of devices, each of which receives so many bytes. Nothing runs while one `blocks`.

    Attributes:
        began, ready, needed: seconds after the start of the step, in a timeline.
        nodes: it crosses from one node to another.
        exposed: no product, convolution or attention runs between its start and its use.
    """

    name: str
    kind: str
    layer: str
    received: int
    groups: tuple[tuple[int, ...], ...]
    blocks: bool
    began: float = 0.0
    ready: float = 0.0
    needed: float = 0.0
    nodes: bool = False
    exposed: bool = True

    @property
    def waited(self) -> float:
        return max(0.0, self.ready - self.needed)


Step = Sequence[Work | Transfer | str]
"""What a device runs, in this order; a name stands where the result of that transfer is first used."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One denoising step on one device.

    Attributes:
        device: seconds that the device takes for it.
        host: seconds in which the host enqueues it, while the device works on what came before.
        launches: CUDA graphs, and kernels outside of any.
    """

    kernels: list[Work]
    collectives: list[Transfer]
    device: float
    host: float
    launches: int

    @property
    def seconds(self) -> float:
        return max(self.device, self.host)

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
    def exposed(self) -> list[Transfer]:
        return [c for c in self.collectives if c.exposed]

    def by_category(self) -> dict[str, tuple[int, float]]:
        """Return the number of kernels and their seconds by category."""
        totals = self._totals(lambda work: (work.category,))
        return {category: totals[(category,)][:2] for category in CATEGORIES}

    def by_layer(self) -> dict[tuple[str, ...], tuple[int, float, int]]:
        """Return the number of kernels, their seconds and bytes by kind of layer and category, costliest first."""
        totals = self._totals(lambda work: (_layer_kind(work.layer), work.category))
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))

    def _totals(self, key: Callable[[Work], tuple[str, ...]]) -> dict[tuple[str, ...], tuple[int, float, int]]:
        totals: dict[tuple[str, ...], tuple[int, float, int]] = defaultdict(lambda: (0, 0.0, 0))
        for kernel in self.kernels:
            count, seconds, size = totals[key(kernel)]
            totals[key(kernel)] = count + 1, seconds + kernel.took, size + kernel.bytes
        return totals


def walk(step: Step, rates: Rates, node_size: int) -> Timeline:
    """Return the timeline of a step, where a node has so many devices, which are numbered node by node."""
    clock = link_free = 0.0
    heavy = 0  # products, convolutions and attentions up to now
    pending: dict[str, tuple[Transfer, int]] = {}
    kernels, collectives, launches = list[Work](), list[Transfer](), _launches(step)
    for index, item in enumerate(step):
        clock += rates.graph * (index in launches)
        if isinstance(item, Work):
            kernels.append(dataclasses.replace(item, start=clock, took=item.seconds(rates)))
            clock += kernels[-1].took
            heavy += item.flops > 0
        elif isinstance(item, Transfer):
            nodes = any(len({device // node_size for device in group}) > 1 for group in item.groups)
            latency, rate = (rates.network_latency, rates.network) if nodes else (rates.latency, rates.link)
            began = max(clock, link_free)
            link_free = began + latency + item.received / rate
            clock += rates.kernel
            pending[item.name] = dataclasses.replace(item, began=began, ready=link_free, nodes=nodes), heavy
        if isinstance(item, str) or (isinstance(item, Transfer) and item.blocks):
            transfer, before = pending.pop(item if isinstance(item, str) else item.name)
            if not transfer.blocks:
                clock += rates.slowed * max(0.0, min(clock, transfer.ready) - transfer.began)
            collectives.append(dataclasses.replace(transfer, needed=clock, exposed=heavy == before))
            clock = max(clock, transfer.ready)
    return Timeline(kernels, collectives, clock, rates.enqueue * (len(kernels) + len(collectives)), len(launches))


def _launches(step: Step) -> set[int]:
    """Return the items that the host launches: all but the kernels after the first of a CUDA graph.

    XLA records neither convolutions nor transfers in CUDA graphs.
    """
    launches, run = {index for index, item in enumerate(step) if not isinstance(item, str)}, list[int]()
    for index, item in enumerate([*step, None]):
        if isinstance(item, Work) and item.category != "convolutions":
            run.append(index)
        elif not isinstance(item, str):
            launches -= set(run[1:] if len(run) >= GRAPH else ())
            run = []
    return launches


def _layer_kind(layer: str) -> str:
    """Return the layer's name in any block: `resnets.conv1` for `unet.down_blocks.1.resnets.0.conv1`."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:]) or "between layers"
