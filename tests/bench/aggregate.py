"""A sample file to a score for each server, and nothing else: python -m tests.bench.aggregate FILE [NEWEST]."""

from __future__ import annotations

import gc
import sys

from multicloud import samples, scores


def main() -> None:
    """Print a line for each server."""
    gc.disable()  # as multicloud-reweigh does
    newest = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    found = samples.read(sys.argv[1], newest)
    for (backend, server), seconds in scores.scores(found.series, now=0.0, window=newest).items():
        print(backend, server, seconds)


if __name__ == "__main__":
    main()
