"""How devices behave: small classes that combine, chosen by weight for each group of devices.

Write your own by deriving from `Behaviour`, and name it in a fleet file (docs/FLEET.md has an example).
"""

from devices.behaviours.base import (
    ALWAYS,
    NO_LIMITS,
    STEPS,
    Behaviour,
    Controls,
    Failure,
    FailureKind,
    Outcome,
    Refusal,
    Sending,
    Spoils,
    Step,
    strikes,
)
from devices.behaviours.catalogue import BUILT_IN, Catalogue, expand, parameters_of, split
from devices.behaviours.combined import HEALTHY, Combined

__all__ = [
    "ALWAYS",
    "BUILT_IN",
    "HEALTHY",
    "NO_LIMITS",
    "STEPS",
    "Behaviour",
    "Catalogue",
    "Combined",
    "Controls",
    "Failure",
    "FailureKind",
    "Outcome",
    "Refusal",
    "Sending",
    "Spoils",
    "Step",
    "expand",
    "parameters_of",
    "split",
    "strikes",
]
