"""Compiled programs and the XLA options that go with them. What XLA makes of the options: test_overlap."""

import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from parallel_helpers import small_unet

from distrijax import Parallel
from distrijax.runtime import compile as compiling
from distrijax.runtime import xla_options
from distrijax.runtime.compile import Program, compile_with
from distrijax.sampling import programs
from distrijax.sampling.inputs import abstract_inputs
from distrijax.schedulers import EulerDiscreteScheduler


def multiply(x: Array, *, times: int) -> Array:
    return x * times


def test_a_program_is_compiled_once_for_each_shape_and_choice() -> None:
    lines: list[str] = []
    program = Program("multiplying", multiply, static=["times"], report=lines.append)
    for _ in range(2):
        assert program(np.float32(3), times=2) == 6
        assert program(np.float32(3), times=4) == 12
        assert program(np.ones(5, np.float32), times=2).shape == (5,)
    assert [line == "preparing multiplying ..." for line in lines] == 3 * [True, False]
    assert all(re.fullmatch(r"compiled multiplying in \d+\.\d s", line) for line in lines[1::2])
    assert program.waited > 0


def test_a_program_that_was_prepared_from_shapes_is_not_compiled_again() -> None:
    """Whatever the sharding: weights are described before they are read."""
    mesh = jax.make_mesh((1,), ("patch",), axis_types=(AxisType.Auto,))
    for spec in (PartitionSpec(), PartitionSpec("patch")):
        lines: list[str] = []
        program = Program("multiplying", multiply, static=["times"], report=lines.append)
        sharding = NamedSharding(mesh, spec)
        program.prepare(jax.ShapeDtypeStruct((4,), jnp.bfloat16, sharding=sharding), times=2).wait()
        assert len(lines) == 2
        result = program(jax.device_put(jnp.ones(4, jnp.bfloat16), sharding), times=2)
        assert result.tolist() == [2, 2, 2, 2]
        assert len(lines) == 2


def test_threads_share_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: object) -> object:
        time.sleep(0.3)
        return compile_with(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(compiling, "compile_with", slow)
    lines: list[str] = []
    program = Program("multiplying", multiply, static=["times"], report=lines.append)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: program(np.float32(n), times=2), range(4)))
    assert [float(x) for x in results] == [0, 2, 4, 6]
    assert len(lines) == 2


def test_a_program_that_cannot_be_compiled_fails_for_all_and_may_be_tried_again() -> None:
    start, broken = threading.Barrier(2), True

    def options(x: object, *, times: int) -> xla_options.Options:
        time.sleep(0.2)
        if broken:
            raise RuntimeError("out of memory")
        return {}

    program = Program("multiplying", multiply, static=["times"], options=options)

    def call(n: int) -> str:
        start.wait()
        try:
            return str(float(program(np.float32(n), times=2)))
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, [1, 2])) == ["out of memory"] * 2
        broken = False
        assert list(pool.map(call, [1, 2])) == ["2.0", "4.0"]


def test_finding_a_program_takes_two_calls_for_each_array() -> None:
    """With as many arrays as SDXL's U-Net has. On quiet cores finding takes 0.6 times as long as the call itself; with
    `jax.typeof` for every array 3.7 times.
    """
    weights, count = tuple(jnp.full((i % 40 + 1, 4), i, jnp.float32) for i in range(1680)), 0
    program = Program("first weight", lambda weights: weights[0] + 1)
    program(weights)

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        program(weights)
    finally:
        sys.setprofile(None)
    calls = count / len(weights)
    print(f"{calls:.2f} calls of Python functions for each array")
    assert 1 < calls < 2.2  # whether it is a leaf, and its type


def test_options_are_for_gpus_and_grow_with_the_picture() -> None:
    def options(gathered_bytes: int = 24_000, attentions: int = 10) -> xla_options.Options:
        return xla_options.denoising("gpu", waits_only=False, gathered_bytes=gathered_bytes, attentions=attentions)

    assert xla_options.denoising("cpu", waits_only=False, gathered_bytes=24_000, attentions=10) == {}
    assert options()["xla_gpu_all_gather_combine_threshold_bytes"] == 1000
    assert options(48_000)["xla_gpu_all_gather_combine_threshold_bytes"] == 2000
    # Every transfer that XLA may name has a cost, and nothing else does.
    for attentions, cost in ((10, 11000), (45, 15000), (70, 20000)):  # SDXL has 70
        profile = options(attentions=attentions)["fdo_profile"]
        assert isinstance(profile, bytes)
        names, costs = zip(*re.findall(r'name: "([^"]+)" cost_us: (\d+)', profile.decode()), strict=True)
        assert {"all-gather-start", "collective-permute-start.3"} <= set(names)
        kinds = {"all-gather-start", "all-reduce-start", "collective-permute-start"}
        assert {name.split(".")[0] for name in names} == kinds
        assert set(costs) == {str(cost)}
    synchronous = xla_options.denoising("gpu", waits_only=True, gathered_bytes=24_000, attentions=10)
    assert synchronous == xla_options.SYNCHRONOUS
    assert synchronous.items() <= options().items()


def test_an_unknown_option_is_left_out_with_a_warning() -> None:
    lowered = jax.jit(lambda x: x + 1).lower(np.float32(1))
    unknown: xla_options.Options = {"xla_no_such_option": 1, "xla_gpu_pgle_accuracy_checker": "NO_SUCH_VALUE"}
    with pytest.warns(UserWarning, match="does not support the compiler option") as warned:
        program = compile_with(lowered, {**unknown, "xla_backend_optimization_level": 1})
    assert program(np.float32(1)) == 2
    messages = [str(one.message) for one in warned]
    assert len(messages) == 2
    assert all(any(f"option {name}:" in text for text in messages) for name in unknown)


def test_the_carry_is_donated() -> None:
    """The results of a displaced step take the place of the pieces that it was called with."""
    parallel, scheduler = Parallel(patch=2, warmup_steps=0), EulerDiscreteScheduler()
    inputs, layout = abstract_inputs(
        small_unet().config, parallel=parallel, scheduler=scheduler, height=16, width=8, dtype=np.float32
    )
    choices = {"parallel": parallel.program_key, "layout": layout, "scheduler": scheduler}
    program = programs.denoising("denoising", lambda message: None)
    (_, warm_up), (_, displaced) = parallel.phases(2)
    after = program.trace(*inputs, **choices, phase=warm_up).out_info[0]
    lowered = program.trace(*inputs._replace(carry=after), **choices, phase=displaced).lower()
    carried = len(jax.tree.leaves(after))
    assert sum(info.donated for info in jax.tree.leaves(lowered.args_info)) == carried
    assert lowered.as_text().count("jax.buffer_donor") + lowered.as_text().count("tf.aliasing_output") == carried
