"""Whether HAProxy's name servers know a name now. HAProxy does not tell, while it keeps the last address.

They are asked as HAProxy asks them, past /etc/hosts (RFC 1035, section 4), but from here: a firewall can make a
difference.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PATIENCE, ATTEMPTS = 0.5, 2
"""Seconds that a name server has for its answers, and how often it is asked, since a packet may be lost."""

A, AAAA, INTERNET, RECURSE = 1, 28, 1, 0x0100
RCODE = 0x000F


def address(text: str) -> tuple[str, int] | None:
    """The address and port that a name server's `IP` or `IP:port` says; None where it is another text."""
    host, _, port = text.removeprefix("udp@").rpartition(":")
    for name, number in ((text, "53"), (host.strip("[]"), port)):
        try:
            return str(ipaddress.ip_address(name)), int(number)
        except ValueError:
            continue
    return None


def known(hosts: Sequence[str], server: tuple[str, int]) -> set[str] | None:
    """Those of the names for which a name server has an address; None where it does not answer for each of them."""
    asked = [(host, kind) for host in hosts for kind in (A, AAAA)]
    found: dict[int, bool] = {}
    with socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM) as connection:
        try:
            connection.connect(server)
            for _ in range(ATTEMPTS):
                missing = [number for number in range(len(asked)) if number not in found]
                for number in missing:
                    connection.send(_query(number, *asked[number]))
                _receive(connection, missing, found)
        except OSError:
            return None
    if len(found) < len(asked):
        return None
    return {host for number, (host, _) in enumerate(asked) if found[number]}


def _query(number: int, host: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in host.encode().rstrip(b".").split(b"."))
    return struct.pack("!6H", number, RECURSE, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, INTERNET)


def _receive(connection: socket.socket, missing: Iterable[int], found: dict[int, bool]) -> None:
    """Note of each answer whether it has an address, until all are there or the time is over."""
    left = set(missing)
    deadline = time.monotonic() + PATIENCE
    while left and (seconds := deadline - time.monotonic()) > 0:
        connection.settimeout(seconds)
        try:
            answer = connection.recv(1 << 16)
        except TimeoutError:
            return
        if len(answer) >= 12:
            number, flags, _, records = struct.unpack("!4H", answer[:8])
            if number in left:
                found[number] = flags & RCODE == 0 and records > 0
                left.discard(number)
