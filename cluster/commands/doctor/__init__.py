"""`doctor`: the checks before a start, each problem with its fix.

`doctor` runs the checks and prints them; `this_machine` checks this machine, `model_plan` the model and its
plan. Knows nothing of ssh: what is checked on every host lies in `cluster.hosts`.
"""
