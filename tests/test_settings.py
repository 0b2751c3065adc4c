"""Settings are environment variables; a value that cannot be read is one clear error."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from multicloud import settings

ALL = settings.ALL_SETTINGS


def test_the_defaults_are_the_documented_ones() -> None:
    documented = {
        "MULTICLOUD_TIMES": "/tmp/times.txt",
        "MULTICLOUD_SOCKET": "/var/run/haproxy.sock",
        "MULTICLOUD_SCHEME": "auto",
        "MULTICLOUD_PATH": "/",
        "MULTICLOUD_EXPECT": "200",
        "MULTICLOUD_HOST": "",
        "MULTICLOUD_USER_AGENT": "multicloud-check",
        "MULTICLOUD_CLOCK": "request",
        "MULTICLOUD_TIMEOUT": "10",
        "MULTICLOUD_CA_FILE": "",
        "MULTICLOUD_INSECURE": "0",
        "MULTICLOUD_PERCENTILE": "90",
        "MULTICLOUD_MIN_SAMPLES": "20",
        "MULTICLOUD_WINDOW": "30",
        "MULTICLOUD_MAX_AGE": "300",
        "MULTICLOUD_FAVORITE": "256",
        "MULTICLOUD_BACKUP": "1",
        "MULTICLOUD_HYSTERESIS": "10",
        "MULTICLOUD_TOLERANCE": "0",
        "MULTICLOUD_BACKENDS": "",
        "MULTICLOUD_INTERVAL": "1",
        "MULTICLOUD_SERVERS": "",
        "MULTICLOUD_BIND": ":8080",
        "MULTICLOUD_MODE": "http",
    }
    assert {setting.variable: setting.default for setting in ALL} == documented


READ: dict[str, dict[str, object]] = {
    "MULTICLOUD_EXPECT": {
        "200": (range(200, 201),),
        "200,204": (range(200, 201), range(204, 205)),
        "200-399": (range(200, 400),),
        "200-299,404": (range(200, 300), range(404, 405)),
        "100-599": (range(100, 600),),
    },
    "MULTICLOUD_TIMEOUT": {"0.001": 0.001, "0.5": 0.5, "3600": 3600.0},
    "MULTICLOUD_INSECURE": {"1": True},
    "MULTICLOUD_WINDOW": {"": 30, "1": 1, "10000": 10000},
    "MULTICLOUD_FAVORITE": {"100": 100},
    "MULTICLOUD_SOCKET": {
        "unix@/run/a:b.sock": "/run/a:b.sock",
        "unix@ha.sock": "./ha.sock",
        "ipv4@127.0.0.1:9999": "127.0.0.1:9999",
        "ipv6@::1:9999": "::1:9999",
        **{text: text for text in ("127.0.0.1:9999", "[::1]:65535", "/run/a:b.sock", "/run/a@b", "abns@a:b")},
    },
    "MULTICLOUD_USER_AGENT": {"Mozilla/5.0 (X11)": "Mozilla/5.0 (X11)"},
    "MULTICLOUD_CLOCK": {"connection": "connection"},
    "MULTICLOUD_SCHEME": {text: text for text in ("auto", "tcp", "tls", "http", "https")},
    "MULTICLOUD_BACKENDS": {"app, api": ("app", "api")},
    "MULTICLOUD_SERVERS": {"eu.example.com  us=[2001:db8::1]:80": ("eu.example.com", "us=[2001:db8::1]:80")},
    "MULTICLOUD_BIND": {":443 ssl crt /etc/haproxy/site.pem": ":443 ssl crt /etc/haproxy/site.pem"},
    "MULTICLOUD_MODE": {"tcp": "tcp"},
}


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [(variable, text, value) for variable, values in READ.items() for text, value in values.items()],
)
def test_values_are_read(variable: str, text: str, value: object) -> None:
    setting = next(setting for setting in ALL if setting.variable == variable)
    assert getattr(settings.Sources({variable: text}).read(ALL), setting.name) == value


NO_NUMBERS = ("1_0", " 10", "10\n", "+10", "1e1", "\u0661\u0662", "9" * 5000)
REFUSED = {
    "MULTICLOUD_SCHEME": ("ftp",),
    "MULTICLOUD_PATH": ("healthz", "/a b", "/\r\nX: y"),
    "MULTICLOUD_HOST": ("a\r\nX: y", "a b", "é"),
    "MULTICLOUD_USER_AGENT": ("a\r\nX: y", "é"),
    "MULTICLOUD_TIMES": ("/tmp/\n",),
    "MULTICLOUD_CA_FILE": ("\udcff",),
    "MULTICLOUD_BACKENDS": ("app,,api",),
    "MULTICLOUD_SERVERS": ("eu\nus",),
    "MULTICLOUD_BIND": (":80\nglobal",),
    "MULTICLOUD_MODE": ("udp",),
    "MULTICLOUD_EXPECT": ("ok", "399-200", "200,", "99", "600", "2_00", "200-", "200\n"),
    "MULTICLOUD_TIMEOUT": ("0", "-1", "nan", "inf", "ten", "3600.1", "1.2.3", *NO_NUMBERS),
    "MULTICLOUD_INTERVAL": ("0",),
    "MULTICLOUD_INSECURE": ("yes",),
    "MULTICLOUD_PERCENTILE": ("101",),
    "MULTICLOUD_WINDOW": ("0", "1.5", *NO_NUMBERS),
    "MULTICLOUD_FAVORITE": ("257",),
    "MULTICLOUD_BACKUP": ("-1",),
    "MULTICLOUD_SOCKET": (
        *("localhost:port", ":9999", "localhost:65536", f"localhost:{'9' * 5000}"),
        *("fd@3", "unix@", "abns@", "ipv4@127.0.0.1", "ipv4@/run:1"),
    ),
}


@pytest.mark.parametrize(
    ("variable", "text"), [(variable, text) for variable, texts in REFUSED.items() for text in texts]
)
def test_a_value_that_cannot_be_read_names_variable_value_and_what_is_accepted(variable: str, text: str) -> None:
    setting = next(setting for setting in ALL if setting.variable == variable)
    with pytest.raises(settings.SettingError) as caught:
        settings.Sources({variable: text}).read(ALL)
    assert str(caught.value) == f"{variable}: cannot read {text!r}; accepted: {setting.accepts}"


def test_a_command_reads_only_its_own_settings() -> None:
    assert settings.Sources({"MULTICLOUD_PERCENTILE": "mistyped"}).read(settings.CHECK_SETTINGS).timeout == 10


def test_a_backup_above_the_favourite_is_refused() -> None:
    with pytest.raises(settings.SettingError) as caught:
        settings.Sources({"MULTICLOUD_FAVORITE": "1", "MULTICLOUD_BACKUP": "100"}).read(settings.REWEIGH_SETTINGS)
    assert str(caught.value) == (
        "MULTICLOUD_BACKUP: 100 is above MULTICLOUD_FAVORITE, which is 1; accepted: 0 to the favourite's weight"
    )
    equal = settings.Sources({"MULTICLOUD_FAVORITE": "7", "MULTICLOUD_BACKUP": "7"})
    assert equal.read(settings.REWEIGH_SETTINGS).backup == 7


def test_the_socket_is_the_first_that_is_there_unless_it_is_set(places: tuple[str, str, str]) -> None:
    first, second, third = places
    found = []
    for made in (None, third, second, first):
        if made:
            Path(made).touch()
        found.append(settings.Sources({}).read((settings.SOCKET,)).socket)
    assert found == [first, third, second, first]
    Path(first).unlink()
    assert settings.Sources({"MULTICLOUD_SOCKET": first}).read((settings.SOCKET,)).socket == first


def test_a_socket_whose_program_has_ended_hides_none_where_somebody_listens(places: tuple[str, str, str]) -> None:
    first, second, _ = places
    with socket.socket(socket.AF_UNIX) as left_behind, socket.socket(socket.AF_UNIX) as listening:
        left_behind.bind(first)
        listening.bind(second)
        assert settings.SOCKET.found_default() == first
        listening.listen(0)
        assert [settings.SOCKET.found_default() for _ in range(3)] == [second] * 3, "the queue is full, too"


def test_the_socket_is_looked_for_where_it_usually_is() -> None:
    assert (settings.SOCKET.default, *settings.SOCKET.others) == (
        "/var/run/haproxy.sock",
        "/run/haproxy/admin.sock",
        "/var/lib/haproxy/haproxy.sock",
    )
    assert all(path in settings.SOCKET.meaning for path in settings.SOCKET.others)


FILE = """\
# for all
path = /all?a=b    # a comment may follow
window=10	# and so may a tab

[api]                      # for one backend
path = /healthz
hysteresis = 20
	expect	=	200,204
[api/eu1]
host = eu.example.com
[other]
host = www.example.com
"""


def sources(path: Path, text: str, **environ: str) -> settings.Sources:
    path.write_text(text)
    return settings.Sources({"MULTICLOUD_CONF": str(path), **environ})


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "multicloud.conf"


def test_the_narrower_section_of_the_file_wins(conf: Path) -> None:
    found = sources(conf, FILE)
    everywhere = found.read(settings.ALL_SETTINGS)
    assert (everywhere.path, everywhere.window, everywhere.hysteresis, everywhere.host) == ("/all?a=b", 10, 10, "")
    eu = found.read(settings.CHECK_SETTINGS, "api", "eu1")
    assert (eu.path, eu.host, eu.expect) == ("/healthz", "eu.example.com", (range(200, 201), range(204, 205)))
    us = found.read(settings.CHECK_SETTINGS, "api", "us1")
    assert (us.path, us.host) == ("/healthz", "")
    assert found.read(settings.RANKING_SETTINGS, "api").hysteresis == 20
    assert found.backends() == ["api", "other"]


def test_the_environment_wins_over_the_file(conf: Path) -> None:
    found = sources(conf, FILE, MULTICLOUD_PATH="/here", MULTICLOUD_HOST="")
    values = found.read(settings.CHECK_SETTINGS, "api", "eu1")
    assert (values.path, values.host) == ("/here", "eu.example.com")


def test_it_is_known_where_a_value_stands(conf: Path) -> None:
    found = sources(conf, FILE, MULTICLOUD_WINDOW="5")
    assert found.where(settings.PATH, "api", "eu1") == f"{conf}:6: path"
    assert found.where(settings.PATH) == f"{conf}:2: path"
    assert found.where(settings.WINDOW, "api") == "MULTICLOUD_WINDOW"
    assert found.where(settings.CLOCK, "api") == "default"
    assert found.text(settings.PATH, "api", "eu1") == "/healthz"


def test_an_empty_value_in_the_file_is_the_default(conf: Path) -> None:
    assert sources(conf, "path = /all\n[api]\npath =\n").read(settings.CHECK_SETTINGS, "api").path == "/"


@pytest.mark.parametrize(
    ("text", "number", "said"),
    [
        ("\nhysterisis = 20\n", 2, "'hysterisis' is no setting; accepted: times, scheme, path, "),
        ("Path = /\n", 1, "'Path' is no setting; accepted: times, "),
        ("MULTICLOUD_PATH = /\n", 1, "'MULTICLOUD_PATH' is no setting; accepted: times, "),
        ("= /\n", 1, "'' is no setting; accepted: times, "),
        ("path /healthz\n", 1, "cannot read 'path /healthz'; accepted: name = value, [backend] or [backend/server]"),
        ("[api\npath = /\n", 1, "cannot read '[api'; accepted: [backend] or [backend/server]"),
        ("[]\n", 1, "cannot read '[]'; accepted: [backend] or [backend/server]"),
        ("[a/b/c]\n", 1, "cannot read '[a/b/c]'; accepted: [backend] or [backend/server]"),
        ("[my api]\n", 1, "cannot read '[my api]'; accepted: [backend] or [backend/server]"),
        *(
            (f"[api]\n{name} = 1\n", 2, f"{name} cannot be set in [api]; accepted: before the first section")
            for name in ("socket", "times", "backends", "interval")
        ),
        ("[api/eu]\nhysteresis = 1\n", 2, "hysteresis cannot be set in [api/eu]; accepted: [api]"),
    ],
)
def test_what_cannot_be_read_in_the_file_is_named_with_its_line(conf: Path, text: str, number: int, said: str) -> None:
    with pytest.raises(settings.SettingError) as caught:
        sources(conf, text)
    assert str(caught.value).startswith(f"{conf}:{number}: {said}")


def test_a_value_of_the_file_that_cannot_be_read_is_an_error_for_who_uses_it_alone(conf: Path) -> None:
    found = sources(conf, "[api]\nexpect = ok\nhysteresis = much\n[other]\nclock = \xe9\n")
    with pytest.raises(settings.SettingError) as caught:
        found.read(settings.CHECK_SETTINGS, "api", "eu1")
    assert str(caught.value) == (
        f"{conf}:2: expect: cannot read 'ok'; accepted: status codes: 200 or 200,204 or 200-399"
    )
    assert found.read(settings.CHECK_SETTINGS, "app").expect == (range(200, 201),)
    with pytest.raises(settings.SettingError, match=r":3: hysteresis: cannot read 'much'; accepted: 0 to 100"):
        found.read(settings.RANKING_SETTINGS, "api")


@pytest.mark.parametrize(
    ("text", "number"), [("favorite = 5\n[api]\nbackup = 9\n", 1), ("[api]\nfavorite = 5\nbackup = 9\n", 2)]
)
def test_two_lines_of_the_file_that_contradict_each_other_are_both_named(conf: Path, text: str, number: int) -> None:
    found = sources(conf, text)
    with pytest.raises(settings.SettingError) as caught:
        found.read(settings.RANKING_SETTINGS, "api")
    assert str(caught.value) == (
        f"{conf}:3: backup: 9 is above {conf}:{number}: favorite, which is 5; accepted: 0 to the favourite's weight"
    )


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(conf: Path, mode: int) -> None:
    conf.touch()
    conf.chmod(mode)
    with pytest.raises(settings.SettingError, match="others than its owner may write it; accepted: chmod go-w"):
        settings.Sources({"MULTICLOUD_CONF": str(conf)})


@pytest.mark.root("give a file away")
def test_a_file_is_roots_or_ones_own(conf: Path) -> None:
    conf.touch()
    os.chown(conf, 65534, 65534)
    with pytest.raises(
        settings.SettingError, match="belongs to somebody else; accepted: a file of root's, or one's own"
    ):
        settings.Sources({"MULTICLOUD_CONF": str(conf)})


def test_a_file_that_others_may_read_and_execute_is_used(conf: Path) -> None:
    conf.touch()
    conf.chmod(0o755)
    assert sources(conf, "path = /here\n").read(settings.CHECK_SETTINGS).path == "/here"


def test_a_file_is_read_to_its_end_however_long_it_is(conf: Path) -> None:
    assert sources(conf, "path = /here\n" + "# a comment\n" * 10_000).read(settings.CHECK_SETTINGS).path == "/here"


def test_a_file_that_an_editor_began_with_a_byte_order_mark_is_read(conf: Path) -> None:
    assert sources(conf, "\ufeffpath = /here\n").read(settings.CHECK_SETTINGS).path == "/here"


def test_a_file_may_have_256_kib_and_of_a_larger_one_no_more_is_read(conf: Path) -> None:
    assert sources(conf, "#" * (256 << 10)).sections == {"": {}}
    for size in ((256 << 10) + 1, 1 << 40):
        os.truncate(conf, size)
        with pytest.raises(settings.SettingError, match="larger than 256 KiB; accepted: a file of settings"):
            settings.Sources({"MULTICLOUD_CONF": str(conf)})


def test_a_file_that_is_named_must_be_there_and_be_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path / "file" / "in it", ": not a directory; accepted: a file to be read"),
    ):
        with pytest.raises(settings.SettingError, match=said):
            settings.Sources({"MULTICLOUD_CONF": str(path)})
    assert settings.Sources({"MULTICLOUD_CONF": "/dev/null"}).sections == {"": {}}


def test_the_names_of_all_settings_can_stand_in_the_file(conf: Path) -> None:
    found = sources(conf, "".join(f"{setting.name} = {setting.default}\n" for setting in settings.ALL_SETTINGS))
    assert len(found.sections[""]) == len(settings.ALL_SETTINGS)
    found.read(settings.ALL_SETTINGS)
