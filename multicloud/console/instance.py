"""What a running HAProxy says of itself beyond its servers' weights, and what its user may do with a file.

It asks the Runtime API for `show info`, `show stat` and the level of the connection (HAProxy's management guide,
section 9.3), which change nothing.
"""

import functools
import os
import pwd
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from multicloud import runtime
from multicloud.runtime import RuntimeAPI, Server
from multicloud.settings import digits

REWEIGH_SERVER = "multicloud-reweigh"  # the name that haproxy.cfg gives the server whose check is the reweigh
# Check statuses: two of external checks, how all of these begin, and those of a server that is not checked (yet).
PASSED, TIMED_OUT, EXTERNAL, NOT_YET = "PROCOK", "PROCTOUT", "PROC", ("", "INI")
SIGNAL = "4294967295"  # what HAProxy says of a check that had no exit code
ENDED = "a signal ended it: is memory short (`dmesg`)?"
ADDED = "was it added while HAProxy runs (`add server`), which cannot start its check? Write it into the configuration"
EXIT_CODES = {  # what an external check's exit code says by itself: a shell's, and HAProxy's own
    "126": "HAProxy's user may not execute the check's command",
    "127": "a program was not found: the check's command, or what it runs, is not in `external-check path`",
    "255": "HAProxy could not start the check's command: is it there, and may HAProxy's user execute it?",
    SIGNAL: f"{ENDED} Or {ADDED}",
}
REASON = (  # of a check or a reweigh that fails: where it is
    "its reason is on HAProxy's standard error (`journalctl -u haproxy`), unless that is /dev/null (`haproxy -D`, or "
    "`-q`)"
)


class User(NamedTuple):
    """A user that a process runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class Instance(NamedTuple):
    """A running HAProxy."""

    version: str
    pid: int
    level: str
    servers: list[Server]
    algorithms: dict[str, str]  # how each backend balances; empty where the level is `user`

    def checked(self) -> list[Server]:
        """The servers that have an external check other than the reweigh."""
        return [each for each in self.servers if each.check.startswith(EXTERNAL) and each.name != REWEIGH_SERVER]

    def own_checked(self, backends: Collection[str] | None = None) -> list[Server]:
        """The servers that HAProxy checks by itself, as `multicloud run` wants it; of these backends, or of all."""
        own = [each for each in self.servers if each.check not in NOT_YET and not each.check.startswith(EXTERNAL)]
        return [each for each in own if backends is None or each.backend in backends]

    def forks(self, backends: Collection[str]) -> bool:
        """Whether HAProxy's user runs the commands: it should, unless the checks are for `multicloud run`."""
        external = any(server.check.startswith(EXTERNAL) for server in self.servers)
        return external or not (backends or self.own_checked())


def ask(api: RuntimeAPI) -> Instance:
    """Ask HAProxy. Raises RuntimeAPIError."""
    info = api.info()
    with api.expecting("version and process"):
        version, pid = info["Version"], digits(info["Pid"])
    with api.expecting("statistics"):
        rows = [*runtime.rows(api.lines("show stat -1 2 -1"), ",", ("pxname", "algo"))]
    algorithms = {backend: algorithm for backend, algorithm in rows if algorithm}
    return Instance(version, pid, api.ask("show cli level"), api.servers(), algorithms)


def user_of(pid: int) -> User | None:
    """Whom a HAProxy on this machine runs as; None where no such process can be seen here."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if "haproxy" not in fields["Name"]:
        return None
    uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
    return User(_name(uid), uid, gid, tuple(map(int, fields["Groups"].split())))


def may(user: User, modes: str, path: str | Path) -> bool | None:
    """Whether the user may read (r), write (w) or execute (x) a file, all of `modes`; None where only root can tell.

    The kernel is asked as that user, so that directories on the way, groups and access control lists all count.
    """
    path = os.path.abspath(path)
    if os.geteuid() == user.uid:
        return os.access(path, sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}[mode] for mode in modes))
    if os.geteuid() != 0:
        return None
    ask = ["/bin/sh", "-c", " && ".join(f'test -{mode} "$1"' for mode in modes), "sh", path]
    # Not with this terminal, which another process of that user could reach through it.
    run = functools.partial(subprocess.run, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True)
    asked = run(ask, check=False, cwd="/", user=user.uid, group=user.gid, extra_groups=user.groups)
    return bool(asked.returncode == 0)


def let_in(address: str) -> str:
    """As whom to run what may not open the socket of the Runtime API; "" where this process may, or it is not there."""
    try:
        os.stat(address)
    except PermissionError:  # of a directory on the way
        return "as root (sudo)"
    except OSError:
        return ""
    allowed = os.access(address, os.R_OK | os.W_OK)
    return "" if allowed else "as root (sudo), or join the socket's group: `sudo usermod -aG GROUP $USER`"


def cannot_append(user: User, path: str) -> str | None:
    """Why the user's checks cannot append to the sample file, and what to do; None where they can, or none can tell."""
    exists = os.path.exists(path)
    if not exists and may(user, "wx", os.path.dirname(os.path.abspath(path))) is False:
        return (
            f"HAProxy's user {user.name} cannot make the sample file {path}: "
            "let it write there, or name another file in MULTICLOUD_TIMES"
        )
    if exists and may(user, "w", path) is False:
        return (
            f"HAProxy's user {user.name} cannot write the sample file {path}, which is {_name(os.stat(path).st_uid)}'s"
            f": chown {user.name} {path}, and if `multicloud run` writes it, too, let that run as {user.name}"
        )
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
