"""A step of the U-Net in diffusers on torch, eager and compiled by `torch.compile`."""

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from unet_step import TIMESTEP, PeerSteps, StepInputs, Weights

from distrijax.errors import DistrijaxError
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

Step = Callable[[], "torch.Tensor"]


def check(workload: Workload) -> None:
    """Raise DistrijaxError if diffusers or torch is not installed, or torch cannot use the GPU."""
    missing = [name for name in ("torch", "diffusers") if find_spec(name) is None]
    if missing:
        raise DistrijaxError(
            f"to compare with diffusers, install {' and '.join(missing)}: pip install 'distrijax[test]'"
        )
    if jax.default_backend() == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise DistrijaxError("JAX sees a GPU and torch does not; install torch with CUDA to compare on it")


def build(workload: Workload, weights: Weights, *, torch_modes: Sequence[str]) -> PeerSteps:
    """Return an eager step with these weights, and one compiled by torch in each of these modes."""
    state = _state(workload, weights)
    eager = _step(workload, _unet(workload, state))
    functions = {"diffusers": TimedFunction(lambda: eager)}
    if torch_modes:
        fused = _unet(workload, state)
        fused.fuse_qkv_projections()  # which makes it faster, by diffusers' own measurements
        functions |= {f"diffusers, torch.compile {mode}": _compiled(workload, fused, mode) for mode in torch_modes}

    def predict() -> np.ndarray:
        prediction: np.ndarray = eager().float().cpu().numpy()
        return prediction.transpose(0, 2, 3, 1).astype(np.float64)

    return PeerSteps(functions, predict)


def _compiled(workload: Workload, unet: "UNet2DConditionModel", mode: str) -> TimedFunction:
    import torch

    torch._dynamo.reset()
    start = time.perf_counter()
    step = _step(workload, torch.compile(unet, fullgraph=True, mode=mode))
    step()
    return TimedFunction(lambda: step, compile_seconds=time.perf_counter() - start)


def _state(workload: Workload, weights: Weights) -> "dict[str, torch.Tensor]":
    """Return the weights under diffusers' names, convolutions' with channels last, which is faster.

    On a CPU they are our arrays themselves, in torch's order of axes: two copies of SDXL would take 20 GB.
    """
    table, state = workload.model.components["unet"].table(), {}
    for name in _unet(workload, None).state_dict():
        entry = table.to_ours(name)
        assert entry is not None, name
        # [O, h, w, I] seen as [O, I, h, w] is torch's "channels last".
        state[name] = tensor(weights[entry.name], entry.axes).to(_device())
    return state


def _unet(workload: Workload, state: "dict[str, torch.Tensor] | None") -> "UNet2DConditionModel":
    import diffusers
    import torch

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(dict(workload.model.components["unet"].json)).eval()
    if state is not None:
        unet.load_state_dict(state, assign=True)
    return unet.requires_grad_(False)


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _step(workload: Workload, model: "Callable[..., tuple[torch.Tensor]]") -> Step:
    """Return a step of a U-Net, waited for."""
    import torch

    dtype: torch.dtype = getattr(torch, workload.dtype)
    inputs, device = StepInputs.of(workload), _device()

    def put(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(device, dtype)

    options = {
        "timestep_cond": None if inputs.guidance is None else put(inputs.guidance),
        "added_cond_kwargs": {"text_embeds": put(inputs.pooled), "time_ids": put(inputs.ids)},
        "return_dict": False,
    }
    arguments = (put(inputs.latents).permute(0, 3, 1, 2), torch.tensor(TIMESTEP, device=device), put(inputs.context))
    if device == "cuda":
        torch.backends.cudnn.benchmark = True

    def step() -> torch.Tensor:
        with torch.no_grad():
            prediction = model(*arguments, **options)[0]
        if device == "cuda":
            torch.cuda.synchronize()
        return prediction

    return step


def tensor(array: jax.Array, axes: tuple[int, ...]) -> "torch.Tensor":
    """Return our array as torch has it, on a CPU in the same memory. `axes`: of torch's tensor in our order."""
    import torch

    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    if next(iter(array.devices())).platform == "cpu":
        return torch.from_dlpack(array).permute(inverse)
    host = np.array(array)
    if host.dtype == jnp.bfloat16:  # which NumPy does not know by itself
        return torch.from_numpy(host.view(np.uint16)).view(torch.bfloat16).permute(inverse)
    return torch.from_numpy(host).permute(inverse)
