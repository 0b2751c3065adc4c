"""The programs on this machine: HAProxy with its version, and the commands that it starts."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from multicloud import light

OLDEST = (2, 6, 0)
CRASHES = (3, 4, 0)  # it does at start, on any external check


def find_haproxy(environ: Mapping[str, str]) -> str | None:
    """HAPROXY_BINARY or, where that is not set, the `haproxy` on PATH or among the system's programs, if any."""
    path = f"{environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    return environ.get("HAPROXY_BINARY") or shutil.which("haproxy", path=path)


def haproxy_version(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """The version of the HAProxy on this machine (find_haproxy). Raises UsageError."""
    found = find_haproxy(environ)
    if not found:
        raise light.UsageError("no HAProxy found on PATH; say for which one, such as --haproxy 2.8")
    try:
        said = subprocess.run([found, "-v"], capture_output=True, text=True, errors="replace", timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise light.UsageError(f"{found}: {light.reason(error)}; or say --haproxy 2.8") from None
    return version(said.stdout.partition("\n")[0])


def version(text: str) -> tuple[int, int, int]:
    """The version that `2.8`, `2.8.25` or the first line of `haproxy -v` says. Raises UsageError."""
    found = re.match(r"(?:HA-?Proxy version )?((\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?)(?![\d.])", text)
    if not found:
        raise light.UsageError(f"HAProxy {text!r}: cannot read the version; accepted: such as 2.8 or 2.8.25")
    numbers = int(found[2]), int(found[3]), int(found[4] or 0)
    if numbers < OLDEST:
        raise light.UsageError(f"HAProxy {found[1]} is too old; accepted: 2.6 and newer")
    if numbers == CRASHES and found[4]:
        raise light.UsageError(f"HAProxy {found[1]} crashes on any external check; accepted: such as 3.4.1")
    return numbers


def command(name: str) -> str | None:
    """Where a command that HAProxy starts is: beside the Python that runs this, or on PATH. None where it is not."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)
