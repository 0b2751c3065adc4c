"""A user who asks once, over a connection of their own."""

from __future__ import annotations

import contextlib
import http.client


def fetch(
    port: int, path: str = "/", body: bytes | None = None, *, at: str = "127.0.0.1", source: str = "", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """An answer, and its body; with a `body`, it is one to a POST. In the name of a header `_` stands for `-`."""
    connection = http.client.HTTPConnection(at, port, timeout=20, source_address=(source, 0))
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, named)
        answer = connection.getresponse()
        return answer, answer.read()


def asked(port: int, path: str = "/") -> tuple[int, str]:
    """The status of an answer, and the region that it came from ("" if none did)."""
    answer, _ = fetch(port, path)
    return answer.status, answer.headers.get("upstream", "")
