"""Where a webhook may lead: an http or https URL, and addresses of the public internet.

The name is resolved once and the call goes to an address that was looked at: a second answer of the
DNS cannot lead elsewhere. One address that is not public is enough to refuse the name.
https://www.iana.org/assignments/iana-ipv4-special-registry
https://www.iana.org/assignments/iana-ipv6-special-registry
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urlsplit

_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_PATH = "/%:@!$&'()*+,;=~?"
"""What a path or query may have beside letters, digits and `_.-`; anything else goes as %XX."""

_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_RESERVED = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
"""Of the protocols themselves; the tables of some Pythons let parts of them pass."""
_METADATA = frozenset({IPv4Address("168.63.129.16")})
"""A cloud's own service at an address that looks public; the others' are link-local or private."""


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint's URL in parts. `host` is an ASCII name or an address without brackets; `path`
    has the query.
    """

    tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"
        )


def target_of(url: str) -> Target:
    """The parts of an endpoint's URL. Raises ValueError with what is wrong."""
    if _UNSAFE.search(url):
        raise ValueError("the URL has a blank, a control character or a backslash")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"the URL's scheme is {parts.scheme!r}, neither http nor https")
    if "@" in parts.netloc:
        raise ValueError("the URL has a user name")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    if not port:
        raise ValueError("the URL's port is 0")
    path = quote(parts.path or "/", safe=_PATH)
    if parts.query:
        path += "?" + quote(parts.query, safe=_PATH)
    return Target(parts.scheme == "https", _host(parts.hostname or ""), port, path)


def _host(host: str) -> str:
    if ":" in host:
        return str(IPv6Address(host))
    try:
        name = host.encode("idna").decode().lower()
    except UnicodeError as error:
        raise ValueError(f"the URL's host {host!r} is no name: {error}") from None
    if not _NAME.fullmatch(name):
        raise ValueError(f"the URL's host {host!r} is no name")
    return name


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, of a
    carrier, multicast or reserved, and no IPv6 spelling of such an IPv4 address.
    """
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        reserved = any(address in network for network in _RESERVED)
        public = address.is_global and not address.is_multicast and not reserved
        return public and address not in _METADATA
    if address.scope_id is not None:
        return False
    if (inner := _embedded(address)) is not None:
        return is_public(str(inner))
    return address in _UNICAST and address.is_global


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address to which an IPv6 address leads in the end."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour
