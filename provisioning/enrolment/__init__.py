"""Enrolment: which devices may connect, and which may no longer.

- `store` keeps it in the registry's file and tells the broker of each change;
- `group_key` is what the keys of all devices follow from (`broker.identity`);
- `records` is what an enrolment is, `api` the routes.
"""
