"""The front door: HTTP in, request files out, token logs and results back to the client.

`routes` is what clients call, `http` what lies around every route, `page` what a browser gets. Between them:
accepting (body to request), subscriptions (waiting for tokens and results), answering, disconnects,
queue_estimate. Knows the spool and the tokenizer; no MLX, no ring. api.py uses `app` and `supervised`.
"""

NAME = "mlx-ring"
VERSION = "3.1.0"
