"""Shapes of models that there are no files of."""

from distributed.planning.model_shape import ModelShape


def make_model_shape(
    layer_bytes: tuple[int, ...],
    *,
    embed_bytes: int = 0,
    head_bytes: int = 0,
    tied: bool = False,
    kv_bytes_per_token: int = 1,
) -> ModelShape:
    """Make a shape whose costs are its bytes."""
    return ModelShape(
        num_layers=len(layer_bytes),
        layer_bytes=layer_bytes,
        embed_bytes=embed_bytes,
        head_bytes=head_bytes,
        tied=tied,
        layer_kv_bytes=(kv_bytes_per_token,) * len(layer_bytes),
        score_bytes=0,
        layer_costs=tuple(float(size) for size in layer_bytes),
        head_cost=float(head_bytes),
    )
