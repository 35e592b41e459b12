"""Every test runs with shapes checked and silent broadcasting forbidden."""

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("perla", "beartype.beartype")
