"""The tests. They make files as root does: one of settings that a group may write to is refused."""

import os

os.umask(0o022)  # Debian 13 gives ordinary users 002
