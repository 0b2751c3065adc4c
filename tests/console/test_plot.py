"""`multicloud plot`: a picture of the samples."""

import sys
import time
from pathlib import Path

import pytest

from multicloud import settings
from multicloud.console import plot
from multicloud.light import CommandError
from tests.command import run
from tests.console.test_history import LINE, write

WITHOUT = "import sys; sys.modules['matplotlib'] = None; from multicloud.console.cli import main; main()"


@pytest.fixture
def times(times: Path) -> Path:
    """A sample file with two backends, and a line without a time."""
    now = time.time()
    lines = [
        f"{backend} {server} {0.02 * (2 + i % 5):.6f} {now - 100 + i:.3f}"
        for i in range(100)
        for backend, server in (("upstream", "eu"), ("upstream", "us"), ("databases", "db"))
    ]
    times.write_text("upstream eu 0.020000\n" + "\n".join(lines) + "\n")
    return times


@pytest.mark.parametrize(("name", "magic"), [("latency.png", b"\x89PNG\r\n"), ("latency.svg", b"<?xml ")])
def test_a_picture_is_drawn(times: Path, tmp_path: Path, name: str, magic: bytes) -> None:
    picture = tmp_path / name
    words = ("plot", "-o", str(picture), "--from", "10m", "--to", "0s", "--times", str(times))
    done = run(*words, environ={"MPLCONFIGDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    drawn = picture.read_bytes()
    assert drawn.startswith(magic)
    assert len(drawn) > 5000


def test_a_change_of_favourite_is_marked_where_it_is_in_the_time_that_is_drawn(tmp_path: Path, times: Path) -> None:
    sources = write(times, time.time() - 200, eu=[0.05] * 50 + [0.2] * 50, us=[0.08] * 100)
    picture = tmp_path / "latency.svg"
    for begin, marks in (("10m", 2), ("30s", 1)):  # in the legend, and at the line
        plot.draw(sources, str(picture), begin)
        assert picture.read_text().count("<!-- us -->") == marks
    with pytest.raises(CommandError, match=r"^no samples of that time to draw"):
        plot.draw(sources, str(picture), None, "1h")


def test_a_time_of_sharing_is_shaded(tmp_path: Path, times: Path) -> None:
    full = LINE[:-40]
    sources = write(times, time.time() - 300, eu=full, us=[0.08] * len(full))
    picture = tmp_path / "latency.svg"
    for end, shaded in (("0s", 1), ("2m", 0)):
        plot.draw(sources, str(picture), None, end)
        assert picture.read_text().count('id="shared"') == shaded


@pytest.mark.parametrize("text", ["", "garbage\n", "upstream eu 0.020000\n"])
def test_without_samples_there_is_nothing_to_draw(tmp_path: Path, times: Path, text: str) -> None:
    times.write_text(text)
    with pytest.raises(CommandError, match=rf"^{times}: no samples with a time to draw"):
        plot.draw(settings.Sources({"MULTICLOUD_TIMES": str(times)}), str(tmp_path / "latency.png"))
    assert not (tmp_path / "latency.png").exists()


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("none/latency.png", 1, "none/latency.png: no such file or directory"),
        ("latency.gif", 2, "cannot draw 'latency.gif'; give a name that ends with .png or .svg"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_one_line(times: Path, output: str, code: int, said: str) -> None:
    done = run("plot", "-o", output, "--times", str(times))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"error: {said}\n")


def test_without_matplotlib_it_says_how_to_get_it() -> None:
    done = run("-c", WITHOUT, "plot", program=sys.executable)
    assert done.returncode == 2
    assert done.stderr == (
        "error: matplotlib is missing; in the project's directory: pip install '.[plot]', "
        "or with the Debian package: apt install python3-matplotlib\n"
    )
