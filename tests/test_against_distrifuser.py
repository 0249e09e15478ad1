"""The algorithm is the original's: its recorded trajectories, replayed step by step.

The folder in the environment variable DISTRIJAX_GOLDEN, by default `tests/golden`, holds the cases; its README says in
what form. Predictions of neighbouring modes differ by 1e-2 and more, so 1e-4 tells them apart; the recordings
themselves agree with one device to 1e-6 in their synchronous steps.
"""

import json
import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from distrijax import Parallel, scheduler_from_config
from distrijax.checkpoint import Component
from distrijax.nn.module import Weights
from distrijax.parallel.placement import place_model
from distrijax.sampling import programs
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import TextInputs, loop_inputs

FOLDER = Path(os.environ.get("DISTRIJAX_GOLDEN") or Path(__file__).parent / "golden")
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))
NEAR = 1e-4  # relative L2

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
CLASSES = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "dpm-solver": {"_class_name": "DPMSolverMultistepScheduler"},
}


@cache
def unet(model: str) -> Any:
    component = Component.from_json("unet", json.loads((FOLDER / f"unet_{model}.config.json").read_text()), model)
    table, arrays = component.table(), {}
    for name, tensor in load_file(FOLDER / f"unet_{model}.safetensors").items():
        entry = table.to_ours(name)
        assert entry is not None, name
        arrays[entry.name] = jnp.asarray(tensor.astype(np.float32).transpose(entry.axes))
    return component.build(arrays, np.float32)


def relative(ours: Any, recorded: np.ndarray) -> float:
    return float(np.linalg.norm(ours - recorded) / np.linalg.norm(recorded))


def replay(config: dict[str, Any], data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every step's prediction [S, 2, 4, h, w], and the final latents [1, 4, h, w]."""
    world, split = config["world"], config["split"] and config["world"] > 1
    # Emulated: any number of devices, here and on a machine with one. That this is the same is tested elsewhere.
    parallel = Parallel(
        cfg=2 if split else 1,
        patch=world // 2 if split else world,
        mode=config["mode"],
        warmup_steps=config["warmup"],
        emulate=True,
    )
    net = place_model(unet(config["model"]), parallel)
    layout = parallel.layout(config["h"], net.config.row_multiple)
    scheduler = scheduler_from_config(SCHEDULER | CLASSES[config["sched"]])
    schedule = scheduler.schedule(config["steps"])
    np.testing.assert_allclose(schedule.timesteps, data["timesteps"], rtol=1e-6)
    text = TextInputs(*(data[name][:, None].astype(np.float32) for name in ("prompt_embeds", "pooled", "time_ids")))
    inputs = loop_inputs(
        Weights.of(net),
        text,
        data["latents"].transpose(0, 2, 3, 1) * np.float32(schedule.init_noise_sigma),
        None,
        Guidance.of(config["guidance"]),
        schedule,
        scheduler=scheduler,
        parallel=parallel,
        layout=layout,
        condition=jax.jit(programs.condition, static_argnames="parallel"),
    )
    predictions, start = [], 0
    for count, phase in parallel.phases(config["steps"]):
        choices = {"parallel": parallel, "layout": layout, "scheduler": scheduler, "phase": phase, "record": True}
        now = inputs.with_steps(start, start + count, parallel)
        carry, _, seen = jax.jit(partial(programs.denoise, **choices))(*now)
        predictions.append(np.asarray(seen)[:count, :, 0, : config["h"]].transpose(0, 1, 4, 2, 3))  # [S, 2, C, h, w]
        inputs, start = inputs._replace(carry=carry), start + count
    final = np.asarray(inputs.carry.latents)[:, : config["h"]].transpose(0, 3, 1, 2)
    return np.concatenate(predictions), final


def test_there_are_recordings() -> None:
    assert CASES, f"{FOLDER} holds no recordings"


@pytest.mark.parametrize("case", CASES)
def test_trajectory(case: str) -> None:
    data = np.load(FOLDER / f"{case}.npz")
    predictions, final = replay(json.loads(str(data["config"])), data)
    errors = [relative(ours, recorded) for ours, recorded in zip(predictions, data["eps"], strict=True)]
    print(case, "eps", " ".join(f"{e:.1e}" for e in errors), f"final {relative(final, data['final_latents']):.1e}")
    assert max(errors) < NEAR, errors
    assert relative(final, data["final_latents"]) < NEAR
