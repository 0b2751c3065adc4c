"""The checks that HAProxy makes by itself, which `multicloud run` takes as samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multicloud import haproxy_checks
from multicloud.console.doctor.finding import ok, problem, some
from multicloud.console.problems import SAMPLES
from multicloud.runtime import MAINT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance

REMEDIES = (
    ("L4", "is it at the address and port of its line?"),
    ("L6", "does it speak TLS there, with a certificate that the `ca-file` of its line verifies, for its `check-sni`?"),
    ("L7STS", "are the path and the Host of `http-check send` right, and the status of `http-check expect`?"),
    ("L7", "does it speak what is asked of it, and in time (`inter`, `timeout check`)?"),
)
"""What to look at, by how the status of a failed check begins; the first one that fits counts."""


def own_checks(instance: Instance, backends: Sequence[str], path: str) -> Iterator[Finding]:
    """What HAProxy says of its own checks in the backends that `multicloud run` measures.

    Where there are none of those, and no external checks, whether it should; `path` is the settings file's. What makes
    a backend useless to `multicloud run` is for `problems`.
    """
    own = instance.own_checked(backends)
    for server in own:
        if server.check in haproxy_checks.FAILED_STATUSES and server.state != MAINT:
            code = f" {server.code}" if server.code not in ("", "0") else ""
            remedy = next(text for start, text in REMEDIES if server.check.startswith(start))
            yield problem(f"HAProxy's check of {server.backend}/{server.name} fails ({server.check}{code}): {remedy}")
    if own and all(server.check in haproxy_checks.PASSED_STATUSES for server in own):
        yield ok(f"HAProxy's own checks of all {len(own)} servers pass")
    if not backends and not instance.checked():
        found = {server.backend for server in instance.servers}
        names = list(dict.fromkeys(server.backend for server in instance.own_checked(found)))
        if names:
            yield problem(
                f"HAProxy checks the servers of {some(names)} by itself, and nobody takes that as samples: write "
                f"`backends = {','.join(names)}` into {path} and start multicloud-run, or give them external checks",
                SAMPLES,
            )
