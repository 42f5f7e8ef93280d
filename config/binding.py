"""Which addresses the front door may listen on without keys: judged before a start, and before it listens.

    loopback                    whoever has a user account here: no key is needed
    private, link-local         the people in the house: served, with a loud warning
    everything else             the world (0.0.0.0 and :: are every address there is): refused without keys

Pure, but for `resolve`. Knows addresses; nothing of keys but whether there are any.
"""

import ipaddress
import socket
from collections.abc import Iterable

from config.errors import ConfigError

PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BindingRefused(ConfigError):
    """Anybody could use the service; the start stops with the message."""

    code = "binding_refused"


def check_binding(addresses: Iterable[str], *, has_keys: bool) -> str | None:
    """Judge where the front door listens; return a warning to show, or None.

    Raises:
        BindingRefused: strangers can reach it, and there are no keys (handled by the process that starts us).
    """
    if has_keys:
        return None
    warning = None
    for text in addresses:
        address = _plain(ipaddress.ip_address(text))
        if address.is_loopback:
            continue
        if not any(address in network for network in PRIVATE_NETWORKS):
            raise BindingRefused(
                f"API_HOST: on {text} anybody who can reach this machine could use the service. Set "
                "API_KEYS_FILE to a file of keys, one a line, or API_HOST to 127.0.0.1 or an address of your "
                "own network"
            )
        warning = (
            f"NO API KEY IS ASKED FOR: everybody who can reach {text} can use this service. "
            "Set API_KEYS_FILE to a file of keys, one a line"
        )
    return warning


def resolve(host: str) -> list[str]:
    """Return the addresses of API_HOST.

    Raises:
        BindingRefused: the name means nothing here.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindingRefused(f"API_HOST = {host} is no address of this machine: {error.strerror}") from error
    return sorted({str(entry[4][0]) for entry in found})


def _plain(address: Address) -> Address:
    """An IPv4 address in IPv6 clothes is that IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
