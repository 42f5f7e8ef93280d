"""The served model types: a record each, and what brings their config.json into the form that they read.

`served.py: FAMILIES` has the records; `model_config.py: normalise_config` reads a config. Others also use the
record (`family.py`), the kinds and sizes of what layers cache (`hybrids.py`), and their windows
(`window_config.py`). Knows no MLX, no files, no weights.
"""
