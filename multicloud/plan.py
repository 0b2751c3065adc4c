"""What an haproxy.cfg is to be: its servers, and the words that depend on the version and on the application."""

import re
from collections.abc import Sequence
from typing import NamedTuple

RELAYED = (3, 3)  # from this version on HAProxy refuses `http-send-name-header Host`, and a relay does the same
USUAL, NONE = ":8080", "none"  # where users come in if nothing is said, and what says that there is no frontend
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"  # the system's, on Debian and where its packages are


class Server(NamedTuple):
    """A server: IPv6 is in brackets, `tls` is whether HAProxy speaks TLS to it, and `words` are for its line alone."""

    name: str
    address: str
    port: int
    tls: bool = True
    words: str = ""


# They stand in comments where no servers are named.
EXAMPLES = tuple(Server(host, host, 443) for host in ("helloworld-xyz-uc.a.run.app", "helloworld-eu.herokuapp.com"))


class Plan(NamedTuple):
    """What is to be written."""

    servers: Sequence[Server] = ()
    version: tuple[int, ...] | None = None  # of the HAProxy that reads it; None: not known
    backend: str = "upstream"
    http: bool = True  # else TCP
    path: str = "/"  # what HAProxy's own checks ask for
    blocks: bool = False  # what stands beside a configuration that is there, and not a whole one
    beside: bool = False  # whether HAProxy checks the servers itself, for multicloud-run
    directory: str = ""  # where the commands are, such as "/opt/bin/"
    bind: str = ""  # where users come in: "" the usual ports, NONE no frontend
    host: str = ""  # what all servers answer to; "": each to its name
    ca_file: str = ""
    insecure: bool = False
    expect: str = "200"  # the status that HAProxy's own checks expect
    socket: str = "/var/run/haproxy.sock"  # of the Runtime API
    maxconn: bool = True  # whether to set it, since the configuration that is there does not
    logs: bool = True  # whether to log: not where the configuration that is there has no `log`

    def name(self, section: str) -> str:
        """The name of a section of this application."""
        return section if self.backend == "upstream" else f"{self.backend}-{section}"

    def shared(self, section: str) -> str:
        """The name of a section that all applications share; in blocks it is not one of the operator's."""
        return f"multicloud-{section}" if self.blocks else section

    @property
    def common(self) -> str:
        """The name of the defaults of all its sections."""
        return self.shared("common" if self.http else "tcp-common")

    @property
    def tls(self) -> bool:
        """Whether HAProxy speaks TLS to all servers."""
        return all(server.tls for server in self.servers)

    @property
    def sni(self) -> str:
        """The name that a server's certificate must be for, as a sample expression."""
        return f"str({self.host})" if self.host else "srv_name"

    def variable(self, name: str, default: str) -> str:
        """A value, which a variable overrides, but in blocks, and where no quotes can hold it."""
        plain = self.blocks or re.search(r'["$}\\]', default)
        return escaped(default) if plain else f'"${{{name}-{default}}}"'

    def since(self, version: tuple[int, ...], new: str, old: str = "") -> str:
        """`new` for HAProxy `version` and newer, `old` for those before; both where it is not known which it is."""
        if self.version:
            return new if self.version >= version else old
        condition = "version_atleast" if new else "version_before"
        branches = "\n.else\n".join(filter(None, (new, old)))
        return f".if {condition}({'.'.join(map(str, version))})\n{branches}\n.endif"

    def relayed(self, new: str, old: str = "") -> str:
        """`new` where requests go through `relay`, `old` where they need not."""
        return self.since(RELAYED, new, old) if self.http and not self.host else old

    @property
    def relay(self) -> str:
        """The address of its relay: an abstract socket, since no chroot hides that and no other machine reaches it."""
        return f"abns@multicloud-{self.backend}" if self.blocks else f'"abns@${{RELAY-multicloud}}-{self.backend}"'

    @property
    def answered(self) -> str:
        """The variable that has the name of the region that answered last."""
        # Such a name has no `-` and no `:`, and those of `a-b` and `a_b` must differ.
        return "proc." + re.sub("[:-]", lambda found: f".{ord(found[0])}.", self.backend)


def escaped(word: str) -> str:
    """A word as it stands in a configuration without quotes around it."""
    return re.sub(r"([\\\"'# ])", r"\\\1", word)
