"""What XLA is told with a program, and the measured costs kept beside it. What it makes of them: test_overlap."""

import re
import struct
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parallel_helpers import small_unet

from distrijax import DistrijaxError, Parallel, StableDiffusionXLPipeline, compiler_options, profiles
from distrijax.compile import Program, compile_with, kept_profiles
from distrijax.demo import MODEL
from distrijax.parallel.pieces import Carried
from distrijax.pipelines import programs
from distrijax.pipelines.arguments import arguments
from distrijax.profiles import Profiles
from distrijax.schedulers import EulerDiscreteScheduler


def test_options_are_for_gpus_and_grow_with_the_picture() -> None:
    def pieces(tokens: int) -> Carried:
        one = jax.ShapeDtypeStruct((8, tokens, 2, 64), jnp.bfloat16)  # of eight devices
        return Carried(tokens={"a": (one, one)})

    def threshold(tokens: int, groups: int = 1) -> int:
        options = compiler_options.denoising("gpu", pieces(tokens), groups)
        return options["xla_gpu_all_gather_combine_threshold_bytes"]

    assert compiler_options.denoising("cpu", pieces(100), 1) == {}
    assert threshold(240) == 2 * 8 * 240 * 2 * 64 * 2 // compiler_options.GATHERS
    assert threshold(480) == 2 * threshold(240)
    assert threshold(240, groups=2) == threshold(240) // 2
    # Every transfer that XLA may name is given a cost, and nothing else is.
    hints = compiler_options.denoising("gpu", pieces(240), 1)["fdo_profile"].decode()
    named = set(re.findall(r'name: "([^"]+)" cost_us: (\d+)', hints))
    assert ("all-gather-start", "11000") in named
    assert ("collective-permute-start.3", "11000") in named
    assert {name.split(".")[0] for name, _ in named} == {
        "all-gather-start",
        "all-reduce-start",
        "collective-permute-start",
    }
    for attentions, cost in ((10, 11000), (45, 15000), (70, 20000)):  # SDXL has 70
        assert f"cost_us: {cost} " in compiler_options.head_start(attentions).decode()
    assert compiler_options.denoising("gpu", pieces(240), 1, b"measured")["fdo_profile"] == b"measured"
    assert "fdo_profile" not in compiler_options.denoising("gpu", None, 1)
    assert compiler_options.denoising("gpu", None, 1, b"measured")["fdo_profile"] == b"measured"


def test_an_unknown_option_is_left_out_with_a_warning() -> None:
    lowered = jax.jit(lambda x: x + 1).lower(np.float32(1))
    options = {"xla_no_such_option": 1, "xla_gpu_pgle_accuracy_checker": "NO_SUCH_VALUE"}
    with pytest.warns(UserWarning, match="does not take the compiler option") as warned:
        program = compile_with(lowered, {**options, "xla_backend_optimization_level": 1})
    assert program(np.float32(1)) == 2
    said = [str(one.message) for one in warned]
    assert len(said) == 2
    assert all(any(f"option {name}:" in text for text in said) for name in options)


def recorded(**costs: float) -> bytes:
    """A profile in the form that XLA's profiler writes: for each kernel its name, field 1, and its cost, field 2."""
    found = b""
    for name, cost in costs.items():
        one = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x11" + struct.pack("<d", cost)
        size = bytes([len(one)]) if len(one) < 128 else bytes([len(one) & 127 | 128, len(one) >> 7])
        found += b"\x0a" + size + one
    return found


class Tracer:
    """Stands for JAX's profiler: there is no GPU to be profiled."""

    def __init__(self, found: bytes = recorded(fusion=1.5)):
        self.found, self.calls = found, 0

    def trace(self, profiler: "Tracer") -> Any:
        self.calls += 1
        return warnings.catch_warnings()  # any context

    def consume_fdo_profile(self) -> bytes:
        return self.found


def make(folder: Path, measure: bool, seen: list[bytes | None]) -> Program:
    def options(*args: Any, profile: bytes | None, **static: Any) -> dict[str, Any]:
        seen.append(profile)
        return {}

    kept = Profiles(folder, measure=measure)
    return Program("doubling", lambda x, times: x * times, static=["times"], options=options, profiles=kept)


def test_the_second_call_is_measured_and_the_next_process_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer, seen = Tracer(), list[bytes | None]()
    monkeypatch.setattr(profiles, "tracer", lambda: tracer)
    program = make(tmp_path / "profiles", True, seen)
    for call, files in ((1, 0), (2, 1), (3, 1)):
        assert program(np.float32(3), times=2) == 6
        assert len(list(tmp_path.glob("profiles/*"))) == files, f"after call {call}"
    assert tracer.calls == 1
    assert program(np.float32(3), times=4) == 12  # another program: not known yet
    again = make(tmp_path / "profiles", False, seen)  # as in a new process
    assert again(np.float32(3), times=2) == 6
    assert seen == [None, None, recorded(fusion=1500)]
    assert tracer.calls == 1


def test_measured_costs_dwarf_what_xla_counts_for_nothing() -> None:
    """Its unit is 1 for each instruction that has no cost; of names and their lengths nothing is changed."""
    long = "a" * 120
    found = profiles.in_units(recorded(**{"fusion": 2.25, "x": 0.0, long: 98.016}))
    assert found == recorded(**{"fusion": 2250.0, "x": 0.0, long: 98016.0})
    assert profiles.in_units(b"") == b""


def test_nothing_is_measured_unasked_nor_kept_if_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer(b"")
    monkeypatch.setattr(profiles, "tracer", lambda: tracer)
    for measure, calls in ((False, 0), (True, 1)):
        program = make(tmp_path, measure, [])
        for _ in range(3):
            program(np.float32(3), times=2)
        assert tracer.calls == calls
    assert not list(tmp_path.iterdir())


def test_measuring_needs_a_gpu() -> None:
    with pytest.raises(DistrijaxError, match="profile_guided measures kernels of GPUs; on cpu leave it out"):
        kept_profiles(measure=True)
    with pytest.raises(DistrijaxError, match="on cpu leave it out"):
        StableDiffusionXLPipeline.from_pretrained(MODEL, profile_guided=True, progress=False)


def test_jax_has_the_tracer() -> None:
    tracer = profiles.tracer()
    assert callable(tracer.trace)
    assert tracer.consume_fdo_profile() is None


def test_the_carry_is_given_away() -> None:
    """Of a displaced step's program every carried piece is donated, so that the next one's take its place."""
    unet, parallel = small_unet(), Parallel(patch=2)
    args, choices = arguments(
        unet.config,
        parallel,
        height=16,
        width=8,
        dtype=np.float32,
        guided=True,
        pictures=1,
        steps=2,
        scheduler=EulerDiscreteScheduler(),
    )
    program = programs.denoising("denoising", lambda message: None)
    after = program.lower(*args, **choices, displaced=False).out_info[0]
    lowered = program.lower(args[0], after, *args[2:], **choices, displaced=True)
    carried = len(jax.tree.leaves(after))
    assert sum(info.donated for info in jax.tree.leaves(lowered.args_info)) == carried
    assert lowered.as_text().count("jax.buffer_donor") + lowered.as_text().count("tf.aliasing_output") == carried
