"""Which kind of device a layer is traced for: kernels differ, results do not."""

import jax


def traced_for() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the mesh around, which need not be present, or else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
