"""Phases of a measurement, one after the other, in which all policies are asked at the same time."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from tests import client
from tests.client import Answer

START_UP = 30.0  # seconds before the first phase, in which the policies take their first measurements
SETTLED = 0.95  # the part of the answers from which on they are said to come from the right region


class Course:
    """The phases. `starts` are the moments (time.monotonic) at which they began, of those that have, and `end` is the
    moment at which all are over."""

    def __init__(self, names: Sequence[str], seconds: Sequence[float]) -> None:
        self.names, self.seconds = names, seconds
        self.starts: list[float] = []
        self.end = math.inf

    @property
    def number(self) -> int:
        """Of the present phase; before the first one has begun, it is that one's."""
        return max(len(self.starts) - 1, 0)

    def over(self, number: int, moment: float) -> float:
        """The part of a phase that is over at a moment, 0 to 1."""
        began = self.starts[number] if number < len(self.starts) else moment
        return min((moment - began) / self.seconds[number], 1.0)

    def during(self, answers: Sequence[Answer], number: int, begin: float = 0.0) -> list[Answer]:
        """The answers to what was sent in a phase, from that part of it on."""
        start, seconds = self.starts[number], self.seconds[number]
        return [each for each in answers if start + begin * seconds <= each.sent < start + seconds]

    def settled(self, answers: Sequence[Answer], number: int, is_right: Callable[[Answer], bool]) -> str:
        """Seconds of a phase until right answers are SETTLED of all to what is sent later in it."""
        right, settled = 0, "never"
        for count, answer in enumerate(sorted(self.during(answers, number), reverse=True), start=1):
            right += is_right(answer)
            if right >= SETTLED * count:
                settled = f"{answer.sent - self.starts[number]:.1f}"
        return settled

    async def run(
        self, ports: Sequence[Sequence[int]], gap: Callable[[Random], float], change: Callable[[int], None]
    ) -> list[list[Answer]]:
        """Go through the phases, each of which `change` brings about, and ask each policy at its ports meanwhile.

        `gap` gives the seconds to a policy's next request, by chance that is the same for all. Gives their answers.
        """
        self.end = time.monotonic() + START_UP + sum(self.seconds)
        answers: list[list[Answer]] = [[] for _ in ports]
        async with asyncio.TaskGroup() as group:
            for edges, each in zip(ports, answers, strict=True):
                group.create_task(client.offer(edges, partial(gap, Random(1)), self.end, each))
                await asyncio.sleep(gap(Random(1)) / len(ports))  # so that they do not all ask at the same moment
            for number, name in enumerate(self.names):
                left = sum(self.seconds[number:])
                await asyncio.sleep(self.end - left - time.monotonic())
                print(f"{left:5.0f} s to go: {name}", flush=True)
                await asyncio.to_thread(change, number)
                self.starts.append(time.monotonic())
        return answers
