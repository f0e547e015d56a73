"""The emulated fleet: devices that connect, download, acknowledge and misbehave.

- `devices.spec` is a fleet as it is asked for, `devices.roster` the devices that it has (both pure);
- `devices.behaviours` is how they misbehave;
- `devices.device` is one device, `devices.download` and `devices.verify` its parts;
- `devices.fleet` runs many in one process, `python -m devices` is that process.

It knows nothing of the service but the MQTT contract in `broker`.
"""
