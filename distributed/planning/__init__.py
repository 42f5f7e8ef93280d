"""Models as data: what a config.json means, sizes by layer, who gets which layers, which files a stage needs.

Pure: knows no MLX, no weights, no processes. `distributed.models` builds what `families` allows; the
cluster's planning uses `layer_plan`, `model_shape`, `stage_files` and `capacities`.
"""
