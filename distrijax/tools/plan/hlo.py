"""A parser of scheduled HLO, in which XLA prints each computation's instructions in the order in which they run."""

import dataclasses
import re
from functools import cached_property
from math import prod

import jax
import numpy as np

from distrijax.errors import DistrijaxError

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
    def arrays(self) -> list[tuple[int, int]]:
        """Elements and bytes of each array of the result."""
        sizes = ((_bits(dtype), prod(_numbers(shape))) for dtype, shape in _ARRAY.findall(self.type))
        return [(elements, bits * elements // 8) for bits, elements in sizes]

    @cached_property
    def bytes(self) -> int:
        """Size of the result, all arrays of a tuple together."""
        return sum(size for _, size in self.arrays)

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
        """The layer in which it was traced, where XLA still knows it: `unet.down_blocks.1.resnets.0.conv1`."""
        return self.attribute(r'op_name="(?:[^"]*/)?(\w+(?:\.\w+)+)/')

    @cached_property
    def groups(self) -> list[list[int]]:
        """Devices that take part together in a collective; sources and targets of a permute.

        XLA lists them, or counts them (`[4,2]<=[2,4]T(1,0)`), or names axes of a mesh
        (`mesh['cfg'=2,'patch'=4] {'patch'}`), whose devices it may count in turn.
        """
        if listed := self.attribute(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}"):
            return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed)]
        if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[^ ]*\)|\[[\d,]+\])", self.attributes):
            return _counted(counted[3]).reshape(int(counted[1]), int(counted[2])).tolist()
        named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(([^ ]*)\))? \{([^}:]+)\}", self.attributes)
        if not named:
            raise unreadable(f"the devices of {self.opcode}, in {self.attributes[:160]!r}")
        axes, along = dict(re.findall(r"'([^']+)'=(\d+)", named[1])), re.findall(r"'([^']+)'", named[3])
        sizes = {axis: int(size) for axis, size in axes.items()}
        devices = (_counted(named[2]) if named[2] else np.arange(prod(sizes.values()))).reshape(list(sizes.values()))
        last = np.moveaxis(devices, [list(sizes).index(axis) for axis in along], range(-len(along), 0))
        return last.reshape(-1, prod(sizes[axis] for axis in along)).tolist()


def unreadable(what: str) -> DistrijaxError:
    """Return the error for a program of which something would be left out of the count."""
    return DistrijaxError(
        f"cannot read {what}: this jax ({jax.__version__}) writes programs in a way that the plan does not know; "
        f"plan with jax 0.10 to 0.12"
    )


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
    loops = {
        name: {i.called("body") for i in instructions if i.opcode == "while"}
        for name, instructions in computations.items()
    }
    every = set().union(*loops.values())
    inner = set().union(*(loops[name] for name in every))
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


def _counted(text: str) -> np.ndarray:
    """Return the devices that "[2,4]T(1,0)" counts, or those of a plain list."""
    counted = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if counted is None:
        return np.array(_numbers(text))
    devices = np.arange(prod(_numbers(counted[1]))).reshape(_numbers(counted[1]))
    return devices.transpose(_numbers(counted[2])) if counted[2] else devices


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _bits(dtype: str) -> int:
    """Return the size of an element: 16 for `bf16`, 8 for `f8e4m3fn`, 0 for what holds no numbers."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")
