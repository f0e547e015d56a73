"""The full-screen view of `muster watch`: one module per purpose, imported only where a terminal shows it."""
