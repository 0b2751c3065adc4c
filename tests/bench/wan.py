"""A network of long ways inside one machine, for the programs that measure what users wait.

    enter()                       the rest of the program runs in namespaces of its own
    with network(serve, ways):    `serve` runs at the far end; the program itself is at the near end from now on

Each end is a network namespace with a TUN device. A process between the two holds each packet back for half of its
region's round trip, so that TCP and TLS cost what they cost over such a way. Each region has an address, and its way
may change at any time. As root it needs nothing else; without root, a kernel that lets users make namespaces, and a
/dev/net/tun that they may open. All of it is gone when the program ends, however it ends: the namespaces have no
names, and what runs in them dies with the first of their processes.
"""

import contextlib
import ctypes
import fcntl
import heapq
import multiprocessing
import os
import random
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from time import monotonic
from typing import NamedTuple, NoReturn

# The address of the near end, and those of the regions.
NEAR = "10.77.0.254"
FAR = tuple(f"10.77.0.{number}" for number in range(1, 5))

# <sched.h>, <sys/prctl.h>, <linux/if_tun.h>, <linux/sockios.h>, <linux/if.h>
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, IFF_UP = 0x8914, 0x8916, 0x891C, 0x1

LARGEST = 65535
FLOWS = 4096  # connections that the wire remembers before it forgets those that have no packet under way


class Way(NamedTuple):
    """The way to a region: seconds of a round trip, by which part of it each packet's time varies at most, up or down,
    and the part of its packets that is lost."""

    round_trip: float
    jitter: float = 0.0
    loss: float = 0.0


def enter() -> None:
    """Go on as a child in namespaces of its own; the parent waits for it, hands signals on and ends as it does.

    Where that cannot be, it says why in a line and exits with 2.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        with open("/dev/net/tun", "rb"):
            pass
        try:
            _unshare(CLONE_NEWPID | CLONE_NEWNET)
        except PermissionError:
            _unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)
            for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
                with open(f"/proc/self/{file}", "w") as entry:
                    entry.write(text)
    except OSError as error:
        what = error.filename or "namespaces of network, processes and users"
        print(f"cannot make a network to measure on: {what}: {error.strerror}; try as root", file=sys.stderr)
        sys.exit(2)
    sys.stdout.flush()
    child = os.fork()
    if child:
        _follow(child)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _follow(child: int) -> NoReturn:
    received = []

    def hand_on(number: int, _: object) -> None:
        received.append(number)
        os.kill(child, signal.SIGINT)

    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # so that Ctrl-C reaches it once, by way of this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(128 + received[0] if received else code if code >= 0 else 128 - code)


@contextlib.contextmanager
def network(serve: Callable[[Connection], None], ways: Sequence[Way]) -> Iterator[tuple[Connection, Connection]]:
    """Run `serve` in a process at the far end, and go to the near end oneself.

    Gives the connections to the process that holds packets back, which takes new ways, and to `serve`.
    """
    far = _device(FAR)
    with process(serve) as to_regions:
        _unshare(CLONE_NEWNET)
        near = _device([NEAR])
        with process(partial(_hold_back, near, far, ways)) as to_wire:
            os.close(near)
            os.close(far)
            _go_first()
            yield to_wire, to_regions


@contextlib.contextmanager
def process(serve: Callable[[Connection], None]) -> Iterator[Connection]:
    """Run `serve` in a process; gives the other end of its connection."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    running = fork.Process(target=_serve_first, args=(serve, there), daemon=True)
    running.start()
    try:
        yield here
    finally:
        running.terminate()
        running.join()


def _device(addresses: Sequence[str]) -> int:
    """A TUN device with these addresses in the present namespace; gives its file descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, _flags(b"wan", IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for number, address in enumerate(addresses):
            name = f"wan:{number}".encode() if number else b"wan"
            fcntl.ioctl(any_socket, SIOCSIFADDR, _address(name, address))
            fcntl.ioctl(any_socket, SIOCSIFNETMASK, _address(name, "255.255.255.0"))
        for name in (b"wan", b"lo"):
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, _flags(name, IFF_UP))
    return device


def _flags(name: bytes, flags: int) -> bytes:
    return struct.pack("16sH22x", name, flags)


def _address(name: bytes, address: str) -> bytes:
    return struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(address))


def _go_first() -> None:
    """Let this process, but none that it starts, run before all others, where it may: on a busy machine too, what
    measures is on time."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def _serve_first(serve: Callable[[Connection], None], orders: Connection) -> None:
    _go_first()
    serve(orders)


def _hold_back(near: int, far: int, ways: Sequence[Way], orders: Connection) -> None:
    """Carry packets between the two devices until the other end of `orders` is gone.

    Packets of one connection and direction arrive in the order in which they were sent, whatever the jitter.
    """
    way_of = dict(zip(map(socket.inet_aton, FAR), ways, strict=True))
    under_way: list[tuple[float, int, int, bytes]] = []
    last: dict[bytes, float] = {}
    count = 0
    while True:
        wait = max(0.0, under_way[0][0] - monotonic()) if under_way else None
        ready, _, _ = select.select((near, far, orders.fileno()), (), (), wait)
        if orders.fileno() in ready:
            try:
                way_of = dict(zip(way_of, orders.recv(), strict=True))
            except EOFError:
                return
        now = monotonic()
        for source, target, end in ((near, far, slice(16, 20)), (far, near, slice(12, 16))):
            if source not in ready:
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(source, LARGEST)
                    way = way_of.get(packet[end]) if packet[0] >> 4 == 4 else None
                    if way is None or random.random() < way.loss:
                        continue
                    flow = packet[12:24]  # addresses and ports
                    due = now + way.round_trip / 2 * (1 + way.jitter * random.uniform(-1, 1))
                    last[flow] = due = max(due, last.get(flow, 0.0))
                    count += 1
                    heapq.heappush(under_way, (due, count, target, packet))
        while under_way and under_way[0][0] <= monotonic():
            _, _, target, packet = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # the device's queue is full: as on any way, it is lost
                os.write(target, packet)
        if len(last) > FLOWS:
            last = {flow: due for flow, due in last.items() if due > now}
