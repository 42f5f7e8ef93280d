"""Decides on which addresses the front door may listen without API keys. Checked before it starts to listen.

    loopback                    only users of this machine can connect: no key is needed
    private, link-local         the local network can connect: allowed, with a warning
    all others                  the Internet may connect (0.0.0.0 and :: mean every address): keys are needed

Pure, except for `resolve`. Knows addresses, and of the keys only whether there are any.
"""

import ipaddress
import socket
from collections.abc import Iterable

from config.errors import ConfigError

PRIVATE_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"),
    )
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BindingRefused(ConfigError):
    """Anybody on the network could use the service; the start stops with the message."""

    code = "binding_refused"


def check_binding(addresses: Iterable[str], *, has_keys: bool) -> str | None:
    """Check the addresses of the front door; return a warning to show, or None.

    Raises:
        BindingRefused: the Internet may reach it, and there are no keys (the entry point prints the message).
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
                f"API_HOST: everybody who can reach this machine on {text} could use the service without a "
                "key. In .env, set API_KEYS_FILE to a file of keys, one a line, or API_HOST to 127.0.0.1 or "
                "to an address of your own network"
            )
        warning = (
            f"NO API KEY IS REQUIRED: everybody who can reach {text} can use this service. "
            "In .env, set API_KEYS_FILE to a file of keys, one a line"
        )
    return warning


def resolve(host: str) -> list[str]:
    """Return the addresses of API_HOST.

    Raises:
        BindingRefused: the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindingRefused(
            f"API_HOST = {host} is not an address of this machine: {error.strerror}; set it in .env"
        ) from error
    return sorted({str(entry[4][0]) for entry in found})


def _plain(address: Address) -> Address:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, and any other address unchanged."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
