"""The key-value store that the processes share, which JAX keeps in process 0."""

from typing import Any

import jax


def client() -> Any:
    """Return JAX's client of the store, or None if there is only one process."""
    from jax._src.distributed import global_state  # JAX has no public access to it (0.10 to 0.12)

    return global_state.client if jax.distributed.is_initialized() else None


def process() -> tuple[int, int]:
    """Return the number of this process and how many there are, without asking JAX for its devices."""
    from jax._src.distributed import global_state

    return global_state.process_id, global_state.num_processes
