"""Other durable engines under the same workloads, each in an environment of its own (environment.py)."""
