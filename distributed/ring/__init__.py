"""The ring: frames from rank to rank, the handshake, and the watchdog beside a rank's main loop.

Knows bytes, sockets and deadlines; nothing of models, requests or how a stage runs a frame.
"""
