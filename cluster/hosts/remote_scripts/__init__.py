"""Programs that ssh sends to a host's own Python: standard library only, Python 3.8 or newer, one file each.

The sender (`cluster.hosts.remote_program`) adds a last line that calls `main` with the question; the answer
is one line of JSON. They know nothing of this project but the question.
"""
