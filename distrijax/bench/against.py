"""The same U-Net step in diffusers: the same weights and inputs, in the same process, in turn."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.bench.models import Json
from distrijax.bench.step import Case, text
from distrijax.bench.timing import Work
from distrijax.checkpoint.build import Blueprint
from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.parallel.exchange import Whole

TIMESTEP = 501.0


def check_installed() -> None:
    """Raises DistrijaxError if diffusers or torch is not."""
    missing = [name for name in ("torch", "diffusers") if find_spec(name) is None]
    if missing:
        raise DistrijaxError(
            f"to compare with diffusers, install {' and '.join(missing)}: pip install 'distrijax[test]'"
        )
    if jax.default_backend() == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise DistrijaxError("JAX sees a GPU and torch does not; install torch with CUDA to compare on it")


def works(
    case: Case, arrays: dict[str, Any], *, compile_torch: bool
) -> tuple[dict[str, Work], dict[str, float], float]:
    """One step in distrijax and in diffusers, compiled; the seconds that took; how far apart their predictions are.

    The distance is relative L2. distrijax is given what it computes once a picture (keys and values of the text);
    diffusers computes them in every step.

    Args:
        arrays: the weights by path; they are used up.
        compile_torch: also diffusers with `torch.compile`.
    """
    plan, config = case.model.blueprints["unet"], case.model.configs["unet"]
    theirs = diffusers_step(case, config, plan, arrays)
    unet: UNet = plan.build(arrays, case.dtype)
    made, seconds = {}, {}
    context, pooled, ids, guidance = (
        None if x is None else jnp.asarray(x.reshape(-1, *x.shape[2:])) for x in text(case)
    )
    assert context is not None
    assert pooled is not None
    assert ids is not None
    cond = jax.jit(UNet.condition)(unet, context, pooled, ids, guidance)
    latents = jnp.asarray(latents_of(case))
    step = jax.jit(lambda unet, latents, cond: unet(latents, jnp.float32(TIMESTEP), cond, Whole()))
    start = time.perf_counter()
    program = step.lower(unet, latents, cond).compile()
    seconds["distrijax"] = time.perf_counter() - start
    made["distrijax"] = Work(lambda _: program(unet, latents, cond))
    made["diffusers"] = Work(lambda _: theirs(False))
    if compile_torch:
        start = time.perf_counter()
        theirs(True)
        seconds["diffusers, torch.compile"] = time.perf_counter() - start
        made["diffusers, torch.compile"] = Work(lambda _: theirs(True))
    ours = np.asarray(program(unet, latents, cond), np.float64)
    reference = theirs(False).float().cpu().numpy().transpose(0, 2, 3, 1).astype(np.float64)
    return made, seconds, float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def latents_of(case: Case) -> np.ndarray:
    """Both branches' [branches * B, h, w, C]."""
    shape = (case.branches * case.pictures, *case.latents, case.model.unet.in_channels)
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def diffusers_step(case: Case, config: Json, plan: Blueprint, arrays: dict[str, Any]) -> Callable[[bool], Any]:
    """A step of diffusers' U-Net in its best layout; of True, as `torch.compile` makes it.

    On a CPU the weights stay where they are, and are looked at in torch's order: two copies of SDXL would take 20 GB.
    """
    import diffusers
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, case.dtype)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(dict(config)).eval()
    table, state = plan.table(), {}
    for name in unet.state_dict():
        entry = table.to_ours(name)
        assert entry is not None, name
        state[name] = tensor(arrays[entry.name], entry.axes).to(device)
    # [O, h, w, I] seen as [O, I, h, w] is torch's "channels last", the faster layout of its convolutions.
    unet.load_state_dict(state, assign=True)
    unet.requires_grad_(False)
    context, pooled, ids, guidance = (None if x is None else x.reshape(-1, *x.shape[2:]) for x in text(case))

    def given(x: np.ndarray | None) -> Any:
        return None if x is None else torch.from_numpy(x).to(device, dtype)

    latents = given(latents_of(case)).permute(0, 3, 1, 2)
    added = {"text_embeds": given(pooled), "time_ids": given(ids)}
    arguments = (latents, torch.tensor(TIMESTEP, device=device), given(context))
    compiled: Any = torch.compile(unet, fullgraph=True, mode="max-autotune" if device == "cuda" else None)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True

    def step(fast: bool) -> Any:
        with torch.no_grad():
            y = (compiled if fast else unet)(
                *arguments, timestep_cond=given(guidance), added_cond_kwargs=added, return_dict=False
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
