"""Every setting: its name, variable, default, accepted values and meaning. Written once, here, and read by all.

A setting is read from the first of four places that has it: an option of a command for people, the environment, the
settings file, its default. HAProxy gives its checks an environment of its own, so the file is what an operator writes:
`name = value`, and below `[backend]` or `[backend/server]` what holds for that backend, or that server, alone.

Each command reads only the settings it uses, so that a mistyped ranking setting never takes a server down. A name that
no setting has is an error for all of them, since nobody can know what it was meant for.
"""

from __future__ import annotations

import _socket as socket  # what `socket` adds is four milliseconds
import errno
import os
import stat

from multicloud.light import UsageError, reason

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import TypeVar

    N = TypeVar("N", int, float)
    V = TypeVar("V")
    Kind = tuple[Callable[[str], V], str]  # what makes a value of a text, or raises ValueError; and what it accepts

CONF = "MULTICLOUD_CONF"  # the variable that names the settings file
CONF_DEFAULT = "/etc/multicloud.conf"
MAX_BYTES = 256 << 10
NAME_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:_-"
"""What HAProxy allows in the name of a backend or a server (its configuration manual, section 2.2)."""


class SettingError(UsageError):
    """A value that cannot be read. The text names the setting, where it stands, and what is accepted."""


class Setting:
    """One setting. `parse` turns the text into a value, or raises ValueError.

    `others` are the paths, one after the other, that are the default where the default itself is not there.
    """

    def __init__(self, name: str, default: str, kind: Kind[object], *others: str) -> None:
        self.name, self.variable = name, f"MULTICLOUD_{name.upper()}"
        self.default, self.others = default, others
        self.parse, self.accepts = kind
        self.meaning = ""

    def means(self, meaning: str) -> Setting:
        """Say what it is for."""
        self.meaning = meaning
        return self

    def found_default(self) -> str:
        """The default or, where there are `others`, the first of all where somebody listens, or else a file is."""
        places = (self.default, *self.others) if self.others else ()
        found = (path for there in (_answers, os.path.exists) for path in places if there(path))
        return next(found, self.default)


class Settings:
    """The values of the settings that were read. The others are not set at all."""

    times: str
    socket: str
    scheme: str
    path: str
    expect: tuple[range, ...]
    host: str
    user_agent: str
    clock: str
    timeout: float
    ca_file: str
    insecure: bool
    percentile: float
    min_samples: int
    window: int
    max_age: float
    favorite: int
    backup: int
    hysteresis: float
    tolerance: float
    backends: tuple[str, ...]
    interval: float
    servers: tuple[str, ...]
    bind: str
    mode: str


class Sources:
    """The places that settings are read from.

    `sections` are those of the settings file, by their names: "" for what stands before the first one, `backend` and
    `backend/server`. Each has the text and the number of the line by the name of a setting.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read the settings file, if there is one. Options are in `environ`, as variables. Raises SettingError."""
        self.environ = environ
        self.path = environ.get(CONF) or CONF_DEFAULT
        self.sections = _sections(self.path, required=bool(environ.get(CONF)))
        self._known: dict[tuple[Collection[Setting], str, str, str], Settings] = {}

    def read(self, group: tuple[Setting, ...], backend: str = "", server: str = "", tracked: str = "") -> Settings:
        """The values of a group of settings that hold for a backend, or for a server of it; each is parsed once.

        What the backend's section does not say is taken from that of the backend that it tracks, if it does, and then
        from before the first section. Raises SettingError at the first value that cannot be read.
        """
        names = backend, server, tracked
        if (group, *names) in self._known:
            return self._known[group, *names]
        values = Settings()
        for setting in group:
            text, where = self._find(setting, *names)
            try:
                setattr(values, setting.name, setting.parse(text))
            except ValueError:
                raise SettingError(f"{where}: cannot read {text!r}; accepted: {setting.accepts}") from None
        if BACKUP in group and values.favorite < values.backup:
            raise SettingError(
                f"{self.where(BACKUP, *names)}: {values.backup} is above {self.where(FAVORITE, *names)}, "
                f"which is {values.favorite}; accepted: 0 to the favourite's weight"
            )
        self._known[group, *names] = values
        return values

    def backends(self) -> list[str]:
        """The backends that have a section of their own, less those of their servers."""
        return [name for name in self.sections if name and "/" not in name]

    def where(self, setting: Setting, backend: str = "", server: str = "", tracked: str = "") -> str:
        """The place that `read` takes the setting from: a variable, a line of the file, or "default"."""
        return self._find(setting, backend, server, tracked)[1] or "default"

    def text(self, setting: Setting, backend: str = "", server: str = "", tracked: str = "") -> str:
        """What `read` reads the setting from, as it is written there."""
        return self._find(setting, backend, server, tracked)[0]

    def _find(self, setting: Setting, backend: str, server: str, tracked: str) -> tuple[str, str]:
        """The text of a setting, and where it stands; "" for the default."""
        if self.environ.get(setting.variable):
            return self.environ[setting.variable], setting.variable
        for section in (f"{backend}/{server}", backend, tracked, ""):
            if setting.name in self.sections.get(section, ()):
                text, number = self.sections[section][setting.name]
                return text or setting.found_default(), f"{self.path}:{number}: {setting.name}"
        return setting.found_default(), ""


def _sections(path: str, *, required: bool) -> dict[str, dict[str, tuple[str, int]]]:
    """The sections of a settings file; none where there is no file, unless it is required. Raises SettingError."""
    sections: dict[str, dict[str, tuple[str, int]]] = {"": {}}
    section = ""
    for number, line in enumerate(_text_of(path, required=required).split("\n"), 1):
        words = f" {line}".replace("\t", " ").partition(" #")[0].strip()
        try:
            if words.startswith("["):
                section = words[1:-1].strip()
                names = section.split("/")
                if not words.endswith("]") or len(names) > 2 or not all(map(is_name, names)):
                    raise SettingError(f"cannot read {words!r}; accepted: [backend] or [backend/server]")
                sections.setdefault(section, {})
            elif words:
                name, equals, text = (part.strip() for part in words.partition("="))
                if not equals:
                    raise SettingError(f"cannot read {words!r}; accepted: name = value, [backend] or [backend/server]")
                _check_place(name, section)
                sections[section][name] = text, number
        except SettingError as error:
            raise SettingError(f"{path}:{number}: {error}") from None
    return sections


def _check_place(name: str, section: str) -> None:
    """Whether a setting of that name may stand in the section. Raises SettingError."""
    setting = next((each for each in ALL if each.name == name), None)
    if setting is None:
        raise SettingError(f"{name!r} is no setting; accepted: {', '.join(each.name for each in ALL)}")
    if section and setting in GLOBAL_ONLY:
        raise SettingError(f"{name} cannot be set in [{section}]; accepted: before the first section")
    if "/" in section and setting not in CHECK:
        raise SettingError(f"{name} cannot be set in [{section}]; accepted: [{section.partition('/')[0]}]")


def _text_of(path: str, *, required: bool) -> str:
    if path == os.devnull:  # no file, said aloud
        return ""
    try:
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise SettingError(f"{path}: not a regular file; accepted: a file of settings")
            if found.st_uid not in (0, os.geteuid()):
                raise SettingError(f"{path}: belongs to somebody else; accepted: a file of root's, or one's own")
            if found.st_mode & 0o022:
                raise SettingError(f"{path}: others than its owner may write it; accepted: chmod go-w {path}")
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SettingError(f"{path}: larger than {MAX_BYTES >> 10} KiB; accepted: a file of settings")
        return os.fsdecode(data).removeprefix("\ufeff")
    except FileNotFoundError:
        if required:
            raise SettingError(f"{path}: no such file, which {CONF} names; accepted: a file of settings") from None
        return ""
    except OSError as error:
        raise SettingError(f"{path}: {reason(error)}; accepted: a file to be read") from None


def _answers(path: str) -> bool:
    """Whether somebody listens at a UNIX socket's path: a program that has ended leaves its file behind."""
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    answered = connection.connect_ex(path) in (0, errno.EAGAIN)  # which is that its queue is full
    connection.close()
    return answered


def is_name(name: str) -> bool:
    """Whether a backend or a server can have that name."""
    return name != "" and name.isascii() and not name.encode().translate(None, NAME_CHARACTERS)


def digits(text: str) -> int:
    """The number of ASCII digits alone: Python would take signs, blanks, underscores and other scripts' digits too."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)  # which refuses thousands of digits


def port(text: str) -> int:
    """A port, 0 too. Raises ValueError."""
    if (number := digits(text)) > 65535:
        raise ValueError
    return number


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _word(text: str, *, blanks: bool = False) -> str:
    """Text that goes into a request as it is: no blank and no control character may end it early."""
    if not text.isascii() or (" " in text and not blanks):
        raise ValueError
    return _text(text)


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError
    return _word(text)


def _address(text: str) -> str:
    """A path, host:port or abns@name, also of what HAProxy writes as unix@path, ipv4@host:port and ipv6@host:port."""
    kind, at, rest = text.partition("@")
    if not at or "/" in kind:
        kind, rest = "", text
    if kind not in ("", "unix", "ipv4", "ipv6", "abns") or not rest:
        raise ValueError
    if kind in ("unix", "abns"):
        return _text(text if kind == "abns" else rest if "/" in rest else f"./{rest}")
    host, colon, number = rest.rpartition(":")
    if kind or (colon and "/" not in rest):
        port(number)
        if not host or "/" in host:
            raise ValueError
    return _text(rest)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(map(is_name, names)):
        raise ValueError
    return names


def _statuses(text: str) -> tuple[range, ...]:
    code, _ = _between(100, 599)
    ends = [part.partition("-") for part in text.split(",")]
    ranges = tuple(range(code(first), code(last if dash else first) + 1) for first, dash, last in ends)
    if not all(ranges):
        raise ValueError
    return ranges


def _between(low: N, high: N, accepts: str = "") -> Kind[N]:
    """Numbers from `low` to `high`; with decimals, where these are a float."""

    def parse(text: str) -> N:
        for part in text.split(".", 1):
            digits(part)
        value = type(low)(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse, accepts or f"{low:g} to {high:g}"


def _one_of(*words: str) -> Kind[str]:
    def parse(text: str) -> str:
        return words[words.index(text)]  # which raises ValueError

    return parse, " or ".join((", ".join(words[:-1]), words[-1]))


FILE = _text, "a file's path"
SWITCH = (lambda text: bool(("0", "1").index(text))), "0 or 1"

TIMES = Setting("times", "/tmp/times.txt", FILE).means("the sample file")
SOCKET = Setting(
    "socket",
    "/var/run/haproxy.sock",
    (_address, "a UNIX socket's path, or host:port, also as unix@, ipv4@, ipv6@ or abns@"),
    "/run/haproxy/admin.sock",
    "/var/lib/haproxy/haproxy.sock",
).means(
    "HAProxy's Runtime API: a UNIX socket's path, or host:port, also as unix@, ipv4@, ipv6@ or abns@; where unset, the "
    "first of this, /run/haproxy/admin.sock and /var/lib/haproxy/haproxy.sock that answers"
)
SCHEME = Setting("scheme", "auto", _one_of("auto", "tcp", "tls", "http", "https")).means(
    "what a check speaks: tcp, tls, http, https, or auto, which is what HAProxy itself speaks to the server"
)
PATH = Setting("path", "/", (_path, "a path that starts with / and has no blanks")).means(
    "the path that a check asks for"
)
EXPECT = Setting("expect", "200", (_statuses, "status codes: 200 or 200,204 or 200-399")).means(
    "the status codes of a server that is up: 200, or 200,204, or 200-399"
)
HOST = Setting("host", "", (_word, "a host name")).means(
    "the name in the Host header, in SNI and in the certificate; where unset, the server's name"
)
USER_AGENT = Setting(
    "user_agent", "multicloud-check", (lambda text: _word(text, blanks=True), "printable ASCII")
).means("the User-Agent header with which a check asks")
CLOCK = Setting("clock", "request", _one_of("request", "connection")).means(
    "when the clock of http and https starts: with the request, as for users over a kept connection, or the connection"
)
TIMEOUT = Setting("timeout", "10", _between(0.001, 3600.0, "seconds, 0.001 to 3600")).means(
    "seconds that a check may take"
)
CA_FILE = Setting("ca_file", "", FILE).means(
    "the CA bundle that certificates are verified with; where unset, the system's"
)
INSECURE = Setting("insecure", "0", SWITCH).means("1: do not verify the certificate")
PERCENTILE = Setting("percentile", "90", _between(0.0, 100.0)).means(
    "the percentile of a server's samples that is its score"
)
MIN_SAMPLES = Setting("min_samples", "20", _between(0, 10_000)).means(
    "with this many samples or fewer, their mean is the score"
)
WINDOW = Setting("window", "30", _between(1, 10_000)).means("how many of a server's newest samples count")
MAX_AGE = Setting("max_age", "300", _between(0.001, 1e9, "seconds, above 0")).means(
    "seconds after which a sample no longer counts"
)
FAVORITE = Setting("favorite", "256", _between(1, 256)).means(
    "the weight of the favourite, which is the fastest server"
)
BACKUP = Setting("backup", "1", _between(0, 256)).means("the weight of the backup, which is the second fastest")
HYSTERESIS = Setting("hysteresis", "10", _between(0.0, 100.0)).means(
    "percent by which another server must be faster to take the favourite's place"
)
TOLERANCE = Setting("tolerance", "0", _between(0.0, 3_600_000.0, "milliseconds, 0 or more")).means(
    "milliseconds: servers this close to the fastest share the favourite's weight"
)
BACKENDS = Setting("backends", "", (_names, "names of backends: app,api")).means(
    "`multicloud run`: the backends whose own checks are the samples: app,api"
)
INTERVAL = Setting("interval", "1", _between(0.1, 3600.0, "seconds, 0.1 to 3600")).means(
    "`multicloud run`: seconds between two reweighs"
)
SERVERS = Setting("servers", "", (lambda text: tuple(_text(text).split()), "servers, separated by blanks")).means(
    "`multicloud config`: the servers, separated by blanks"
)
BIND = Setting("bind", ":8080", (_text, "an address and words, as after HAProxy's `bind`, or none")).means(
    "`multicloud config`: where users come in, as after HAProxy's `bind`; none: no frontend"
)
MODE = Setting("mode", "http", _one_of("http", "tcp")).means("`multicloud config`: http or tcp")

CHECK = (TIMES, SCHEME, PATH, EXPECT, HOST, USER_AGENT, CLOCK, TIMEOUT, CA_FILE, INSECURE)
SCORING = (TIMES, PERCENTILE, MIN_SAMPLES, WINDOW, MAX_AGE)
RANKING = (FAVORITE, BACKUP, HYSTERESIS, TOLERANCE)
REWEIGH = (*SCORING, SOCKET, *RANKING)
RUN = (*REWEIGH, BACKENDS, INTERVAL)
CONFIG = (SERVERS, BIND, MODE)
ALL = (*CHECK, *RUN[1:], *CONFIG)

GLOBAL_ONLY = (TIMES, SOCKET, BACKENDS, INTERVAL)  # what cannot differ from backend to backend
