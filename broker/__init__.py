"""The MQTT contract, the connections that speak it, and the local broker."""
