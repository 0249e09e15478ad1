"""Stable Diffusion XL in JAX and Flax: one picture spread over a mesh of devices.

from distrijax import StableDiffusionXLPipeline
pipe = StableDiffusionXLPipeline.from_pretrained("demo")
pipe("a red circle above a blue square").images[0].save("shapes.png")
"""

import importlib
import sys
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distrijax.public import *  # noqa: F403
else:
    # JAX takes seconds to import, so it waits for the first use of a name: the command line can answer Ctrl-C before.
    def __getattr__(name: str) -> object:
        public = importlib.import_module("distrijax.public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
        try:
            return sys.modules[f"distrijax.{name}"]  # a folder of the package, such as `distrijax.demo`
        except KeyError:
            raise AttributeError(f"module 'distrijax' has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return [*importlib.import_module("distrijax.public").__all__, "__version__", "demo"]
