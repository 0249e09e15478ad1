"""The platform that a layer is traced for: kernels differ, results do not."""

import jax


def traced_for() -> str:
    """Return `cpu`, `gpu` or `tpu`: the platform of the surrounding mesh, or JAX's default if there is none."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
