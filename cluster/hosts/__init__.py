"""Other machines: the hosts of the ring, ssh, their memory, and what must be on them before ranks start.

Knows nothing of the supervisor or of commands. Both use `hosts`, `ssh`, `probe`, `ring_plan` and
`provisioning`.
"""
