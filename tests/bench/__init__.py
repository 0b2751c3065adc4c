"""Programs that measure: not tests, and not run with them. Each says in its first lines how to run it."""
