"""Every setting: its name, variable, default, accepted values and meaning. Written once, here, and read by all.

A setting is read from the first of four places that has it: an option of a command for people, the environment, the
settings file (`name = value`, and below `[backend]` or `[backend/server]` what holds for that one alone), its default.

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

Key = tuple[str, str]  # the names of a backend and of a server in it
CONF = "MULTICLOUD_CONF"  # the variable that names the settings file
CONF_DEFAULT = "/etc/multicloud.conf"
MAX_BYTES = 256 << 10
# What HAProxy allows in the name of a backend or a server (its configuration manual, section 2.2).
NAME_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:_-"


class SettingError(UsageError):
    """A value that cannot be read. The text names the setting, where it stands, and what is accepted."""


class Setting:
    """One setting. `parse` turns the text into a value, or raises ValueError; `others` are paths (found_default)."""

    def __init__(self, name: str, default: str, kind: Kind[object], meaning: str, *others: str) -> None:
        self.name, self.variable = name, f"MULTICLOUD_{name.upper()}"
        self.default, self.others = default, others
        self.parse, self.accepts = kind
        self.meaning = meaning

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
        """Read the settings file; options are in `environ`, as variables. Raises SettingError."""
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

    def where(self, setting: Setting, *names: str) -> str:
        """The place that `read` takes the setting from: a variable, a line of the file, or "default"."""
        return self._find(setting, *names)[1]

    def text(self, setting: Setting, *names: str) -> str:
        """What `read` reads the setting from, as it is written there."""
        return self._find(setting, *names)[0]

    def _find(self, setting: Setting, backend: str = "", server: str = "", tracked: str = "") -> tuple[str, str]:
        """The text of a setting, and where it stands."""
        if self.environ.get(setting.variable):
            return self.environ[setting.variable], setting.variable
        for section in (f"{backend}/{server}", backend, tracked, ""):
            if setting.name in self.sections.get(section, ()):
                text, number = self.sections[section][setting.name]
                return text or setting.found_default(), f"{self.path}:{number}: {setting.name}"
        return setting.found_default(), "default"


def _sections(path: str, *, required: bool) -> dict[str, dict[str, tuple[str, int]]]:
    """The sections of a settings file, which must be there if it is `required`. Raises SettingError."""
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
    setting = next((each for each in ALL_SETTINGS if each.name == name), None)
    if setting is None:
        raise SettingError(f"{name!r} is no setting; accepted: {', '.join(each.name for each in ALL_SETTINGS)}")
    if section and setting in GLOBAL_ONLY:
        raise SettingError(f"{name} cannot be set in [{section}]; accepted: before the first section")
    if "/" in section and setting not in CHECK_SETTINGS:
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
            if found.st_size > MAX_BYTES:
                raise SettingError(f"{path}: larger than {MAX_BYTES >> 10} KiB; accepted: a file of settings")
            return os.fsdecode(file.read()).removeprefix("\ufeff")
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


def _only(value: V, accepted: bool) -> V:
    if not accepted:
        raise ValueError
    return value


def digits(text: str) -> int:
    """The number of ASCII digits alone: Python would take signs, blanks, underscores and other scripts' digits too."""
    return int(_only(text, text.isascii() and text.isdigit()))  # which refuses thousands of digits


def port(text: str) -> int:
    """A port, 0 too. Raises ValueError."""
    number = digits(text)
    return _only(number, number <= 65535)


def _text(text: str) -> str:
    return _only(text, text.isprintable())


def _word(text: str, *, blanks: bool = False) -> str:
    """Text that goes into a request as it is: no blank and no control character may end it early."""
    return _only(_text(text), text.isascii() and (blanks or " " not in text))


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
    return _only(names, all(map(is_name, names)))


def _statuses(text: str) -> tuple[range, ...]:
    code, _ = _between(100, 599)
    ends = [part.partition("-") for part in text.split(",")]
    ranges = tuple(range(code(first), code(last if dash else first) + 1) for first, dash, last in ends)
    return _only(ranges, all(ranges))


def _between(low: N, high: N, accepts: str = "") -> Kind[N]:
    """Numbers from `low` to `high`; with decimals, where these are a float."""

    def parse(text: str) -> N:
        for part in text.split(".", 1):
            digits(part)
        value = type(low)(text)
        return _only(value, low <= value <= high)

    return parse, accepts or f"{low:g} to {high:g}"


def _one_of(*words: str) -> Kind[str]:
    def parse(text: str) -> str:
        return words[words.index(text)]  # which raises ValueError

    return parse, " or ".join((", ".join(words[:-1]), words[-1]))


FILE = _text, "a file's path"
PATHS = (lambda text: _only(_word(text), text.startswith("/"))), "a path that starts with / and has no blanks"
ADDRESS = _address, "a UNIX socket's path, or host:port, also as unix@, ipv4@, ipv6@ or abns@"
NAMES = _names, "names of backends: app,api"
SWITCH = (lambda text: bool(("0", "1").index(text))), "0 or 1"
STATUSES = _statuses, "status codes: 200 or 200,204 or 200-399"
WORDS = (lambda text: _word(text, blanks=True)), "printable ASCII"
SERVER_LIST = (lambda text: tuple(_text(text).split())), "servers, separated by blanks"
BIND_LINE = _text, "an address and words, as after HAProxy's `bind`, or none"
CLOCKS = _one_of("request", "connection")
SCHEMES = _one_of("auto", "tcp", "tls", "http", "https")
MILLISECONDS = _between(0.0, 3_600_000.0, "milliseconds, 0 or more")

TIMES = Setting("times", "/tmp/times.txt", FILE, "the sample file")
OTHER_SOCKETS = ("/run/haproxy/admin.sock", "/var/lib/haproxy/haproxy.sock")
API = f"HAProxy's Runtime API: {ADDRESS[1]}; where unset, the first of this, {' and '.join(OTHER_SOCKETS)} that answers"
SOCKET = Setting("socket", "/var/run/haproxy.sock", ADDRESS, API, *OTHER_SOCKETS)
SCHEME = Setting(
    "scheme", "auto", SCHEMES, "what a check speaks: tcp, tls, http, https, or auto: what HAProxy itself speaks to it"
)
PATH = Setting("path", "/", PATHS, "the path that a check asks for")
EXPECT = Setting("expect", "200", STATUSES, "the status codes of a server that is up: 200, or 200,204, or 200-399")
HOST = Setting("host", "", (_word, "a host name"), "name for Host header, SNI and certificate; none: the server's name")
USER_AGENT = Setting("user_agent", "multicloud-check", WORDS, "the User-Agent header with which a check asks")
CLOCK = Setting("clock", "request", CLOCKS, "where the clock of http and https starts: request or connection")
TIMEOUT = Setting("timeout", "10", _between(0.001, 3600.0, "seconds, 0.001 to 3600"), "seconds that a check may take")
CA_FILE = Setting("ca_file", "", FILE, "the CA bundle that certificates are verified with; where unset, the system's")
INSECURE = Setting("insecure", "0", SWITCH, "1: do not verify the certificate")
PERCENTILE = Setting("percentile", "90", _between(0.0, 100.0), "the percentile of a server's samples that is its score")
MIN_SAMPLES = Setting("min_samples", "20", _between(0, 10_000), "up to this many samples, their mean is the score")
WINDOW = Setting("window", "30", _between(1, 10_000), "how many of a server's newest samples count")
MAX_AGE = Setting("max_age", "300", _between(0.001, 1e9, "seconds, above 0"), "seconds for which a sample counts")
FAVORITE = Setting("favorite", "256", _between(1, 256), "the weight of the favourite, which is the fastest server")
BACKUP = Setting("backup", "1", _between(0, 256), "the weight of the backup, which is the second fastest")
HYSTERESIS = Setting("hysteresis", "10", _between(0.0, 100.0), "percent by which another must beat the favourite")
TOLERANCE = Setting("tolerance", "0", MILLISECONDS, "milliseconds: servers this close to the fastest share its weight")
BACKENDS = Setting("backends", "", NAMES, "`multicloud run`: the backends whose own checks are the samples: app,api")
INTERVAL = Setting("interval", "1", _between(0.1, 3600.0), "`multicloud run`: seconds between two reweighs")
SERVERS = Setting("servers", "", SERVER_LIST, "`multicloud config`: the servers, separated by blanks")
BIND = Setting(
    "bind", ":8080", BIND_LINE, "`multicloud config`: where users come in, as after HAProxy's `bind`; none: no frontend"
)
MODE = Setting("mode", "http", _one_of("http", "tcp"), "`multicloud config`: http or tcp")

CHECK_SETTINGS = (TIMES, SCHEME, PATH, EXPECT, HOST, USER_AGENT, CLOCK, TIMEOUT, CA_FILE, INSECURE)
SCORING_SETTINGS = (TIMES, PERCENTILE, MIN_SAMPLES, WINDOW, MAX_AGE)
RANKING_SETTINGS = (FAVORITE, BACKUP, HYSTERESIS, TOLERANCE)
REWEIGH_SETTINGS = (*SCORING_SETTINGS, SOCKET, *RANKING_SETTINGS)
RUN_SETTINGS = (*REWEIGH_SETTINGS, BACKENDS, INTERVAL)
CONFIG_SETTINGS = (SERVERS, BIND, MODE)
ALL_SETTINGS = (*CHECK_SETTINGS, *RUN_SETTINGS[1:], *CONFIG_SETTINGS)
GLOBAL_ONLY = (TIMES, SOCKET, BACKENDS, INTERVAL)  # what cannot differ from backend to backend
