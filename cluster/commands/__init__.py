"""The commands of launch.sh. `command_line` is the entry, the `…_commands` modules have the flags, and each
command's own module has its work.

Knows the supervisor by its status files and signals, and hosts by `cluster.hosts`.
"""
