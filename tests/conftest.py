"""What all tests share: the fast BLAS, loaded before any test imports MLX, on one thread."""

from distributed.blas import load_fast_blas

pytest_plugins = ["tests.cluster_service"]

load_fast_blas("auto", 1)
