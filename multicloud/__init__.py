"""Latency routing for HAProxy: real checks are timed, and the fastest healthy server gets the traffic."""
