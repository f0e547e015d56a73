"""The full-screen view of `muster watch`: one module per purpose.

looks.py, what is fetched, serves lines in a pipe too. All others import rich, and are imported only where a
terminal shows them.
"""
