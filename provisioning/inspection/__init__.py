"""What people ask of the devices, and of all that goes on: lists, cells, series, the overview, metrics.

devices.py has pages of devices and one of them, cells.py a byte per device, series.py a run over time,
overview.py what is going on, metrics.py all of it in numbers, children.py sub-orchestrations; api.py is the
routes.
"""
