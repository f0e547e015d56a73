"""The emulated fleet: devices that connect, download, acknowledge and misbehave.

- `devices.plan` says which devices a fleet has and how each behaves (pure, standard library only);
- `devices.behaviours` is the table of behaviours;
- `devices.device` is one device, `devices.download` and `devices.verify` its parts;
- `devices.fleet` runs many in one process, `python -m devices` is that process.

It knows nothing of the service but the MQTT contract in `broker`.
"""
