"""The sample file and the weights: whether HAProxy's user can write the one, and whether the others are right."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from multicloud import history, reweigh, samplefile, settings
from multicloud.console import problems
from multicloud.console.doctor.finding import ok, problem, unknown
from multicloud.console.instance import PASSED, REWEIGH_SERVER, may, unwritable
from multicloud.console.problems import REWEIGH, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance, User
    from multicloud.settings import Sources


def weights(instance: Instance | None, sources: Sources, user: User | None, told: frozenset[str]) -> Iterator[Finding]:
    """What is wrong with them, less what follows from a cause that was `told`."""
    path = sources.read((settings.TIMES,)).times
    try:
        found = history.read(path, reweigh.longest_window(sources) + problems.LOOK_BACK)
    except samplefile.SampleFileError as error:
        yours = "permission denied" in str(error) and os.geteuid() != 0
        yield problem(f"{error}: {'run this as root' if yours else 'remove it, or name another in MULTICLOUD_TIMES'}")
        return
    writable = user is None or unwritable(user, path) is None
    if user is not None and may(user, "r", "/") is None:
        yield unknown(f"only root sees whether HAProxy's user {user.name} can write {path}")
    elif user is not None and writable:
        yield _shortened(user, path)
    if instance is None:
        return
    wrong = problems.problems(instance, found, sources, time.time(), told)
    for each in wrong:
        yield problem(each)
    measured = sum(server.key in found.series for server in instance.servers)
    passing = any(server.check == PASSED for server in instance.checked())
    if not measured and passing and writable and SAMPLES not in told:
        yield problem(
            f"{path} has no samples of a server that HAProxy knows: do its servers have "
            "`option external-check` with multicloud-check, and does that write to the same file?"
        )
    elif measured and not wrong and told.isdisjoint((REWEIGH, SAMPLES)):
        yield ok(f"{measured} servers are measured, and have the weights that they should have")
    beside = sources.read((settings.BACKENDS,)).backends  # whose samples show that `multicloud run` is at work
    if not beside and not any(server.name == REWEIGH_SERVER for server in instance.servers):
        yield unknown(
            f"no server is named {REWEIGH_SERVER}, so it is not known whether a reweigh runs: see the backend "
            "`reweigh` in haproxy.cfg"
        )


def _shortened(user: User, path: str) -> Finding:
    """Whether the user, who can write the file, can also shorten it when it grows too long, and how."""
    can = f"HAProxy's user {user.name} can write the sample file {path}"
    directory = os.path.dirname(os.path.realpath(path))
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return ok(can)  # there will be one of that user's
    if user.uid not in (0, owner):
        return problem(f"{can}, but not shorten it, since it is somebody else's: chown {user.name} {path}")
    if _is_mounted(os.path.realpath(path)):
        return ok(f"{can}, which is shortened in place, since it is a mount of its own")
    if may(user, "wx", directory) is False:
        return ok(f"{can}, which is shortened in place, since that user cannot write {directory}")
    return ok(can)


def _is_mounted(path: str) -> bool:
    """Whether something is mounted on the file itself: os.path.ismount sees no bind mount of the same file system."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return any(line.split()[4] == path for line in file)
    except OSError:
        return False
