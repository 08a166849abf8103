"""A project's measures on a project's networks: what holds, what breaks, what is faulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from invariance.cells import FaultyMeasureError
from invariance.core._errors import (
    EndedProgramError,
    InvarianceError,
    UnevaluatedError,
    UsageError,
)
from invariance.core._foreign import account, foreign
from invariance.core._groups import Group
from invariance.measures._registry import AnyMeasure, all_measures, registered
from invariance.testing._networks import BUILDERS, Networks
from invariance.testing.gate._bound_measure import bind, choose, claim_note
from invariance.testing.gate._examine import examine
from invariance.testing.gate._findings import Certificate, Finding
from invariance.testing.project._describe import Description, describe
from invariance.testing.project._project_table import (
    DEFAULT_GROUPS,
    DEFAULT_MODELS,
    Request,
    load_function,
)

Status = Literal["holds", "broken", "faulty", "raises", "refused", "untried"]

#: Version of the JSON layout.
SCHEMA = 1


@dataclass(frozen=True)
class MeasureOutcome:
    """What came of one measure on one network.

    Attributes:
        measure: As it was asked for.
        model: The network's name.
        status: ``holds``; ``broken`` (it moves); ``faulty`` (it has no value to compare);
            ``raises`` (an error of its own); ``refused`` (it declines this network, or no
            map applies); ``untried`` (the measure or the network could not be had, or the
            measure ended the program, or refused a network that its claim leads to).
        message: What a reader should see.
        request: Which of the requests it belongs to.
        certificate: What was compared, where it got that far.
        findings: Every broken claim.
    """

    measure: str
    model: str
    status: Status
    message: str
    certificate: Certificate | None = None
    findings: tuple[Finding, ...] = ()
    request: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data, for JSON."""
        return {
            "measure": self.measure,
            "model": self.model,
            "status": self.status,
            "message": self.message,
            "rows": [row.to_dict() for row in self.certificate.rows] if self.certificate else [],
            "refused": [entry.to_dict() for entry in self.certificate.refused]
            if self.certificate
            else [],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def exit_code(outcomes: Sequence[MeasureOutcome]) -> int:
    """Return 0 if every measure was tried and holds, 1 if one does not, 2 if one was not tried."""
    if any(outcome.status in ("broken", "faulty", "raises") for outcome in outcomes):
        return 1
    if not outcomes or any(outcome.status == "untried" for outcome in outcomes):
        return 2
    held = {outcome.request for outcome in outcomes if outcome.status == "holds"}
    return 0 if held == {outcome.request for outcome in outcomes} else 2


def to_json(outcomes: Sequence[MeasureOutcome], requests: Sequence[Request]) -> dict[str, Any]:
    """Return all outcomes as one plain object."""
    return {
        "schema": SCHEMA,
        "exit_code": exit_code(outcomes),
        "measures": [request.function for request in requests],
        "outcomes": [outcome.to_dict() for outcome in outcomes],
        "rows": [row for outcome in outcomes for row in outcome.to_dict()["rows"]],
    }


def run_requests(requests: Sequence[Request], *, root: Path | None = None) -> list[MeasureOutcome]:
    """Check every measure on every network that is asked for."""
    outcomes = []
    networks: dict[int, Networks] = {}
    for number, request in enumerate(requests):
        kept = networks.setdefault(request.seed, Networks(seed=request.seed))
        for name in request.models or DEFAULT_MODELS:
            try:
                entry = resolve(request.function, root)
                model, x, y = network(name, kept, root)
            except InvarianceError as error:
                found = MeasureOutcome(request.function, name, "untried", str(error))
            else:
                found = run_one(request, entry, name, model, x, y)
            outcomes.append(replace(found, request=number))
    return outcomes


def describe_requests(
    requests: Sequence[Request], *, root: Path | None = None
) -> tuple[dict[str, Description], list[str]]:
    """Find out how every measure behaves on every network that is asked for."""
    rows: dict[str, Description] = {}
    missing: list[str] = []
    networks: dict[int, Networks] = {}
    for request in requests:
        kept = networks.setdefault(request.seed, Networks(seed=request.seed))
        for name in request.models or DEFAULT_MODELS:
            try:
                entry = resolve(request.function, root)
                model, x, y = network(name, kept, root)
                with foreign(request.function):
                    rows[f"{request.function} on {name}"] = describe(
                        entry,
                        model,
                        x,
                        y,
                        groups=request.groups,
                        rtol=request.rtol,
                        dtype=request.dtype or "float64",
                        seed=request.seed,
                        name=request.function,
                    )
            except InvarianceError as error:
                missing.append(str(error))
    return rows, missing


def resolve(target: str, root: Path | None = None) -> AnyMeasure:
    """Return the measure for ``module:function`` or a registered name."""
    import invariance.measures  # noqa: F401 - importing fills the registry

    if ":" not in target and target in all_measures():
        return target
    return load_function(target, root=root)


def network(
    name: str, networks: Networks, root: Path | None = None
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a built-in network, or what the user's own function returns."""
    if ":" not in name:
        found = networks[name]
        return found.model, found.x, found.y
    made: Callable[..., Any] = load_function(name, root=root)
    with foreign(f"The network {name}"):
        result = made()
    if not (isinstance(result, tuple) and len(result) == 3 and isinstance(result[0], nn.Module)):
        raise UsageError(
            f"{name} must return (model, x, y). Got {type(result).__name__}. Built-in networks: "
            f"{', '.join(BUILDERS)}."
        )
    return result


def run_one(
    request: Request, entry: AnyMeasure, name: str, model: nn.Module, x: Tensor, y: Tensor
) -> MeasureOutcome:
    """Check one measure on one network; every failure of the measure becomes an outcome."""
    title = request.function
    groups: Sequence[Group | str] | None = request.groups
    declared = registered(entry)
    if groups is None and declared is None:
        groups = DEFAULT_GROUPS
    try:
        bound = bind(entry, model, x, y, rtol=request.rtol, seed=request.seed)
        maps, _ = choose(bound, None, groups, request.examples, laws=groups is None)
        certificate, findings = examine(
            bound, maps, dtype=request.dtype, judged=groups is None and declared is not None
        )
    except FaultyMeasureError as error:
        return MeasureOutcome(title, name, "faulty", str(error))
    except (EndedProgramError, UnevaluatedError) as error:
        return MeasureOutcome(title, name, "untried", str(error))
    except InvarianceError as error:
        return MeasureOutcome(title, name, "refused", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's measure failed; say how, and go on
        return MeasureOutcome(title, name, "raises", f"{title} {account(error)}")
    if note := claim_note(bound, groups, laws=groups is None):
        certificate = replace(certificate, notes=(*certificate.notes, note))
    if findings:
        message = "\n\n".join(str(finding) for finding in findings)
        return MeasureOutcome(title, name, "broken", message, certificate, findings)
    return MeasureOutcome(title, name, "holds", str(certificate), certificate)
