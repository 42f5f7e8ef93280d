"""What keeps the processes alive: ranks and front door started, watched, ended and started again.

Knows processes, pipes and status files; nothing of what ranks compute or requests ask. Commands use `service`
(what runs now), `reload` (orders to a running supervisor) and `leftovers` (the end of what a dead one left).
"""
