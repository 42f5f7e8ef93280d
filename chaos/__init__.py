"""Chaos: clients that know the right answers, a killer with a seed, and an oracle that compares.

Starts a service of its own, kills its processes at random moments while clients ask, and at the end looks up
every accepted request in the spool: lost, doubled, contradicted, condemned and invalid must all be 0. Uses
the service from outside (HTTP, the spool's files, the status files); knows nothing of how it recovers.
"""
