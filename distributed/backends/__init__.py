"""What runs the layers on this machine, and everything that depends on which machine it is.

Only this folder asks whether there is a GPU. It knows models as parts and steps as data, and nothing of
requests, scheduling or the ring. Ranks use `stage`, `memory` and `simulated`; `cpu` is for machines without a
GPU.
"""
