"""HTTPS servers of regions, at the far end of a WAN (tests.bench.wan) or next door: they take their time, and die.

There are several sets of them, one for each policy that is measured, so that no policy's load slows another's down. All
sets behave alike. Each region of each set has a port of its own.
"""

import asyncio
import contextlib
import random
import selectors
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import trustme

from tests import client
from tests.bench import wan
from tests.ports import free_port

NAMES = ("us-central.gcp.demo", "eu-west.gcp.demo", "us-east.heroku.demo", "ap-south.aws.demo")

LATE = 0.3  # seconds that an answer takes longer when it is a late one


class Place(NamedTuple):
    """Where a region of a set is."""

    name: str
    address: str
    port: int


class Service(NamedTuple):
    """How a region serves: the seconds of an answer, which part of the answers is late, after how many idle seconds it
    closes a connection (None: never), whether it is there at all, and how many requests it serves at once, while the
    others wait in line (None: all)."""

    seconds: float = 0.010
    late: float = 0.0
    idle: float | None = None
    alive: bool = True
    workers: int | None = None


class Distance:
    """Regions that run, set by set; `authority` is the certificate (PEM) by which they are known."""

    def __init__(
        self, places: Sequence[Sequence[Place]], authority: bytes, wire: Connection | None, regions: Connection
    ) -> None:
        self.places = places
        self.authority = authority
        self._wire = wire
        self._regions = regions

    def change(self, services: Sequence[Service], ways: Sequence[wan.Way] = ()) -> None:
        """Let the regions serve otherwise, and put them elsewhere."""
        if self._wire:
            self._wire.send(ways)
        self._regions.send(services)
        self._regions.recv()


@contextlib.contextmanager
def running(sets: int, services: Sequence[Service], ways: Sequence[wan.Way] = ()) -> Iterator[Distance]:
    """Run `sets` sets of regions, each region as far away as `ways` says, or all of them next door."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*NAMES).configure_cert(context)
    addresses = wan.FAR if ways else ["127.0.0.1"] * len(NAMES)
    places = [[Place(*each, free_port()) for each in zip(NAMES, addresses, strict=True)] for _ in range(sets)]
    serve = partial(_main, context, places, services)
    with contextlib.ExitStack() as stack:
        if ways:
            wire, regions = stack.enter_context(wan.network(serve, ways))
        else:
            wire, regions = None, stack.enter_context(wan.process(serve))
        regions.recv()
        yield Distance(places, authority.cert_pem.bytes(), wire, regions)


def _main(
    context: ssl.SSLContext, places: Sequence[Sequence[Place]], services: Sequence[Service], orders: Connection
) -> None:
    """Serve until the other end of `orders`, which takes new services, is gone; say True there once they hold."""

    async def serve(services: Sequence[Service]) -> None:
        regions = [[Region(place) for place in each] for each in places]
        with contextlib.suppress(EOFError):
            while True:
                for each in regions:
                    for region, service in zip(each, services, strict=True):
                        await region.become(service, context)
                orders.send(True)
                services = await asyncio.to_thread(orders.recv)

    # select() waits to the microsecond, where epoll's milliseconds would be a tenth of an answer's time.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    asyncio.set_event_loop(loop)
    loop.run_until_complete(serve(services))


class Region:
    """One region of one set."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._service = Service(alive=False)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._busy = 0
        self._line: deque[asyncio.Future[None]] = deque()

    async def become(self, service: Service, context: ssl.SSLContext) -> None:
        """Serve like this from now on."""
        self._service = service
        self._call_next()
        if service.alive and not self._server:
            self._server = await asyncio.start_server(
                self._talk,
                self._place.address,
                self._place.port,
                ssl=context,
                backlog=1024,
                # It does not wait for the other side to end TLS too, as few servers do.
                ssl_shutdown_timeout=0.01,
            )
        elif not service.alive and self._server:
            self._server.close()
            self._server = None
            for writer in self._connections:
                writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        body = f"{self._place.name}\n".encode()
        head = f"HTTP/1.1 200 OK\r\nupstream: {self._place.name}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        try:
            while True:
                async with asyncio.timeout(self._service.idle):
                    request = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(client.header(request, "content-length") or 0))
                await self._work()
                writer.write(head if request.startswith("head ") else head + body)
                await writer.drain()
                if client.header(request, "connection") == "close":
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):  # TimeoutError is an OSError
            pass  # the other side went away, or the region closes what is idle
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _work(self) -> None:
        """Wait in line, and then for as long as the answer takes."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._call_next()
        try:
            await turn
            late = LATE if random.random() < self._service.late else 0.0
            await asyncio.sleep(self._service.seconds + late)
        finally:
            self._busy -= turn.done() and not turn.cancelled()
            self._call_next()

    def _call_next(self) -> None:
        while self._line and (self._service.workers is None or self._busy < self._service.workers):
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                self._busy += 1
