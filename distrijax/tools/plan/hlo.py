"""A parser of scheduled HLO, in which XLA prints each computation's instructions in the order in which they run."""

import dataclasses
import re
from functools import cached_property
from math import prod

import numpy as np

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \(.*\) -> .*\{\n)")
COLLECTIVES = frozenset(
    {"all-gather", "all-reduce", "collective-permute", "reduce-scatter", "all-to-all", "collective-broadcast"}
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        type: of its result: an array or a tuple.
        operands: names of instructions.
        attributes: the rest of the line.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @cached_property
    def bytes(self) -> int:
        """Size of the result, all arrays of a tuple together."""
        return sum(_bits(dtype) * prod(_numbers(shape)) // 8 for dtype, shape in _ARRAY.findall(self.type))

    @property
    def shape(self) -> list[int]:
        """Shape of the result, or of the first array of a tuple."""
        match = _ARRAY.search(self.type)
        return _numbers(match[2]) if match else []

    def attribute(self, pattern: str) -> str:
        """Return what the first group of `pattern` matches in the attributes, or an empty string."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""

    def called(self, attribute: str) -> str:
        """Return the name of the computation that an attribute refers to, such as "body" of a while."""
        return self.attribute(rf"{attribute}=%?([\w.\-]+)")

    @property
    def target(self) -> str:
        """The target of a custom call."""
        return self.attribute(r'custom_call_target="([^"]+)"')

    @property
    def layer(self) -> str:
        """The layer in which it was traced, where XLA still knows it: `down_blocks.1.resnets.0.conv1`."""
        return self.attribute(r'op_name="[^"]*/(?:body|closed_call)/(\w+\.[\w.]+)/')

    @cached_property
    def groups(self) -> list[list[int]]:
        """Devices that take part together in a collective; sources and targets of a permute."""
        if listed := self.attribute(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}"):
            return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed)]
        iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", self.attributes)
        if not iota:
            return []
        devices = np.arange(prod(_numbers(iota[3]))).reshape(_numbers(iota[3]))
        devices = devices.transpose(_numbers(iota[4])) if iota[4] else devices
        return devices.reshape(int(iota[1]), int(iota[2])).tolist()


Computations = dict[str, list[Instruction]]


def parse(text: str) -> Computations:
    """Return the instructions of each computation of a program, in the order of `compiled.as_text()`."""
    computations: Computations = {}
    for block in _HEAD.split(text):
        lines = block.splitlines()
        if not lines or ") -> " not in lines[0]:
            continue
        name = lines[0].removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
        computations[name] = [instruction for line in lines[1:] if (instruction := _instruction(line)) is not None]
    return computations


def loop_bodies(computations: Computations) -> list[str]:
    """Return the names of the bodies of loops that no other loop contains."""

    def bodies(instructions: list[Instruction]) -> set[str]:
        return {i.called("body") for i in instructions if i.opcode == "while"}

    every = set().union(*map(bodies, computations.values()))
    inner = set().union(*(bodies(computations[name]) for name in every))
    return [name for name in computations if name in every - inner]


def _instruction(line: str) -> Instruction | None:
    line = re.sub(r"/\*index=\d+\*/", "", line.strip()).removeprefix("ROOT ")
    name, _, right = line.partition(" = ")
    if not right:
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.find(" ")
    call = right[end:].strip()
    opcode = re.match(r"([\w\-]+)\(", call)
    if opcode is None:
        return None
    stop = _closing(call, opcode.end() - 1)
    operands = tuple(re.findall(r"%([\w.\-]+)", call[opcode.end() : stop]))
    return Instruction(name.lstrip("%"), right[:end], opcode[1], operands, call[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """Return where the bracket at `start` is closed."""
    depth = 0
    for bracket in re.compile(r"[(\[{)\]}]").finditer(text, start):
        depth += 1 if bracket[0] in "([{" else -1
        if depth == 0:
            return bracket.start()
    return len(text)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _bits(dtype: str) -> int:
    """Return the size of an element: 16 for `bf16`, 8 for `f8e4m3fn`, 0 for what holds no numbers."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")
