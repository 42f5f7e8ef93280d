"""Which addresses need keys."""

import pytest

from frontdoor.binding import BindingRefused, check_binding, resolve


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_no_key(address: str) -> None:
    """Nobody but this machine's users gets there."""
    assert check_binding([address], has_keys=False) is None


@pytest.mark.parametrize(
    "address",
    ["192.168.5.1", "10.1.2.3", "172.16.0.1", "172.31.255.254", "169.254.7.7", "fd00::1", "fe80::1%eth0"],
)
def test_a_private_address_without_keys_starts_with_a_warning(address: str) -> None:
    """Two Macs on a cable work out of the box, and are told what that means."""
    warning = check_binding(["127.0.0.1", address], has_keys=False)
    assert warning is not None
    assert address in warning
    assert "API_KEYS_FILE" in warning


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "8.8.8.8", "172.32.0.1", "192.169.0.1", "100.64.0.1", "2001:db8::1", "::ffff:8.8.8.8"],
)
def test_an_address_for_the_world_without_keys_is_refused(address: str) -> None:
    """The sentence names the setting and both ways out; with keys the same address is served."""
    with pytest.raises(BindingRefused, match=r"API_HOST.*API_KEYS_FILE.*127\.0\.0\.1"):
        check_binding(["127.0.0.1", address], has_keys=False)
    assert check_binding([address], has_keys=True) is None


def test_a_host_name_is_judged_by_its_addresses() -> None:
    """A name that means nothing is refused with its name."""
    assert check_binding(resolve("localhost"), has_keys=False) is None
    assert resolve("0.0.0.0") == ["0.0.0.0"]
    with pytest.raises(BindingRefused, match="no-such-host"):
        resolve("no-such-host.invalid")
