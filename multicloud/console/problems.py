"""What is wrong, in words: only what can be known from HAProxy's answers and the sample file, each with what to do.

`status` shows all of it under its table, and `doctor` a kind at a time, each in its place among other causes.
"""

import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from math import inf

from multicloud import history, reweigh, run, runtime, scores, sharing
from multicloud.console.instance import EXTERNAL, PASSED, REWEIGH_SERVER, Case, cannot_append
from multicloud.history import Samples
from multicloud.ranking import candidates, changes
from multicloud.runtime import DOWN, MAINT, UP, Server
from multicloud.settings import REWEIGH_SETTINGS, Sources

TOLERATED = 10.0  # seconds for which a sample may be missing, or a weight not be set, before that is a problem
LOOK_BACK = 60  # samples read beyond those that count, so that it can be judged what counted some seconds ago
STEP = 5.0  # seconds between the moments that are judged
EVERY_LINE = "on every `server` line (from HAProxy 2.8 on, `default-server` will do)"
WHOLE_DOMAIN = "with its whole domain (HAProxy does not use `search` of /etc/resolv.conf)"
SLOWER, LONGER = 3, 0.1  # users wait longer than samples say: so many times their median, and so many seconds more
SIGNAL = "4294967295"  # what HAProxy says of a check that had no exit code
ENDED = "a signal ended it: is memory short (`dmesg`)?"
ADDED = "was it added while HAProxy runs (`add server`), which cannot start its check? Write it into the configuration"
EXIT_CODES = {  # what an external check's exit code says by itself: a shell's, and HAProxy's own
    "126": "HAProxy's user may not execute the check's command",
    "127": "a program was not found: the check's command, or what it runs, is not in `external-check path`",
    "255": "HAProxy could not start the check's command: is it there, and may HAProxy's user execute it?",
    SIGNAL: f"{ENDED} Or {ADDED}",
}
REASON = (  # of a check or a reweigh that fails: where it is
    "its reason is on HAProxy's standard error (`journalctl -u haproxy`), unless that is /dev/null (`haproxy -D`, or "
    "`-q`)"
)


def routed(case: Case) -> dict[str, list[Server]]:
    """The backends that are checked for us, or have samples, with their servers."""
    names = {server.backend for server in case.checked + case.own_checked}
    names |= {server.backend for server in case.servers if server.source in case.samples.series}
    return {name: each for name, each in runtime.by_backend(case.servers).items() if name in names}


def read_samples(sources: Sources) -> Samples:
    """As many as judging takes. To be read after HAProxy's answer: then none is missing whose consequence that has.

    Raises SampleFileError.
    """
    return history.read(sources.read(REWEIGH_SETTINGS).times, reweigh.samples_needed(sources) + LOOK_BACK)


def problems(case: Case) -> list[str]:
    """A line for each problem, causes first; what follows from another one is left out."""
    servers, values, user = case.servers, case.values, case.user
    unwritten = cannot_append(user, values.times) if user and case.forks else None
    nobody_weighs = [*reweigh_stopped(case), *nobody_records(case)]
    lines = [unwritten] if unwritten else []
    lines += [*without_address(servers), *run.unmeasured(servers, values.backends).values()]
    lines += [*nobody_weighs, *cannot_serve(case)]
    if not unwritten:
        lines += samples_missing(case)
    if not nobody_weighs:
        lines += weights_not_set(case)
    lines += no_room(case)
    if case.samples.garbage:
        lines.append(f"{values.times} has lines that are no samples ({case.samples.garbage}): who else writes there?")
    return lines


def without_address(servers: Sequence[Server]) -> list[str]:
    """A line for each name that gives a server no address, however many servers have it, in however many backends."""
    lines: dict[str, str] = {}
    addressed = {(each.backend, each.host): each.name for each in reversed(servers) if not each.unresolved}
    for server in [each for each in servers if each.unresolved]:
        name, host = "/".join(server.key), server.host
        text = (
            f"the name {host} does not resolve, so HAProxy has put {name} into maintenance, until it does: is it spelt "
            f"right, {WHOLE_DOMAIN}, and do HAProxy's name servers know it?"
        )
        if other := addressed.get((server.backend, host)):
            text = (
                f"{name} has the host name of {other}, {host}, and HAProxy gives an address to one of two such servers "
                f"only: write `resolve-opts allow-dup-ip` {EVERY_LINE}"
            )
        lines.setdefault(host, text)
    return list(lines.values())


def reweigh_stopped(case: Case) -> Iterator[str]:
    """Why nobody sets weights, where the reweigh has the name that haproxy.cfg gives it."""
    user = case.user
    by_hand = f"`runuser -u {user.name} -- multicloud reweigh`" if user else "`multicloud reweigh` as HAProxy's user"
    for server in [each for each in case.servers if each.name == REWEIGH_SERVER]:
        name = "/".join(server.key)
        if server.state == DOWN:
            why = EXIT_CODES.get(server.code, f"{by_hand} says why; {REASON}")
            yield f"{name} is DOWN, so nobody sets weights: {why}"
        elif server.state == MAINT:
            yield (
                f"{name} is in maintenance, so an operator has frozen the weights: `set server {name} state ready` "
                "at the Runtime API lets go"
            )


def cannot_serve(case: Case) -> Iterator[str]:
    """The backends that have no server to send a request to, and what becomes of it."""
    alive = {server.backend for server in case.servers if server.state == UP}
    for backend, members in routed(case).items():
        up = [server for server in members if server.state == UP]
        if any(server.weight for server in up) or not any(server.source == server.key for server in members):
            continue  # the servers that these track have the same problem
        each, ends = ("connection", "is closed") if members[0].mode == "tcp" else ("request", "is a 503")
        lost = f"so each {each} to it {ends}"
        resort = next((name for name in (f"{backend}-last-resort", "last-resort") if name in alive - {backend}), "")
        if resort:  # as haproxy.cfg has it
            rule = f"`use_backend {resort} if {{ nbsrv({backend}) lt 1 }}`"
            lost = f"so {resort} is tried where a frontend has {rule}, and else each {each} {ends}"
        if up:
            yield (
                f"every server of {backend} that is UP has weight 0, {lost}: "
                "run `multicloud reweigh`, and give the servers `weight 1` in the configuration"
            )
        else:
            yield f"no server of {backend} is UP ({', '.join(sorted({one.state for one in members}))}), {lost}"


def nobody_records(case: Case) -> Iterator[str]:
    """Whether nobody records what HAProxy's own checks of any server say: then no `multicloud run` sets weights."""
    steady = [server for server in case.own_checked if server.state == UP and server.state_age >= TOLERATED]
    if steady and all(_missing(server, case) for server in steady):
        backends = ", ".join(dict.fromkeys(server.backend for server in steady))
        newest = [case.samples.series[each.key][0].time or 0.0 for each in steady if each.key in case.samples.series]
        since = f" {_since(max(newest), case)}" if any(newest) else ""
        times = case.values.times
        hint = "; the /tmp of its service is another one: `times = /run/multicloud/times.txt`"
        yield (
            f"HAProxy's own checks of {backends} have not been recorded in {times}{since}: is `multicloud run` at "
            "work, with the same `times`? Its log says what it lacks (`journalctl -u multicloud`)"
            f"{hint * times.startswith('/tmp/')}"
        )


def samples_missing(case: Case) -> Iterator[str]:
    """The servers that nobody measures although they are UP, and why."""
    unrecorded, backends = any(nobody_records(case)), case.values.backends
    for server in itertools.chain.from_iterable(routed(case).values()):
        beside = server.backend in backends
        explained = beside and (unrecorded or not server.check)  # by `nobody_records`, or run.unmeasured
        if not explained and (missing := _missing(server, case)):
            yield f"{missing}: {_why_missing(server, case)}"


def _missing(server: Server, case: Case) -> str:
    """That samples of a server are missing, and since when; "" where they are not, or need not be there."""
    if server.state != UP or server.state_age < TOLERATED or server.source != server.key:
        return ""
    newest = case.samples.series.get(server.key)
    if not newest:
        return f"no samples for {'/'.join(server.key)}, which is UP"
    times = [sample.time for sample in newest if sample.time is not None]
    gaps = [later - earlier for later, earlier in itertools.pairwise(times)]
    usual = scores.percentiles(gaps, (50,))[0] if gaps else 0.0
    if times and case.now - times[0] > max(TOLERATED, 3 * usual):
        return f"no samples for {'/'.join(server.key)} {_since(times[0], case)}, although it is UP"
    return ""


def _since(when: float, case: Case) -> str:
    return f"since {time.strftime('%H:%M:%S', time.localtime(when))} ({case.now - when:.0f} s)"


def _why_missing(server: Server, case: Case) -> str:
    if not server.check:
        return "HAProxy does not check it"
    if server.check == PASSED:
        times = case.values.times
        return f"its check passes, but does not write to {times}: is it multicloud-check, with the same `times`?"
    if server.check.startswith(EXTERNAL):
        return f"its check fails; {REASON}"
    if server.backend in case.values.backends:
        return (
            "HAProxy checks it by itself, but `multicloud run` does not record that: its log says why, unless it has "
            "not read the settings since (`systemctl reload multicloud`)"
        )
    backends = f"`backends = {','.join((*case.values.backends, server.backend))}` into {case.sources.path}"
    return f"HAProxy checks it by itself: give it an external check, or for `multicloud run` write {backends}"


def weights_not_set(case: Case) -> Iterator[str]:
    """The backends to which a reweigh, now and at each moment of the last seconds, would have given other weights.

    It is judged only where no server's state has changed since, and by samples that have a time.
    """
    for backend, members in routed(case).items():
        steady = min(server.state_age for server in members) >= TOLERATED
        if steady and all(_differ(members, case, case.now - ago) for ago in (0.0, STEP, TOLERATED)):
            yield (
                f"{backend} has had other weights for at least {TOLERATED:.0f} s than a reweigh with these settings "
                "gives it, so none has set them: `multicloud reweigh --dry-run -v` explains"
            )


def _differ(members: Sequence[Server], case: Case, then: float) -> bool:
    """Whether a reweigh at the UNIX time `then` would have changed a weight of these servers."""
    series = {each.source: case.samples.series[each.source] for each in members if each.source in case.samples.series}
    past = {key: [each for each in newest if each.time and each.time <= then] for key, newest in series.items()}
    # Whoever shares now goes on: users are not counted here, and no time has passed.
    share = functools.partial(
        sharing.share, samples=past, users={}, again=dict, connect=lambda _: 0.0, now=then, elapsed=0.0
    )
    return bool(changes(reweigh.decide(members, reweigh.score(past, case.sources, then), case.sources, share)))


def no_room(case: Case) -> Iterator[str]:
    """The backends whose servers are all full, so that the traffic cannot be shared any better."""
    users = sharing.loads(case.servers)
    series = {key: case.samples.series[key] for key in reweigh.score(case.samples.series, case.sources, case.now)}
    for backend, members in routed(case).items():
        able = candidates(members)
        full = sharing.full(able, series, users)
        if full and len(full) == len(able) and members[0].source == members[0].key:
            yield (
                f"no region of {backend} has room: {len(full)} of {len(able)} have lines, so users wait wherever they "
                "go, until there are more servers or less traffic"
            )


def notes(case: Case) -> list[str]:
    """What is no problem by itself, and yet good to know: where traffic is not what weights and samples say."""
    lines = []
    for members in routed(case).values():
        if reserve := ", ".join(server.name for server in members if server.reserve):
            lines.append(
                f"{reserve} of {members[0].backend}: HAProxy sends no request there while another server can serve, "
                "since `backup` is on the line"
            )
        for server in members:
            times = [each.seconds for each in case.samples.series.get(server.source, ()) if not each.failed]
            median, wait = scores.percentiles(times or [inf], (50,))[0], server.response_time
            if wait > max(SLOWER * median, median + LONGER):
                lines.append(
                    f"users of {'/'.join(server.key)} wait {wait * 1000:.0f} ms for an answer (`rtime`, the mean of "
                    f"the last requests), and its samples say {median * 1000:.0f} ms: is what is checked (`path`) "
                    "as much work as what users ask for?"
                )
    return lines
