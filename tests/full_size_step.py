"""One step of the full SDXL base U-Net in one framework, in a process of its own: the weights alone are 10 GB.

python tests/full_size_step.py torch FOLDER    # writes random weights as a diffusers folder, and torch's prediction
python tests/full_size_step.py jax FOLDER      # reads the weights, and prints its distance from torch's prediction
"""

import json
import resource
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np

CONFIG = resources.files("distrijax.checkpoint") / "configs" / "base_unet.json"
TIMESTEP = 501.0


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    shapes = {"latents": (2, 32, 32, 4), "context": (2, 77, 2048), "pooled": (2, 1280)}
    x = {name: rng.randn(*shape).astype(np.float32) for name, shape in shapes.items()}
    return x | {"time_ids": np.tile(np.float32([1024, 1024, 0, 0, 1024, 1024]), (2, 1))}


def run_torch(folder: Path) -> dict[str, float]:
    import diffusers
    import torch

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(json.loads(CONFIG.read_text()))
    unet = unet.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in unet.named_parameters():  # activations keep their size from layer to layer
            p.normal_(generator=generator).mul_(0.1 if p.ndim == 1 else float(np.prod(p.shape[1:])) ** -0.5)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1)
    unet.save_pretrained(folder / "unet", max_shard_size="2GB")
    t = {name: torch.from_numpy(value) for name, value in inputs().items()}
    sizes = {"text_embeds": t["pooled"], "time_ids": t["time_ids"]}
    times = []
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            y = unet(t["latents"].permute(0, 3, 1, 2), TIMESTEP, t["context"], added_cond_kwargs=sizes).sample
            times.append(time.perf_counter() - start)
    np.save(folder / "torch.npy", y.permute(0, 2, 3, 1).numpy())
    return {"seconds": min(times), "std": y.std().item()}


def run_jax(folder: Path) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from distrijax.checkpoint.folder import open_component
    from distrijax.nn.exchange import WHOLE

    jax.config.update("jax_default_matmul_precision", "highest")
    start = time.perf_counter()
    component = open_component(folder / "unet", "unet", None)
    unet = component.build(dict(component.stream(jnp.float32, jax.devices()[0])), jnp.float32)
    loaded = time.perf_counter() - start
    x = {name: jnp.asarray(value) for name, value in inputs().items()}
    cond = jax.jit(type(unet).condition)(unet, x["context"], x["pooled"], x["time_ids"])
    program = jax.jit(lambda unet, latents, cond: unet(latents, jnp.float32(TIMESTEP), cond, WHOLE))
    start = time.perf_counter()
    step = program.lower(unet, x["latents"], cond).compile()
    compiled = time.perf_counter() - start
    times = []
    for _ in range(2):
        start = time.perf_counter()
        y = step(unet, x["latents"], cond).block_until_ready()
        times.append(time.perf_counter() - start)
    expected = np.load(folder / "torch.npy").astype(np.float64)
    distance = np.linalg.norm(np.asarray(y) - expected) / np.linalg.norm(expected)
    return {"load": loaded, "compile": compiled, "seconds": min(times), "relative L2": float(distance)}


if __name__ == "__main__":
    results = {"torch": run_torch, "jax": run_jax}[sys.argv[1]](Path(sys.argv[2]))
    results["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(results))
