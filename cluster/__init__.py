"""The supervisor and the command line: start, watch, restart and stop the processes of the service.

Arrows of imports: commands → supervisor → hosts → processes, log_files, ports, errors, terminal. Knows MLX
only as something that ranks use; of `distributed` it imports `planning` alone.
"""
