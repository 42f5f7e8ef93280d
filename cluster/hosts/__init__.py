"""Other machines: who they are, ssh, what they can hold, and what must lie there before ranks start.

Knows nothing of the supervisor or of commands. Both use `hosts`, `ssh`, `probe`, `ring_plan` and
`provisioning`.
"""
