"""Keeps the processes running: starts, watches, ends and restarts ranks and front door.

Knows processes, pipes and status files; nothing of what ranks compute or requests ask. Commands use `service`
(what runs now), `reload` (orders to a running supervisor) and `leftovers` (processes of a dead supervisor).
"""
