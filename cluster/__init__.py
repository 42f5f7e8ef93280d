"""The supervisor and the command line: start, watch, restart and stop the processes of the service.

Knows processes, pipes, ports and the status files in STATE_DIR/run. Knows nothing of prompts, tokens, HTTP
routes or arrays, and imports neither MLX nor the rooms that do: ranks and front door are separate programs
to it.
"""
