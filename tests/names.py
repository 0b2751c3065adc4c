"""A name server on this machine, regions that are found through it, and a network in which to ask for them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import dnslib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNET = 0x40000000
"""<sched.h>"""


class NameServer:
    """It says that any name has `addresses`, and those in `unknown` do not exist; while not `answers`, nothing at all.

    Names that end with `search`, as who completes names with a search domain asks for them, are where nobody serves.
    An answer that is larger than the client takes (RFC 6891; 512 bytes where it does not say) is cut.
    """

    def __init__(self, *addresses: str, port: int = 0) -> None:
        self.addresses = addresses or ("127.0.0.1",)
        self.answers = True
        self.unknown: set[str] = set()
        self.search = "corp.test"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        host, port = self._socket.getsockname()
        self.address = f"{host}:{port}"

    def serve(self) -> None:
        """Answer until `stop`."""
        while True:
            packet, client = self._socket.recvfrom(4096)
            if not packet:
                self._socket.close()
                return
            if self.answers:
                self._socket.sendto(self._answer(packet), client)

    def stop(self) -> None:
        """Let `serve` return: nothing else sends it an empty packet."""
        self._socket.sendto(b"", self._socket.getsockname())

    def _answer(self, packet: bytes) -> bytes:
        query = dnslib.DNSRecord.parse(packet)
        reply = query.reply()
        name = str(query.q.qname).rstrip(".")
        if name in self.unknown:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        for address in ("127.0.0.9", "::9") if name.endswith(f".{self.search}") else self.addresses:
            kind, data = ("AAAA", dnslib.AAAA) if ":" in address else ("A", dnslib.A)
            if query.q.qtype == getattr(dnslib.QTYPE, kind) and not reply.header.rcode:
                reply.add_answer(dnslib.RR(query.q.qname, query.q.qtype, ttl=1, rdata=data(address)))
        size = max([512, *(record.edns_len for record in query.ar if record.rtype == dnslib.QTYPE.OPT)])
        if len(reply.pack()) > size:
            reply.rr, reply.header.tc = reply.rr[:1], 1
        return bytes(reply.pack())


@contextlib.contextmanager
def name_server(*addresses: str, port: int = 0) -> Iterator[NameServer]:
    """Run it."""
    running = NameServer(*addresses, port=port)
    thread = threading.Thread(target=running.serve)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join()


def by_name(address: str) -> Callable[[str], str]:
    """Change the shipped configuration so that this name server, and nobody else, knows where the regions are."""

    def change(text: str) -> str:
        text = text.replace("    parse-resolv-conf\n", f"    nameserver {address} {address}\n")
        text = text.replace("init-addr last,libc,none", "init-addr none")
        return re.sub(r"( server (\S+)) 127\.0\.0\.1:(\d+)(?! check)", r"\1 \2:\3", text)

    return change


HERE = "/proc/thread-self/ns/net"
LIBC = ctypes.CDLL(None, use_errno=True)


def enter_network(path: str) -> None:
    """Let this thread, and what it starts, have the network that `path` stands for, as /proc has it."""
    if not os.path.samefile(path, HERE):
        with open(path) as network:
            if LIBC.setns(network.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def own_network(*, ipv6: bool) -> Iterator[None]:
    """A network with nothing but loopback, for this thread and what it starts; with IPv6 there is a way out over that.

    It takes root.
    """
    with open(HERE) as before:
        if LIBC.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text(f"{int(not ipv6)}")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            if ipv6:
                subprocess.run(["ip", "-6", "route", "add", "default", "dev", "lo"], check=True)
            yield
        finally:
            enter_network(f"/proc/self/fd/{before.fileno()}")
