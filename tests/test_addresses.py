"""Public IP addresses: every special-purpose network from its first to its last address, and the neighbours."""

from ipaddress import IPv6Address, ip_address

import pytest

from server.outside.addresses import SPECIAL, Special, is_public

REACHABLE_BUT_WITHIN_OTHERS = (
    "192.0.0.9/32",
    "192.0.0.10/32",
    "2001:1::",
    "2001:3::",
    "2001:4:112::",
    "2001:20::",
    "2001:30::",
)
"""Registered as reachable within networks that are not."""


@pytest.mark.parametrize("row", SPECIAL, ids=lambda row: str(row.network))
def test_from_first_to_last(row: Special) -> None:
    """Those that are globally reachable are public, and so is the NAT64 address of a public address."""
    public = row.reachable and not str(row.network).startswith(REACHABLE_BUT_WITHIN_OTHERS)
    if str(row.network) == "64:ff9b::/96":  # the first and last stand for 0.0.0.0 and 255.255.255.255
        public = False
    assert is_public(row.network[0]) == is_public(row.network[-1]) == public


@pytest.mark.parametrize(
    "address",
    [
        "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
        "192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.192.255", "192.52.194.0",
        "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "192.175.47.255", "192.175.49.0",
        "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0",
        "223.255.255.255", "168.63.129.15", "168.63.129.17", "8.8.8.8", "93.184.216.34",
        "2000::", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::",
        "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2606:2800:220:1:248:1893:25c8:1946",
    ],
)  # fmt: skip
def test_just_outside(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        # Outside 2000::/3 nothing is assigned.
        "::2", "::1:0:0", "::fffe:ffff:ffff", "::1:0:0:0", "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", "64:ff9b::1:0:0",
        "64:ff9b:2::", "ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "100:0:0:2::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "5f01::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        # Metadata services of clouds.
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
    ],
)  # fmt: skip
def test_never_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "row", [row for row in SPECIAL if row.network.version == 4], ids=lambda row: str(row.network)
)
def test_ipv4_within_ipv6(row: Special) -> None:
    """No form of a refused address passes; of a public one the NAT64 form does."""
    for inner in (row.network[0], row.network[-1], ip_address("8.8.8.8")):
        number = int(inner)
        forms = {
            "mapped": number | 0xFFFF << 32,
            "compatible": number,
            "NAT64": number | 0x64FF9B << 96,
            "NAT64 local": number | 0x64FF9B0001 << 80,
            "6to4": 0x2002 << 112 | number << 80 | 1,
            "Teredo": 0x20010000 << 96 | number ^ 0xFFFFFFFF,
            "Teredo server": 0x20010000 << 96 | number << 64,
        }
        passed = {form for form, value in forms.items() if is_public(IPv6Address(value))}
        assert passed == ({"NAT64"} if is_public(inner) else set())
