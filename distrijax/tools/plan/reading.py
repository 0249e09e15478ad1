"""What the kernels and transfers of a compiled program do, read from its HLO text.

What cannot be read is an error: a zero in its place would make the program look cheap.
"""

import re
from math import prod

from distrijax.tools.plan.hlo import COLLECTIVES, Computations, Instruction, loop_bodies, parse, unreadable
from distrijax.tools.plan.kernels import CHAIN, REDUCING, Shape, Work
from distrijax.tools.plan.schedule import Step, Transfer

_OPCODES = {
    "no kernel": "parameter bitcast constant tuple get-tuple-element reshape partition-id replica-id after-all "
    "opt-barrier copy-done fusion-done",
    "moving": "copy transpose slice dynamic-slice dynamic-update-slice concatenate pad broadcast iota",
    "special": "exponential exponential-minus-one log log-plus-one logistic tanh erf sine cosine tan atan2 divide "
    "remainder power sqrt rsqrt cbrt",
    "plain": "add subtract multiply maximum minimum negate abs select compare convert clamp and or not xor reduce "
    "reduce-window sort gather scatter reverse is-finite floor ceil sign",
}
_NO_KERNEL, _MOVING, _SPECIAL, _PLAIN = (set(names.split()) for names in _OPCODES.values())
_KERNELS = _MOVING | _SPECIAL | _PLAIN | {"fusion", "custom-call", "dot"}
_PLACE = 10  # instructions for an element of a result: to find its place, to load and to store it


def read(text: str) -> Step:
    """Return a step: the body of a scheduled program's only loop.

    Raises:
        DistrijaxError: this JAX writes something in an unknown way.
    """
    computations = parse(text)
    bodies = loop_bodies(computations)
    if len(bodies) != 1:
        raise unreadable(f"a program with {len(bodies)} loops, where a denoising program has one")
    step = _step(computations, bodies[0])
    if not any(item.layer for item in step if not isinstance(item, str)):
        raise unreadable("the names of layers, of which the program has none")
    return step


def _step(computations: Computations, name: str) -> list[Work | Transfer | str]:
    step: list[Work | Transfer | str] = []
    by_name = {instruction.name: instruction for instruction in computations[name]}
    transfers: dict[str, Transfer] = {}
    for instruction in computations[name]:
        opcode, operands = instruction.opcode, [by_name[o] for o in instruction.operands if o in by_name]
        if opcode in _NO_KERNEL:
            continue
        if opcode.endswith("-done") and operands and operands[0].name in transfers:
            step += [] if transfers[operands[0].name].blocks else [operands[0].name]
        elif (kind := _collective(computations, instruction)) is not None:
            transfers[instruction.name] = _transfer(kind, instruction, operands)
            step.append(transfers[instruction.name])
        elif opcode == "while":
            trips = instruction.attribute(r'known_trip_count":\{"n":"(\d+)"')
            if not trips:
                raise unreadable(f"how often the inner loop {instruction.name} runs")
            step += int(trips) * _step(computations, instruction.called("body"))
        elif opcode.removesuffix("-start") in _KERNELS:
            step.append(_work(computations, instruction, operands))
        else:
            raise unreadable(f"the instruction {opcode} ({instruction.name})")
    return step


def _collective(computations: Computations, instruction: Instruction) -> str | None:
    """Return which collective an instruction starts or is, if any."""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "async":
        kind = next((i.opcode for i in computations[instruction.called("calls")] if i.opcode in COLLECTIVES), kind)
    return kind if kind in COLLECTIVES else None


def _transfer(kind: str, instruction: Instruction, operands: list[Instruction]) -> Transfer:
    groups, blocks = tuple(map(tuple, instruction.groups)), '"is_sync":true' in instruction.attributes
    ranks = max(len(group) for group in groups)
    others = ranks - 1
    times = {"all-gather": others, "all-reduce": 2 * others / ranks, "all-to-all": others / ranks}.get(kind, 1)
    received = int(times * sum(operand.bytes for operand in operands))
    return Transfer(instruction.name, kind, instruction.layer, received, groups, blocks or instruction.opcode == kind)


def _work(computations: Computations, instruction: Instruction, operands: list[Instruction]) -> Work:
    inside = computations.get(instruction.called("calls"), [instruction])
    shapes = _shapes(computations, instruction, operands)
    moving = {inner.opcode for inner in inside} <= _MOVING | _NO_KERNEL
    category = "attention" if "fmha" in instruction.target else "convolutions" if "conv" in instruction.target else ""
    category = category or ("products" if shapes else "copies" if moving else "elementwise and norms")
    operations, special, chain = (0, 0, CHAIN[category]) if shapes else _arithmetic(instruction, inside, operands)
    read, written = sum(operand.bytes for operand in operands), instruction.bytes
    # Of a slice only the slice itself, not the array that it is read from or written into.
    if "dynamic-update-slice" in instruction.opcode or "dynamic_update_slice" in instruction.name:
        read = written = min((o.bytes for o in operands if o.bytes > 64), default=0)
    elif "slice" in instruction.opcode or "slice" in instruction.name:
        read = written
    elif instruction.opcode == "custom-call":  # the rest of its result is workspace
        written = instruction.arrays[0][1] if instruction.arrays else 0
    return Work(
        instruction.name, category, instruction.layer, tuple(shapes), read, written, operations, special, chain
    )  # fmt: skip


def _shapes(computations: Computations, instruction: Instruction, operands: list[Instruction]) -> list[Shape]:
    """Return the products of a kernel (see `Work`)."""
    target = instruction.target
    if instruction.opcode == "fusion":
        return _products(computations, instruction.called("calls"))
    if instruction.opcode == "dot":
        return [_product(instruction, operands, r"{}_dims=\{{([\d,]*)")]
    if instruction.opcode != "custom-call":
        return []
    if "fmha" in target:
        q, k = operands[0].shape, operands[1].shape
        tokens, heads = (1, 2) if k[-2:] == q[-2:] else (2, 1)
        return [(q[0] * q[heads], q[tokens], k[tokens], q[3])]
    if "conv" in target and "o" in (labels := instruction.attribute(r"dim_labels=\w+_(\w+)->")):
        channels = operands[1].shape[labels.index("o")]
        return [(1, prod(instruction.shape) // channels, channels, prod(operands[1].shape) // channels)]
    if re.search(r"cublas|gemm|matmul", target):
        return [_product(instruction, operands, r'{}_dimensions":\[([\d,"]*)')]
    raise unreadable(f"what the custom call {target} ({instruction.name}) computes")


def _products(computations: Computations, name: str) -> list[Shape]:
    """Return the matrix products inside a fusion."""
    instructions, shapes = computations.get(name, []), list[Shape]()
    by_name = {instruction.name: instruction for instruction in instructions}
    for instruction in instructions:
        if instruction.opcode == "dot":
            shapes += _shapes(computations, instruction, [by_name[o] for o in instruction.operands])
        for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", instruction.attributes):
            shapes += _products(computations, called)
    return shapes


def _product(dot: Instruction, operands: list[Instruction], pattern: str) -> Shape:
    """Return the shape of a product, whose attributes name its dimensions by `pattern`."""
    free, count, inner = list[int](), 1, 0
    for operand, side in zip(operands, ("lhs", "rhs"), strict=False):
        kinds = (dot.attribute(pattern.format(f"{side}_{kind}")) for kind in ("batch", "contracting"))
        batch, contracted = (prod(operand.shape[int(d)] for d in re.findall(r"\d+", found)) for found in kinds)
        free, count, inner = [*free, prod(operand.shape) // (batch * contracted)], batch, contracted
    if len(free) != 2 or not dot.attribute(pattern.format("lhs_contracting")):
        raise unreadable(f"the contracted dimensions of {dot.name}")
    return count, free[0], free[1], inner


def _arithmetic(
    instruction: Instruction, inside: list[Instruction], operands: list[Instruction]
) -> tuple[int, int, float]:
    """Return a kernel's instructions, those of them that take longer, and its chain of accesses to memory.

    A fusion computes each operation anew for every element of its result or, before a reduction, of what that takes
    in. Rows are reduced within a warp, after one access; columns step by step.
    """
    by_name = {inner.name: inner for inner in (*operands, *inside)}
    results = max((elements for elements, _ in instruction.arrays), default=0)
    operations, special, chain = _PLACE * results, 0, 1.0
    for inner in inside:
        if inner.opcode in _MOVING | _NO_KERNEL:
            continue
        elements = max([results, *(elements for elements, _ in inner.arrays)])
        if inner.opcode == "reduce" and "kind=kLoop" not in instruction.attributes:
            shape = by_name[inner.operands[0]].shape
            reduced = [int(d) for d in inner.attribute(r"dimensions=\{([\d,]*)\}").split(",") if d]
            rows = len(shape) - 1 in reduced
            chain = max(chain, 2 if rows else 1 + prod(shape[d] for d in reduced) / REDUCING)
            elements = max(elements, prod(shape))
        operations += elements
        special += elements * (inner.opcode in _SPECIAL)
    return operations, special, chain
