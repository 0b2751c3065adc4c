"""HAProxy's process: its version, its Runtime API, and what it and its user see of this machine."""

from __future__ import annotations

import grp
import os
from typing import TYPE_CHECKING

from multicloud.console.doctor.finding import CHECKS, ok, problem, unknown
from multicloud.console.instance import EXTERNAL, may
from multicloud.console.problems import REWEIGH, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance, User
    from multicloud.settings import Settings

REMOVE_CHROOT = "remove `chroot` from `global` (from HAProxy 3.4 on, write `chroot /`, without which it warns)"

UNCONFINED = ("", "unconfined", "kernel")
"""What the kernel says of a process that no profile of SELinux or AppArmor confines."""


def unreachable(address: str, error: Exception) -> Finding:
    """No HAProxy answers, so that nothing is known of it."""
    hint = "as root, or as a user that the socket lets in" if "permission" in str(error) else "start HAProxy"
    return problem(
        f"{error} Put `stats socket {address} mode 600 level admin` into `global`, {hint}, "
        "or name its socket in MULTICLOUD_SOCKET"
    )


def process(instance: Instance, values: Settings, user: User | None) -> Iterator[Finding]:
    """What runs, and where."""
    address = values.socket
    if instance.version.split("-")[0] == "3.4.0":
        yield problem("HAProxy 3.4.0 crashes on external checks: upgrade to 3.4.1")
    else:
        yield ok(f"HAProxy {instance.version} answers at {address}")
    if instance.level == "admin":
        yield ok("its socket has the level admin")
    else:
        yield problem(
            f"the socket {address} has the level {instance.level}, so that HAProxy refuses `set server`: "
            "write `level admin` at the end of its `stats socket` line",
            REWEIGH,
        )
    if user is None:
        yield unknown(f"HAProxy's process {instance.pid} cannot be seen from here: nor what its user may do")
        return
    if any(server.check.startswith(EXTERNAL) for server in instance.servers) and "/" in address:
        yield _connects(address, user)
    if instance.forks(values.backends):
        yield from _surroundings(instance.pid, os.path.dirname(os.path.abspath(values.times)))


def _connects(address: str, user: User) -> Finding:
    """Whether the reweigh, which HAProxy starts as its own user, can connect: for that, one must be able to write."""
    allowed = may(user, "w", address)
    if allowed is None:
        return unknown(f"only root sees whether HAProxy's user {user.name} can connect to the socket {address}")
    if allowed:
        return ok(f"HAProxy's user {user.name} can connect to it")
    try:
        group = f" group {grp.getgrgid(user.gid).gr_name}"
    except KeyError:
        group = ""
    return problem(
        f"HAProxy's user {user.name} cannot connect to the socket {address}, so no reweigh can set weights: "
        f"write `user {user.name}{group}` into its `stats socket` line, and `chmod a+x` each directory of the way",
        REWEIGH,
    )


def _surroundings(pid: int, directory: str) -> Iterator[Finding]:
    """Whether HAProxy sees the same files as we do: no chroot, and the same directory of the sample file."""
    try:
        root = os.readlink(f"/proc/{pid}/root")
    except OSError:
        yield unknown("only root sees whether HAProxy runs in a chroot")
        return
    if root != "/":
        yield problem(
            f"HAProxy runs in the chroot {root}, where it finds no checks: {REMOVE_CHROOT}", CHECKS, REWEIGH, SAMPLES
        )
        return
    try:
        same = os.path.samestat(os.stat(directory), os.stat(f"/proc/{pid}/root{directory}"))
    except OSError as error:
        yield problem(f"the sample file's directory {directory}: {(error.strerror or str(error)).lower()}", SAMPLES)
        return
    if same:
        yield ok("HAProxy sees the same files as this command, without a chroot")
    else:
        yield problem(
            f"HAProxy has a {directory} of its own (a container, or systemd's PrivateTmp), so its sample file is not "
            "the one here: run this inside of it, or name a file elsewhere in MULTICLOUD_TIMES",
            SAMPLES,
        )
    profile = _profile(pid)
    if profile not in UNCONFINED:
        yield unknown(f"what SELinux or AppArmor let HAProxy do was not looked at: it runs under {profile}")


def _profile(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/attr/current", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\0\n").partition(" (")[0]
    except OSError:
        return ""
