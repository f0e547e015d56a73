"""The emulated fleet: devices that connect, download, acknowledge and misbehave."""
