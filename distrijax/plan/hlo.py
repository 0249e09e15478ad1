"""Reading a scheduled program: XLA prints each computation's instructions in the order in which they will run."""

import dataclasses
import re
from functools import cached_property
from math import prod

import numpy as np

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \(.*\) -> .*\{\n)")
COLLECTIVES = frozenset(
    {"all-gather", "all-reduce", "collective-permute", "reduce-scatter", "all-to-all", "collective-broadcast"}
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `type` is what it results in, `operands` the names of what it takes, `attributes` the rest."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @cached_property
    def bytes(self) -> int:
        """Of all arrays that it results in."""
        return sum(_BITS.get(dtype, 0) * prod(_numbers(shape)) // 8 for dtype, shape in _ARRAY.findall(self.type))

    @property
    def shape(self) -> list[int]:
        """Of the first array that it results in."""
        found = _ARRAY.search(self.type)
        return _numbers(found[2]) if found else []

    def called(self, attribute: str) -> str | None:
        """The name of the computation that an attribute refers to."""
        found = re.search(rf"{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""

    @property
    def layer(self) -> str:
        """The layer that it was traced in, as far as XLA still knows: `down_blocks.1.resnets.0.conv1`."""
        found = re.search(r'op_name="[^"]*/closed_call/([\w.]+)/', self.attributes)
        return found[1] if found else ""

    @cached_property
    def groups(self) -> list[list[int]]:
        """Devices that take part together in a collective; sources and targets of a permute."""
        found = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", self.attributes)
        if found:
            return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
        found = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", self.attributes)
        if not found:
            return []
        devices = np.arange(prod(_numbers(found[3]))).reshape(_numbers(found[3]))
        devices = devices.transpose(_numbers(found[4])) if found[4] else devices
        return devices.reshape(int(found[1]), int(found[2])).tolist()


Computations = dict[str, list[Instruction]]


def parse(text: str) -> Computations:
    """Of a program as `compiled.as_text()` prints it: the instructions of each computation, in their order."""
    computations: Computations = {}
    for block in _HEAD.split(text):
        lines = block.splitlines()
        if not lines or ") -> " not in lines[0]:
            continue
        name = lines[0].removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
        computations[name] = [found for line in lines[1:] if (found := _instruction(line)) is not None]
    return computations


def loop_bodies(computations: Computations) -> list[str]:
    """The bodies of loops that no other loop contains."""
    found = {row.called("body") for rows in computations.values() for row in rows if row.opcode == "while"}
    inner = {row.called("body") for name in found if name for row in computations[name] if row.opcode == "while"}
    return [name for name in computations if name in found - inner]


def renamed(text: str, suffix: str) -> str:
    """The program with `suffix` behind the name of every computation and instruction."""
    names = re.compile(r"%([A-Za-z_][\w.\-]*)")
    return names.sub(rf"%\1{suffix}", text)


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
    """Where the bracket at `start` is closed."""
    depth = 0
    for found in re.compile(r"[(\[{)\]}]").finditer(text, start):
        depth += 1 if found[0] in "([{" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
