"""Measures this machine for `./launch.sh doctor --self-test`: `python -m distributed.self_test PART TASK`.

Each part is a process of its own, so that one that crashes takes no other with it. It writes a line of JSON
for each line of the report. Knows MLX, the stages and the ring through their public seams; nothing of the
running service, whose spool it never opens, nor of how the report is shown (cluster/commands/doctor).
"""
