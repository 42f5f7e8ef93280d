"""What runs the layers on this machine, and everything that depends on which machine it is.

Only this folder asks whether there is a GPU. It knows models as parts and steps as data, and nothing of
requests, scheduling or the ring. `choose` returns the `backend` once, where a rank starts; ranks use it with
`stage` and `memory`. `mlx`, `cpu` and `simulated` are backends.
"""
