"""Every test runs with shapes checked and silent broadcasting forbidden."""

import os

# Most programs here run for milliseconds: what takes time is to compile them well. The variable is
# for the processes that tests start, too.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("perla", "beartype.beartype")
