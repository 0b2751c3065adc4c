"""The version, which grows with the commits, so that an upgrade is one: 0.2.0.dev255+g270e663 is the 255th of them.

pyproject.toml takes `version()` from here when a wheel is built. `python3 deploy/version.py` prints it as a Debian
package has it: 0.2.0~dev255+g270e663. Where there is no git, or no checkout of it, nobody can count: it is what
BUILD_VERSION says, as when the image is built, or else 0.2.0.dev0.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

RELEASE = "0.2.0"
ROOT = Path(__file__).parents[1]


def version() -> str:
    """As PEP 440 wants it."""
    commits, name = _git("rev-list", "--count", "HEAD"), _git("rev-parse", "--short=7", "HEAD")
    counted = f"{RELEASE}.dev{commits}+g{name}" if commits and name else ""
    return counted or os.environ.get("BUILD_VERSION", "").replace("~", ".") or f"{RELEASE}.dev0"


def _git(*words: str) -> str:
    """What git says of this checkout, not of one around it, and "" where it says nothing."""
    if not (ROOT / ".git").exists():
        return ""
    # Who builds may be another user than the one who has cloned.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    print(version().replace(".dev", "~dev"))
