"""The figures of a report as JSON."""

from __future__ import annotations

import json
from typing import Any, cast

from broker.masking import masked
from provisioning.cli.documents import Json
from provisioning.cli.report.figures import PERCENTS, STEPS, Figures
from provisioning.cli.report.subject import Subject


def document(subject: Subject, figures: Figures, made_at: str) -> Json:
    """Return all figures; whatever devices say in it is masked."""

    def percentiles(step: str | None) -> dict[str, float | None]:
        values = figures.percentiles(step)
        return {f"p{percent}_s": values.get(percent) for percent in PERCENTS}

    found: dict[str, Any] = {
        "made_at": made_at,
        "kind": subject.kind,
        "id": subject.id,
        "ended": subject.ended,
        subject.kind: subject.document,
        "devices": figures.devices,
        "provisioned": figures.provisioned,
        "counts": dict(figures.counts),
        "waves": [
            {"number": number, "counts": dict(counts)} for number, counts in sorted(figures.waves.items())
        ],
        "attempts": {str(number): count for number, count in sorted(figures.attempts.items())},
        "percentiles": {"device": percentiles(None), "steps": {step: percentiles(step) for step in STEPS}},
        "mean_steps_s": figures.mean_steps(),
        "failures": [vars(group) for group in figures.groups()],
        "slowest": [vars(one) for one in figures.slowest()],
        "log": list(subject.log),
    }
    return cast(Json, json.loads(masked(json.dumps(found))))
