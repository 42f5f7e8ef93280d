"""Fingerprints of unknown host keys, for a person to compare. Accepts none.

A key that comes over the network proves nothing: only a person at the other machine's screen can compare it.
So nothing here, and no `--fix`, adds a key to known_hosts.
"""

from __future__ import annotations

from cluster.hosts.hosts import Host, ssh_host_name
from cluster.hosts.ssh import run_words

SCAN_LIMIT_S = 5
KEY_FILE = "/etc/ssh/ssh_host_ed25519_key.pub"


async def describe_key(host: Host) -> str:
    """The fingerprint and how to check it, in brackets; empty where the key cannot be read from here."""
    assert host.ssh is not None
    # Works without a jump host or another port only: ssh-keyscan does not read ~/.ssh/config.
    name = ssh_host_name(host.ssh)
    scan = ["ssh-keyscan", "-T", str(SCAN_LIMIT_S), "-t", "ed25519", "--", name]
    scanned = await run_words(scan, timeout_s=SCAN_LIMIT_S * 2)
    if scanned is None or not scanned.stdout.strip():
        return ""
    shown = await run_words(["ssh-keygen", "-lf", "-"], input=scanned.stdout, timeout_s=SCAN_LIMIT_S)
    words = shown.stdout.decode("utf-8", errors="replace").split() if shown and not shown.code else []
    fingerprint = next((word for word in words if word.startswith("SHA256:")), "")
    if not fingerprint:
        return ""
    return (
        f" (it shows {fingerprint}; the right one is what `ssh-keygen -lf {KEY_FILE}` prints on {host.name})"
    )
