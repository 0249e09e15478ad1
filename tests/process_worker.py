"""One of several processes that make pictures together.

    process_worker.py ADDRESS COUNT INDEX DEVICES FOLDER STORE CASES

It leaves its results in FOLDER, and prints on stderr what a user would see. Without CASES it only joins the others.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distrijax import DistrijaxError, Parallel, StableDiffusionXLPipeline
from distrijax.demo import MODEL
from distrijax.runtime import agreement, processes, watch

# At 128 pixels, half of the size that the demo model knows, some of its pictures are flat and would show no difference.
SIZE: dict[str, Any] = {"height": 192, "width": 192, "output_type": "np"}


def main(address: str, count: int, index: int, devices: int, folder: Path, store: str, cases: list[str]) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is compilation: half of it
    if count > 1:
        processes.initialize(address, count, index, timeout=20 if cases else 3)

    def keep(name: str, images: np.ndarray) -> None:
        np.save(folder / f"{name}-{index}.npy", images)

    def end(pipe: Any, step: int, timestep: float, state: dict[str, Any]) -> None:
        if step == 0 and index == count - 1:
            if "killed" in cases:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a fault of this process alone")

    if "agreement" in cases:
        first = [
            agreement.same_everywhere(2**64 - 1 - index, "counting"),
            agreement.same_everywhere(index == 0, "asking"),
            agreement.flags_everywhere([index == 0, index == 1, True], "comparing"),
        ]
        same = {"prompt": ["a red circle", None], "steps": 3, "image": np.arange(6).reshape(2, 3)}
        agreement.check_same_everywhere(same)
        errors = []
        for different in (
            {"seed": [1, index], **same, "latents": np.full(2000, index)},
            same if index else same | {"x": 1},
        ):
            try:
                agreement.check_same_everywhere(different)
            except DistrijaxError as error:
                errors.append(str(error))
        try:
            agreement.wait_for_all("loading" if index else "compiling")
        except DistrijaxError as error:
            errors.append(str(error))
        (folder / f"agreement-{index}.json").write_text(json.dumps([first, errors]))
    if "alone" in cases:  # nothing of JAX's is running when the last process ends
        watch.SILENCE = 5
        agreement.wait_for_all("joining")
        if index == count - 1:
            if "killed" in cases:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a fault of this process alone")
        agreement.wait_for_all("waiting")
        return
    if "displaced" in cases:
        pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, parallel=Parallel(cfg=2, patch=2, warmup_steps=0))
        keep("displaced", pipe("a red circle", num_inference_steps=3, seed=1, **SIZE).images)
        seed = pipe("a red circle", num_inference_steps=2, **SIZE).seed
        (folder / f"seed-{index}.json").write_text(json.dumps(seed))
    if "batch" in cases:
        batch = StableDiffusionXLPipeline.from_pretrained(store, parallel=Parallel(data=2, patch=2, mode="full_sync"))
        keep("batch", batch(["a red circle", "a blue square"], num_inference_steps=2, seed=[1, 2], **SIZE).images)
    if {"killed", "failed"} & set(cases):
        print("all was well so far", file=sys.stderr, flush=True)
        pipe("a red circle", num_inference_steps=3, seed=1, callback_on_step_end=end, **SIZE)


if __name__ == "__main__":
    address, count, index, devices, folder, store, *cases = sys.argv[1:]
    try:
        main(address, int(count), int(index), int(devices), Path(folder), store, cases)
    except DistrijaxError as error:
        sys.exit(f"error: {error}")
