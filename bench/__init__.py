"""Measures the service from outside, beside what people would use instead, in one run on one machine.

The load tool (load.py, over http_stream.py and dialects.py) knows HTTP and server-sent events only and works
against any server with an OpenAI-style API. Contenders (ours.py, peers.py) know how to start and stop one
server; measures (workload.py) are data; records of both go into raw JSON and a table (report.py). This room
imports no MLX: what needs it runs in processes of its own (peer_rank.py, reference.py).
"""
