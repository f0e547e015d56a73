"""The service on the real broker and the real Azurite, with real devices."""
