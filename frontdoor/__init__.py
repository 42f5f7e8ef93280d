"""The front door: turns HTTP requests into request files, and token logs and results into answers.

`routes` has the endpoints, `http` the layers around them, `page` the browser's page. Between them: accepting
(body to request), subscriptions (new tokens and results), answering, disconnects, queue_estimate. Knows the
spool and the tokenizer; no MLX, no ring. api.py uses `app` and `supervised`.
"""

NAME = "mlx-ring"
VERSION = "3.1.0"
