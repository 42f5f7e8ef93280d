"""The contenders' names, as they stand in raw data and reports. Knows nothing else of them."""

from __future__ import annotations

OURS = "ours"
DRAFTS = "ours, drafts"
BLAS_ALONE = "ours, products by the BLAS"
# mlx_lm.server --pipeline, started by hand: with the flags that are best for it, and with its own.
PEER = "mlx_lm.server"
DEFAULT_PEER = "mlx_lm.server, default flags"
