"""A step of the U-Net in diffusers on torch, eager and as `torch.compile` makes it."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.bench.peer import TIMESTEP, Peer, inputs
from distrijax.bench.step import Case
from distrijax.bench.timing import Work
from distrijax.errors import DistrijaxError


def check(case: Case) -> None:
    """Raises DistrijaxError if diffusers or torch is not installed."""
    missing = [name for name in ("torch", "diffusers") if find_spec(name) is None]
    if missing:
        raise DistrijaxError(
            f"to compare with diffusers, install {' and '.join(missing)}: pip install 'distrijax[test]'"
        )
    if jax.default_backend() == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise DistrijaxError("JAX sees a GPU and torch does not; install torch with CUDA to compare on it")


def peer(case: Case, arrays: dict[str, Any], *, compiled: bool) -> Peer:
    """With these weights, path -> array. `compiled`: also with `torch.compile`."""
    step = _step(case, arrays)
    works, seconds = {"diffusers": Work(lambda _: step(False))}, {}
    if compiled:
        name, start = "diffusers, torch.compile", time.perf_counter()
        step(True)
        seconds[name] = time.perf_counter() - start
        works[name] = Work(lambda _: step(True))

    def predict() -> np.ndarray:
        found: np.ndarray = step(False).float().cpu().numpy()
        return found.transpose(0, 2, 3, 1).astype(np.float64)

    return Peer(works, seconds, predict)


def _step(case: Case, arrays: dict[str, Any]) -> Callable[[bool], Any]:
    """A step of diffusers' U-Net in its best layout; of True, as `torch.compile` makes it.

    On a CPU the weights stay where they are, and are looked at in torch's order: two copies of SDXL would take 20 GB.
    """
    import diffusers
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, case.dtype)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(dict(case.model.configs["unet"])).eval()
    table, state = case.model.blueprints["unet"].table(), {}
    for name in unet.state_dict():
        entry = table.to_ours(name)
        assert entry is not None, name
        state[name] = tensor(arrays[entry.name], entry.axes).to(device)
    # [O, h, w, I] seen as [O, I, h, w] is torch's "channels last", the faster layout of its convolutions.
    unet.load_state_dict(state, assign=True)
    unet.requires_grad_(False)
    given = inputs(case)

    def put(x: np.ndarray) -> Any:
        return torch.from_numpy(x).to(device, dtype)

    added = {"text_embeds": put(given.pooled), "time_ids": put(given.ids)}
    guidance = None if given.guidance is None else put(given.guidance)
    arguments = (put(given.latents).permute(0, 3, 1, 2), torch.tensor(TIMESTEP, device=device), put(given.context))
    compiled: Any = torch.compile(unet, fullgraph=True, mode="max-autotune" if device == "cuda" else None)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True

    def step(fast: bool) -> Any:
        with torch.no_grad():
            y = (compiled if fast else unet)(
                *arguments, timestep_cond=guidance, added_cond_kwargs=added, return_dict=False
            )[0]
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    return step


def tensor(array: Any, axes: tuple[int, ...]) -> Any:
    """Our array as torch has it, of the same memory on a CPU. `axes`: those of torch's tensor in our order."""
    import torch

    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    if next(iter(array.devices())).platform == "cpu":
        return torch.from_dlpack(array).permute(inverse)
    host = np.array(array)
    half = host.dtype == jnp.bfloat16  # which NumPy does not know by itself
    found = torch.from_numpy(host.view(np.uint16)).view(torch.bfloat16) if half else torch.from_numpy(host)
    return found.permute(inverse)
