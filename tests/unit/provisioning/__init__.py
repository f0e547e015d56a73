"""The parts of the service, one by one."""
