"""Server-sent events: what changes, as it changes.

hub.py keeps the latest events and those who read them, feed.py makes events of what is on disk, stream.py
sends them, api.py is the route.
"""
