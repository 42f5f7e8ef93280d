"""Models as data: the meaning of config.json, sizes by layer, the layers of each rank, its files.

Pure: knows no MLX, no weights, no processes. `distributed.models` builds what `families` allows; the
cluster's planning uses `layer_plan`, `model_shape`, `stage_files` and `capacities`.
"""
