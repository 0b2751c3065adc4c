"""HAProxy's configuration as `multicloud doctor` reads it: as HAProxy does."""

import subprocess
import time
from pathlib import Path

import pytest

from multicloud.console import parser
from multicloud.demo.router import haproxy_binary


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("# comment", []),
        ("  server eu 192.0.2.1:443  # comment", ["server", "eu", "192.0.2.1:443"]),
        ("path \"${WAY}\" '${WAY}' ${WAY}", ["path", "/opt", "${WAY}", "${WAY}"]),
        ('inter "${INTER-2s}"', ["inter", "2s"]),
        ('inter "${WAY-2s}"', ["inter", "/opt"]),
        ('socket "${WAY}/a"b\\ c', ["socket", "/opt/ab c"]),
        ('a\\#b \'#\' "\\"#"', ["a#b", "#", '"#']),
        ('empty ""', ["empty", ""]),
        ('unfinished "quote', ["unfinished", "quote"]),
        (
            r'command "/my\x20check.sh" \q "\$WAY" a\tb \'\x20\'',
            ["command", "/my check.sh", r"\q", "$WAY", "a\tb", "' '"],
        ),
        (
            'default-server "${WORDS[*]}" a"${WORDS[*]}"b',
            ["default-server", "check", "inter", "1s", "acheck", "inter", "1sb"],
        ),
        ("a\u2028b\u00a0c\fd", ["a\u2028b\u00a0c", "d"]),
    ],
)
def test_a_line_is_split_as_haproxy_splits_it(line: str, words: list[str]) -> None:
    assert parser.split(line, {"WAY": "/opt", "WORDS": "check  inter 1s"}) == words


@pytest.mark.parametrize(
    "text", ['"' + "${A-" * 100_000, '"' + "${A-" * 100_000 + "}", '"' * 100_001, "\\x" * 100_000, "'" * 100_001]
)
def test_a_long_line_takes_no_longer_than_its_length_lets_expect(text: str) -> None:
    began = time.process_time()
    parser.split(text, {})
    assert time.process_time() - began < 3


BLOCKS = """
global
.if {}
 one
.elif version_atleast(2.8)
 two
.if version_before(2.8)
 inner
.endif
.else
 three
.endif
 always
"""


@pytest.mark.parametrize(
    ("condition", "version", "lines", "undecided"),
    [
        ("version_atleast(2.6)", "2.6.12-1+deb12u4", ["one", "always"], []),
        ("version_atleast(2.8.26)", "2.8.25-5cf5d0683", ["two", "always"], []),
        ("version_before(2.6.12)", "2.6.12", ["three", "always"], []),
        ("version_atleast(3.5)", "3.5-dev5-abc", ["two", "always"], []),
        ("version_atleast(3.5-dev5)", "3.5-dev5-abc", ["one", "always"], []),
        ("!version_before( 3.5-dev6 )", "3.5-dev5-abc", ["two", "always"], []),
        ("!" * 1201 + "version_atleast(3)", "2.6.0", ["one", "always"], []),
        ("feature(OPENSSL)", "2.8.0", ["one", "two", "always"], [".if feature(OPENSSL)"]),
        ("feature(OPENSSL)", "2.6.0", ["one", "three", "always"], [".if feature(OPENSSL)"]),
        ("version_atleast(2.6) && 1", "2.8.0", ["one", "two", "always"], [".if version_atleast(2.6) && 1"]),
        (
            "version_atleast(2.8)",
            None,
            ["one", "two", "inner", "three", "always"],
            [".if version_atleast(2.8)", ".elif version_atleast(2.8)", ".if version_before(2.8)"],
        ),
    ],
)
def test_blocks_are_decided_as_far_as_the_version_tells(
    tmp_path: Path, condition: str, version: str | None, lines: list[str], undecided: list[str]
) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(BLOCKS.format(condition))
    found = parser.read([str(path)], {}, version)
    assert [word for (word,) in found.global_section().lines] == lines
    assert found.undecided == undecided


@pytest.mark.parametrize(
    "condition",
    [
        *("version_atleast(2.6)", "version_atleast(3)", "version_before(2.8.1-dev3)", "!version_before(2.6.12)"),
        *("version_atleast(2.8.25)", "version_before(2.8.25)", "version_atleast(3.5-dev1)", "version_before(3.5)"),
    ],
)
def test_a_condition_is_decided_as_haproxy_decides_it(tmp_path: Path, condition: str) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(f".if {condition}\n.alert this-one\n.endif\n")
    checked = [haproxy_binary(), "-c", "-f", str(path)]
    said = subprocess.run(checked, capture_output=True, text=True, check=False).stderr
    shown = subprocess.run([haproxy_binary(), "-v"], capture_output=True, text=True, check=True).stdout
    assert parser.holds(condition, shown.split()[2]) == ("this-one" in said)


def test_a_proxy_inherits_from_its_defaults(tmp_path: Path) -> None:
    first, second = tmp_path / "1.cfg", tmp_path / "2.cfg"
    first.write_text("defaults one\n balance source\ndefaults two from one\n balance first\n")
    second.write_text("backend a\nbackend b from one\nbackend c\n balance roundrobin\n no balance\n")
    sections = {section.name: section for section in parser.read([str(first), str(second)], {}).sections}
    assert [sections[name].last("balance") for name in "abc"] == [["first"], ["source"], None]


def test_variables_of_global_hold_for_the_lines_below_it(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text('global\n setenv A new\n presetenv B new\n presetenv C new\n daemon "$A$B$C"\n')
    lines = parser.read([str(path)], {"A": "1", "B": "2"}).global_section().lines
    assert lines[-1] == ["daemon", "new2new"]


def test_a_directory_is_its_files_in_their_order(tmp_path: Path) -> None:
    for name in ("b.cfg", "a.cfg", "c.conf", ".d.cfg"):
        (tmp_path / name).write_text(f"backend {name}\n")
    assert [section.name for section in parser.read([str(tmp_path)], {}).sections] == ["a.cfg", "b.cfg"]


@pytest.mark.parametrize(
    ("numbers", "names"), [("2", ["r1", "r2"]), ("3-4", ["r3", "r4"]), ("many", []), ("9" * 9, [])]
)
def test_a_server_template_is_as_many_servers(tmp_path: Path, numbers: str, names: list[str]) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(f"backend a\n default-server inter 1s\n server-template r {numbers} eu.test:80 check inter 2s\n")
    words = parser.options(parser.read([str(path)], {}).sections[0])
    assert words == {name: ["inter", "1s", "check", "inter", "2s"] for name in names}
    assert all(parser.value(each, "inter") == "2s" for each in words.values())


@pytest.mark.parametrize(
    ("line", "places"),
    [
        (":80", [":80"]),
        ("*:80,ipv4@0.0.0.0:81,192.0.2.1:82 name x", [":80", ":81", "192.0.2.1:82"]),
        (":::80", [":::80"]),
        ("ipv6@[::]:80 v4v6", ["ipv6@[::]:80", ":80"]),
        (":80 interface eth0", [":80 interface eth0"]),
    ],
)
def test_an_address_is_one_place_in_whatever_way_it_is_written(line: str, places: list[str]) -> None:
    assert parser.places(line.split()) == places


def test_what_is_disabled_or_behind_a_null_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("global\n user a\0b\nbackend a\n disabled\nbackend b\n disabled\n enabled\n")
    read = parser.read([str(path)], {})
    assert [section.name for section in read.proxies()] == ["b"]
    assert read.global_section().first_word("user") == "a"
