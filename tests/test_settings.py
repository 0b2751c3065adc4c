"""Settings are environment variables; a value that cannot be read is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from multicloud import settings

ALL = (*settings.CHECK, *settings.REWEIGH)


def test_the_defaults_are_the_documented_ones() -> None:
    documented = {
        "MULTICLOUD_TIMES": "/tmp/times.txt",
        "MULTICLOUD_SOCKET": "/var/run/haproxy.sock",
        "MULTICLOUD_SCHEME": "auto",
        "MULTICLOUD_PATH": "/",
        "MULTICLOUD_EXPECT": "200",
        "MULTICLOUD_HOST": "",
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
    }
    assert {setting.variable: setting.default for setting in ALL} == documented


NUMBERS = ("MULTICLOUD_TIMEOUT", "MULTICLOUD_WINDOW")
NO_NUMBERS = ("1_0", " 10", "10\n", "+10", "1e1", "\u0661\u0662", "9" * 5000)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("MULTICLOUD_EXPECT", "200", (range(200, 201),)),
        ("MULTICLOUD_EXPECT", "200,204", (range(200, 201), range(204, 205))),
        ("MULTICLOUD_EXPECT", "200-399", (range(200, 400),)),
        ("MULTICLOUD_EXPECT", "200-299,404", (range(200, 300), range(404, 405))),
        ("MULTICLOUD_TIMEOUT", "0.5", 0.5),
        ("MULTICLOUD_INSECURE", "1", True),
        ("MULTICLOUD_WINDOW", "", 30),
        ("MULTICLOUD_SOCKET", "127.0.0.1:9999", "127.0.0.1:9999"),
        ("MULTICLOUD_SOCKET", "/run/a:b.sock", "/run/a:b.sock"),
        ("MULTICLOUD_FAVORITE", "100", 100),
    ],
)
def test_values_are_read(variable: str, text: str, value: object) -> None:
    setting = next(setting for setting in ALL if setting.variable == variable)
    assert getattr(settings.read({variable: text}, ALL), setting.name) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MULTICLOUD_SCHEME", "ftp"),
        ("MULTICLOUD_PATH", "healthz"),
        ("MULTICLOUD_PATH", "/a b"),
        ("MULTICLOUD_PATH", "/\r\nX: y"),
        ("MULTICLOUD_HOST", "a\r\nX: y"),
        ("MULTICLOUD_EXPECT", "ok"),
        ("MULTICLOUD_EXPECT", "399-200"),
        ("MULTICLOUD_EXPECT", "200,"),
        ("MULTICLOUD_EXPECT", "20"),
        ("MULTICLOUD_TIMEOUT", "0"),
        ("MULTICLOUD_TIMEOUT", "-1"),
        ("MULTICLOUD_TIMEOUT", "nan"),
        ("MULTICLOUD_TIMEOUT", "inf"),
        ("MULTICLOUD_TIMEOUT", "ten"),
        ("MULTICLOUD_INSECURE", "yes"),
        ("MULTICLOUD_PERCENTILE", "101"),
        ("MULTICLOUD_WINDOW", "0"),
        ("MULTICLOUD_WINDOW", "1.5"),
        ("MULTICLOUD_FAVORITE", "257"),
        ("MULTICLOUD_BACKUP", "-1"),
        ("MULTICLOUD_SOCKET", "localhost:port"),
        ("MULTICLOUD_SOCKET", ":9999"),
        ("MULTICLOUD_SOCKET", "localhost:" + "9" * 5000),
        *((variable, text) for variable in NUMBERS for text in NO_NUMBERS),
        ("MULTICLOUD_EXPECT", "2_00"),
        ("MULTICLOUD_EXPECT", "200-"),
        ("MULTICLOUD_EXPECT", "200\n"),
    ],
)
def test_a_value_that_cannot_be_read_names_variable_value_and_what_is_accepted(variable: str, text: str) -> None:
    setting = next(setting for setting in ALL if setting.variable == variable)
    with pytest.raises(settings.SettingError) as caught:
        settings.read({variable: text}, ALL)
    assert str(caught.value) == f"{variable}: cannot read {text!r}; accepted: {setting.accepts}"


def test_a_command_reads_only_its_own_settings() -> None:
    assert settings.read({"MULTICLOUD_PERCENTILE": "mistyped"}, settings.CHECK).timeout == 10


def test_a_backup_above_the_favourite_is_refused() -> None:
    with pytest.raises(settings.SettingError) as caught:
        settings.read({"MULTICLOUD_FAVORITE": "1", "MULTICLOUD_BACKUP": "100"}, settings.REWEIGH)
    assert str(caught.value) == (
        "MULTICLOUD_BACKUP: 100 is above MULTICLOUD_FAVORITE, which is 1; accepted: 0 to the favourite's weight"
    )
    assert settings.read({"MULTICLOUD_FAVORITE": "7", "MULTICLOUD_BACKUP": "7"}, settings.REWEIGH).backup == 7


def test_the_socket_is_the_first_that_is_there_unless_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    monkeypatch.setattr(settings.SOCKET, "default", first)
    monkeypatch.setattr(settings.SOCKET, "others", (second, third))
    found = []
    for made in (None, third, second, first):
        if made:
            Path(made).touch()
        found.append(settings.SOCKET.read({}))
    assert found == [first, third, second, first]
    Path(first).unlink()
    assert settings.SOCKET.read({"MULTICLOUD_SOCKET": first}) == first


def test_the_socket_is_looked_for_where_it_usually_is() -> None:
    assert (settings.SOCKET.default, *settings.SOCKET.others) == (
        "/var/run/haproxy.sock",
        "/run/haproxy/admin.sock",
        "/var/lib/haproxy/haproxy.sock",
    )
    assert all(path in settings.SOCKET.meaning for path in settings.SOCKET.others)
