"""A name server on this machine that can fall silent or forget its names, and regions that are found through it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import TYPE_CHECKING

import dnslib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class NameServer:
    """It says that any name is 127.0.0.1, and those in `unknown` do not exist; while not `answers`, nothing at all."""

    def __init__(self) -> None:
        self.answers = True
        self.unknown: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
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
        if str(query.q.qname).rstrip(".") in self.unknown:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        elif query.q.qtype == dnslib.QTYPE.A:
            reply.add_answer(dnslib.RR(query.q.qname, dnslib.QTYPE.A, ttl=1, rdata=dnslib.A("127.0.0.1")))
        return bytes(reply.pack())


@contextlib.contextmanager
def name_server() -> Iterator[NameServer]:
    """Run it."""
    running = NameServer()
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
