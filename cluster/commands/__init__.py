"""The commands of launch.sh, one module each, and what the terminal shows of them.

Knows the supervisor by its status files and signals, and hosts by `cluster.hosts`. `command_line` is the
entry; nothing outside this folder imports it.
"""
