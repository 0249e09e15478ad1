"""What a kernel of a compiled program does, and how long a card takes for it.

A kernel starts (`Rates.kernel`), waits for a chain of memory accesses, and then takes as long as its arithmetic or its
memory traffic, whichever is longer. Products and convolutions are cut into tiles, one a multiprocessor, and the last
wave takes as long as a full one; the best of a few tiles counts, as XLA's autotuner finds it. The numbers here are
fitted to the kernels of two steps of SDXL on an H200: a whole one, and that of one of eight devices.
"""

import dataclasses
from math import ceil

from distrijax.parallel.cards import Rates

Shape = tuple[int, int, int, int]
CATEGORIES = ("attention", "products", "convolutions", "copies", "elementwise and norms")

ROUND_TRIP = 1500  # cycles of one access to memory in a chain of them, under load
CHAIN = {"attention": 2, "products": 4, "convolutions": 4}  # accesses that wait for each other: fill, write, bias
REDUCING = 128  # elements of a column that one round trip reads
TILES = {
    "products": ((64, 64), (64, 128), (128, 128), (128, 160), (128, 192), (128, 256), (256, 96), (256, 128)),
    "convolutions": ((64, 64), (128, 64), (256, 64), (64, 128), (128, 128), (256, 128)),
}
NARROW = 0.6  # of the rate: what tiles of 64 columns reach
STAGES = 256  # elements of the contracted dimension that are read before the arithmetic begins
SPECIAL = 16  # exponentials, divisions and the like of a multiprocessor in a cycle
VECTOR = 0.8  # of the peak: what arithmetic outside the tensor cores reaches


@dataclasses.dataclass(frozen=True)
class Work:
    """A kernel, whatever the card.

    Attributes:
        category: one of `CATEGORIES`.
        layer: empty if it belongs to none.
        shapes: (count, rows, columns, contracted) of its matrix products, as which convolutions count; of an attention
            (heads, queries, keys, channels).
        read, written: bytes.
        operations, special: instructions outside the tensor cores, and those of them that take longer.
        chain: memory accesses that wait for each other.
        start, took: seconds, in a timeline.
    """

    name: str
    category: str
    layer: str
    shapes: tuple[Shape, ...]
    read: int
    written: int
    operations: int
    special: int
    chain: float
    start: float = 0.0
    took: float = 0.0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    @property
    def flops(self) -> int:
        each = 4 if self.category == "attention" else 2
        return sum(each * count * rows * columns * inner for count, rows, columns, inner in self.shapes)

    def seconds(self, rates: Rates) -> float:
        """Return how long the card works on it, its start included."""
        memory = self.bytes / rates.memory
        if self.category == "attention":
            busy = max(memory, sum(_attention(shape, rates) for shape in self.shapes))
        elif self.shapes:
            busy = min(self._tiled(tile, rates) for tile in TILES[self.category])
        else:
            cycles = self.operations / rates.lanes + self.special / SPECIAL
            busy = max(memory, cycles / (VECTOR * rates.cores * rates.clock))
        return rates.kernel + self.chain * ROUND_TRIP / rates.clock + busy

    def _tiled(self, tile: tuple[int, int], rates: Rates) -> float:
        rows, columns = tile
        rate = rates.flops / rates.cores * (NARROW if columns == 64 else 1)
        waves = [ceil(n * ceil(m / rows) * ceil(k / columns) / rates.cores) for n, m, k, _ in self.shapes]
        arithmetic = sum(2 * rows * columns * s[3] * w / rate for s, w in zip(self.shapes, waves, strict=True))
        # Before the first wave has read its first stages, and after the last one, the tensor cores wait.
        alone = self.read * min(1, STAGES / max(s[3] for s in self.shapes)) + self.written
        return max(arithmetic, self.bytes / rates.memory) + alone / sum(waves) / rates.memory


def _attention(shape: Shape, rates: Rates) -> float:
    """A multiprocessor takes 128 queries and 128 keys at a time; products and exponentials take turns."""
    heads, queries, keys, channels = shape
    tiles = ceil(heads * ceil(queries / 128) / rates.cores) * ceil(keys / 128)
    score = 4 * channels * rates.cores / rates.flops + 1 / (SPECIAL * VECTOR * rates.clock)
    return tiles * 128 * 128 * score
