"""The errors of commands: one sentence for the person at the terminal, no traceback.

ClusterError
├── PortTaken       another process listens on the front door's address
├── AlreadyRunning  another supervisor holds the lock of this STATE_DIR
├── StartFailed     the service did not become ready
└── Interrupted     Ctrl-C, and what it left
"""


class ClusterError(Exception):
    """A sentence for the person who typed the command; `exit_code` is the command's."""

    exit_code = 1


class PortTaken(ClusterError):
    """The address is in use."""


class AlreadyRunning(ClusterError):
    """Another supervisor holds the lock."""


class StartFailed(ClusterError):
    """The service did not become ready; the message is the reason."""


class Interrupted(ClusterError):
    """Ctrl-C ended the command; the message says what it left."""

    exit_code = 130
