"""Rollouts: bulk provisioning by a plan, in waves, at a pace, with gates, thresholds and criteria to abort.

- `plan` is what an operator asks for; `pace`, `schedule` and `decisions` are its rules: pure;
- `store` keeps rollouts in the registry's file, and hands out devices one by one;
- `orchestrations` run them, `activities` is what they do to the world;
- `operations` is what the service does for operators.
"""
