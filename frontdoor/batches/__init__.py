"""Runs batches: each line of an input file becomes requests of the lowest priority in the spool.

Others use `BatchRunner` (runner.py), which app.py starts, and `ENDPOINTS` (endpoints.py), the routes that a
line may ask. spool/batches/ has what lies on the disk. One front door of all runs the batches; another takes
over when its process ends. Knows bodies and answers of the routes; nothing of HTTP connections.
"""
