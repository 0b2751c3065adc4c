"""Every setting: its variable, default, accepted values and meaning. Written once, here, and read by all.

Settings are environment variables, because HAProxy's checks can be given nothing else: a two-line wrapper script sets
them. Each command reads only the settings it uses, so that a mistyped ranking setting never takes a server down.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


class SettingError(Exception):
    """A value that cannot be read. The text names the variable, the value and what is accepted."""


class Setting:
    """One setting. `parse` turns the text into a value, or raises ValueError.

    `others` are the paths, one after the other, that are the default where the default itself is not there.
    """

    __slots__ = ("accepts", "default", "meaning", "name", "others", "parse", "variable")

    def __init__(
        self,
        name: str,
        default: str,
        parse: Callable[[str], object],
        accepts: str,
        meaning: str,
        others: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.variable = f"MULTICLOUD_{name.upper()}"
        self.default = default
        self.parse = parse
        self.accepts = accepts
        self.meaning = meaning
        self.others = others

    def read(self, environ: Mapping[str, str]) -> object:
        """The value that `environ` gives, or the default where it is unset or empty. Raises SettingError."""
        text = environ.get(self.variable) or self._default()
        try:
            return self.parse(text)
        except ValueError:
            raise SettingError(f"{self.variable}: cannot read {text!r}; accepted: {self.accepts}") from None

    def _default(self) -> str:
        if self.others:
            return next((path for path in (self.default, *self.others) if os.path.exists(path)), self.default)
        return self.default


class Settings:
    """The values of the settings that were read. The others are not set at all."""

    times: str
    socket: str
    scheme: str
    path: str
    expect: tuple[range, ...]
    host: str
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


def read(environ: Mapping[str, str], settings: Collection[Setting]) -> Settings:
    """Read `settings` from `environ`. Raises SettingError at the first value that cannot be read."""
    values = Settings()
    for setting in settings:
        setattr(values, setting.name, setting.read(environ))
    if FAVORITE in settings and BACKUP in settings and values.favorite < values.backup:
        raise SettingError(
            f"{BACKUP.variable}: {values.backup} is above {FAVORITE.variable}, which is {values.favorite}; "
            "accepted: 0 to the favourite's weight"
        )
    return values


def whole(text: str) -> int:
    """Of ASCII digits alone: Python would take signs, blanks, underscores and other scripts' digits too."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)  # which refuses thousands of digits


def port(text: str) -> int:
    """A port, 0 too. Raises ValueError."""
    number = whole(text)
    if number > 65535:
        raise ValueError
    return number


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        for digits in text.split(".", 1):
            whole(digits)
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = whole(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _word(text: str) -> str:
    """Text that goes into a request as it is: no blank and no control character may end it early."""
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError
    return text


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError
    return _word(text)


def _address(text: str) -> str:
    host, colon, number = text.rpartition(":")
    if "/" not in text and colon:
        port(number)
        if not host:
            raise ValueError
    return _text(text)


def _scheme(text: str) -> str:
    if text not in ("auto", "tcp", "tls", "http", "https"):
        raise ValueError
    return text


def _clock(text: str) -> str:
    if text not in ("request", "connection"):
        raise ValueError
    return text


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _statuses(text: str) -> tuple[range, ...]:
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = whole(first), whole(last if dash else first)
        if not 100 <= low <= high <= 599:
            raise ValueError
        ranges.append(range(low, high + 1))
    return tuple(ranges)


TIMES = Setting("times", "/tmp/times.txt", _text, "a file's path", "the sample file")
SOCKET = Setting(
    "socket",
    "/var/run/haproxy.sock",
    _address,
    "a UNIX socket's path, or host:port",
    "HAProxy's Runtime API: a UNIX socket's path, or host:port; where unset and the default is not there, "
    "/run/haproxy/admin.sock or /var/lib/haproxy/haproxy.sock",
    others=("/run/haproxy/admin.sock", "/var/lib/haproxy/haproxy.sock"),
)
SCHEME = Setting(
    "scheme",
    "auto",
    _scheme,
    "auto, tcp, tls, http or https",
    "what a check speaks: tcp, tls, http, https, or auto, which is what HAProxy itself speaks to the server",
)
PATH = Setting("path", "/", _path, "a path that starts with / and has no blanks", "the path that a check asks for")
EXPECT = Setting(
    "expect",
    "200",
    _statuses,
    "status codes: 200 or 200,204 or 200-399",
    "the status codes of a server that is up: 200, or 200,204, or 200-399",
)
HOST = Setting(
    "host",
    "",
    _word,
    "a host name",
    "the name in the Host header, in SNI and in the certificate; where unset, the server's name",
)
CLOCK = Setting(
    "clock",
    "request",
    _clock,
    "request or connection",
    "when the clock of http and https starts: with the request, as for users over a kept connection, or the connection",
)
TIMEOUT = Setting("timeout", "10", _number(0.001, 3600), "seconds, 0.001 to 3600", "seconds that a check may take")
CA_FILE = Setting(
    "ca_file",
    "",
    _text,
    "a file's path",
    "the CA bundle that certificates are verified with; where unset, the system's",
)
INSECURE = Setting("insecure", "0", _switch, "0 or 1", "1: do not verify the certificate")
PERCENTILE = Setting(
    "percentile", "90", _number(0, 100), "0 to 100", "the percentile of a server's samples that is its score"
)
MIN_SAMPLES = Setting(
    "min_samples", "20", _whole(0, 10_000), "0 to 10000", "with this many samples or fewer, their mean is the score"
)
WINDOW = Setting("window", "30", _whole(1, 10_000), "1 to 10000", "how many of a server's newest samples count")
MAX_AGE = Setting(
    "max_age", "300", _number(0.001, 1e9), "seconds, above 0", "seconds after which a sample no longer counts"
)
FAVORITE = Setting(
    "favorite", "256", _whole(1, 256), "1 to 256", "the weight of the favourite, which is the fastest server"
)
BACKUP = Setting("backup", "1", _whole(0, 256), "0 to 256", "the weight of the backup, which is the second fastest")
HYSTERESIS = Setting(
    "hysteresis",
    "10",
    _number(0, 100),
    "0 to 100",
    "percent by which another server must be faster to take the favourite's place",
)
TOLERANCE = Setting(
    "tolerance",
    "0",
    _number(0, 3_600_000),
    "milliseconds, 0 or more",
    "milliseconds: servers this close to the fastest share the favourite's weight",
)

CHECK = (TIMES, SCHEME, PATH, EXPECT, HOST, CLOCK, TIMEOUT, CA_FILE, INSECURE)
SCORING = (TIMES, PERCENTILE, MIN_SAMPLES, WINDOW, MAX_AGE)
REWEIGH = (*SCORING, SOCKET, FAVORITE, BACKUP, HYSTERESIS, TOLERANCE)
