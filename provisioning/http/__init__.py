"""What all of the HTTP API shares, and the management API of Durable Functions.

problems.py has the errors, limits.py how large a request may be, access.py who may ask, documentation.py the
description at `/docs`. management.py has the routes of the management API, instances.py does what they ask,
payloads.py says it in Durable Functions' JSON.
"""
