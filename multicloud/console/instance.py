"""A router as people look at it: what a running HAProxy says of itself, and what its user may do with a file.

It asks the Runtime API for `show info`, `show stat` and the level of the connection (HAProxy's management guide,
section 9.3), which change nothing.
"""

import contextlib
import functools
import os
import pwd
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from multicloud import runtime
from multicloud.console.parser import Configuration
from multicloud.history import Samples
from multicloud.runtime import RuntimeAPI, Server
from multicloud.samplefile import SampleFileError
from multicloud.settings import BACKENDS, REWEIGH_SETTINGS, Settings, Sources, digits

REWEIGH_SERVER = "multicloud-reweigh"  # the name that haproxy.cfg gives the server whose check is the reweigh
# Check statuses: two of external checks, how all of these begin, and those of a server that is not checked (yet).
PASSED, TIMED_OUT, EXTERNAL, NOT_YET = "PROCOK", "PROCTOUT", "PROC", ("", "INI")


class User(NamedTuple):
    """A user that a process runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class Case(NamedTuple):
    """What is judged: a router, as far as it can be seen from here."""

    sources: Sources
    # What HAProxy says; empty where it does not answer.
    version: str = ""
    pid: int = 0
    level: str = ""
    servers: Sequence[Server] = ()
    algorithms: Mapping[str, str] = MappingProxyType({})  # how each backend balances; empty where the level is `user`
    user: User | None = None  # whom it runs as; None where that cannot be seen here
    # What the sample file has, and the UNIX time at which all of this was so.
    samples: Samples = Samples()
    now: float = 0.0
    # What doctor knows besides: why HAProxy does not answer, and why there are no samples.
    away: str = ""
    unusable: SampleFileError | None = None
    files: Sequence[str] = ()  # HAProxy's configuration files
    configuration: Configuration = Configuration()  # what they say
    ours: Collection[str] | None = None  # the backends whose external checks are multicloud-check, by the files

    @property
    def values(self) -> Settings:
        """The settings of a reweigh, and the backends that `multicloud run` measures."""
        return self.sources.read((*REWEIGH_SETTINGS, BACKENDS))

    @property
    def external(self) -> list[Server]:
        """The servers that have an external check, the reweigh among them."""
        return [server for server in self.servers if server.check.startswith(EXTERNAL)]

    @property
    def own(self) -> list[Server]:
        """The servers that HAProxy checks by itself, as `multicloud run` wants it."""
        return [each for each in self.servers if each.check not in NOT_YET and not each.check.startswith(EXTERNAL)]

    @property
    def forks(self) -> bool:
        """Whether HAProxy's user runs the commands: it should, unless the checks are for `multicloud run`."""
        return bool(self.external) or not (self.values.backends or self.own)

    @property
    def foreign(self) -> set[str]:
        """The backends whose external checks have never left a sample, where others' have, and which are not `ours`.

        Where that is not known, they are those whose checks pass.
        """
        checked = [server for server in self.external if server.name != REWEIGH_SERVER]
        measured = {server.backend for server in checked if server.source in self.samples.series}
        silent = {each.backend for each in checked if self.ours is not None or each.check == PASSED} - measured
        return silent - {*(self.ours or ())} if measured else set()

    @property
    def checked(self) -> list[Server]:
        """The servers whose external checks measure them."""
        foreign = self.foreign
        return [each for each in self.external if each.name != REWEIGH_SERVER and each.backend not in foreign]

    @property
    def own_checked(self) -> list[Server]:
        """The servers whose checks of HAProxy's own `multicloud run` takes as samples."""
        backends = self.values.backends
        return [server for server in self.own if server.backend in backends]


def ask(api: RuntimeAPI, sources: Sources) -> Case:
    """What HAProxy says. Raises RuntimeAPIError."""
    info = api.info()
    with api.expecting("version and process"):
        version, pid = info["Version"], digits(info["Pid"])
    with api.expecting("statistics"):
        rows = [*runtime.rows(api.lines("show stat -1 2 -1"), ",", ("pxname", "algo"))]
    algorithms = {backend: algorithm for backend, algorithm in rows if algorithm}
    return Case(sources, version, pid, api.ask("show cli level"), api.servers(), algorithms, user_of(pid))


def proc(pid: int, name: str) -> str:
    """What the kernel says of a process on this machine; "" where that cannot be read here."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""


def user_of(pid: int) -> User | None:
    """Whom a HAProxy on this machine runs as; None where no such process can be seen here."""
    fields = dict(line.split(":\t", 1) for line in proc(pid, "status").splitlines() if ":\t" in line)
    if "haproxy" not in fields.get("Name", ""):
        return None
    uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
    return User(_name(uid), uid, gid, tuple(map(int, fields["Groups"].split())))


def may(user: User, mode: str, path: str) -> bool | None:
    """Whether the user may read (r), write (w) or execute (x) a file; None where only root can tell.

    The kernel is asked as that user, so that directories on the way, groups and access control lists all count.
    """
    path = os.path.abspath(path)
    if os.geteuid() == user.uid:
        return os.access(path, {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}[mode])
    if os.geteuid() != 0:
        return None
    ask = ["/bin/sh", "-c", f'test -{mode} "$1"', "sh", path]
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


def needs_root(error: SampleFileError) -> bool:
    """Whether it is this user's rights that a sample file cannot be used for."""
    return isinstance(error.__context__, PermissionError) and os.geteuid() != 0


def cannot_append(user: User, path: str) -> str | None:
    """Why the user's checks cannot append to the sample file, and what to do; None where they can, or none can tell."""
    exists, directory = os.path.exists(path), os.path.dirname(os.path.abspath(path))
    if not exists and False in (may(user, "w", directory), may(user, "x", directory)):
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
