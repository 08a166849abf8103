"""Would catch: a false alarm, that is a correct measure that the gate rejects on some case.

The whole suite at full size: ``python -m invariance.testing.soak --cases 500 --runs 20``.
"""

from __future__ import annotations

import json

import pytest
import torch

import invariance.measures  # noqa: F401 - importing fills the registry
from invariance.core._errors import InvarianceError
from invariance.core._groups import Group
from invariance.measures._registry import all_measures, as_measure, get_measure
from invariance.testing.gate._bound_measure import bind
from invariance.testing.gate._examine import examine
from invariance.testing.soak import _command as soak_command
from invariance.testing.soak import _soak as soak
from invariance.testing.soak._cases import draw_case
from invariance.testing.soak._progress import SoakProgress

QUICK_CASES, SLOW_CASES = 4, 60

#: Only estimates, or nothing to compare on random networks: a statistical test's business.
EXACT = [get_measure(n) for n in all_measures() if get_measure(n).cost != "sampling"]
EXACT = [entry for entry in EXACT if soak.declared_kinds(entry)]


def boastful(model, x, y):
    return float(sum(p.detach().square().sum() for p in model.parameters()))


BOASTFUL = as_measure(boastful, invariant_under=[Group.PERMUTATION, Group.NEURON_SCALING])


def vandal(model, x, y):
    value = boastful(model, x, y)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    return value


def test_no_false_alarm_on_random_cases(request):
    seed = request.config.getoption("--invariance-seed")
    cases = max(QUICK_CASES, request.config.getoption("--invariance-examples"))
    tallies = soak.soak(EXACT, cases, seed)
    assert not [alarm for tally in tallies.values() for alarm in tally.alarms]
    made = {tally.measure: tally.compared for tally in tallies.values() if not tally.given_up}
    assert made == {e.name: soak.budget(e, cases) for e in EXACT if e.name in made}
    assert len(made) > 25


@pytest.mark.slow
def test_no_false_alarm_on_more_cases():
    tallies = soak.soak(EXACT, SLOW_CASES, 100)
    assert not [alarm for tally in tallies.values() for alarm in tally.alarms]


def test_a_shared_case_gives_what_a_fresh_one_gives():
    """Every number of every row is bitwise what the measure gives alone on fresh copies."""
    compared = contradictions = 0
    for number in range(2):
        case = draw_case(7, number)
        for entry in [*EXACT, BOASTFUL]:
            maps = case.admitted(soak.declared_kinds(entry))
            if not maps:
                continue
            shared, refusal = attempt(lambda: soak.judged(case, entry, maps))  # noqa: B023
            if shared is None:
                _, alone = attempt(lambda: judged_alone(entry, number, maps))  # noqa: B023
                assert refusal == alone
                continue
            certificate, findings = shared
            for row in certificate.rows:
                transform = next(entry for entry in maps if repr(entry) == row.label)
                expected, broken = judged_alone(entry, number, [transform])
                assert expected.rows == (row,)
                assert [str(f) for f in broken] == [str(f) for f in findings if f.row == row]
                compared, contradictions = compared + 1, contradictions + len(broken)
    assert compared > 60
    assert contradictions > 0


def attempt(compare):
    """Return what a comparison gives, or how it was refused."""
    try:
        return compare(), ""
    except InvarianceError as error:
        return None, f"{type(error).__name__}: {error}"


def judged_alone(measure, number, maps):
    """Compare as ``assert_invariant`` does: the case drawn anew, every copy its own."""
    case = draw_case(7, number)
    bound = bind(measure, case.model, case.x, case.y, seed=case.member_seed, allow_constant=True)
    return examine(bound, maps, judged=True, explained=False)


def test_a_case_depends_on_its_seed_and_number_alone():
    one, same, other = draw_case(3, 5), draw_case(3, 5), draw_case(3, 6)
    assert list(map(repr, one.maps)) == list(map(repr, same.maps))
    assert torch.equal(one.x, same.x)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.parameters(), same.model.parameters(), strict=True)
    )
    assert one.x.shape != other.x.shape or not torch.equal(one.x, other.x)


def test_transformed_networks_are_made_once():
    case = draw_case(0, 0)
    first = [case.network.under(transform).model for transform in case.admitted(frozenset(Group))]
    again = [case.network.under(transform).model for transform in case.admitted(frozenset(Group))]
    assert first
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_the_alarm_can_go_off():
    """A measure that declares too much is caught within a few cases."""
    tally = soak.soak([BOASTFUL], 12, 0)["boastful"]
    assert tally.alarms


def test_a_crash_is_an_alarm():
    def fragile(model, x, y):
        return 1 / (len(list(model.modules())) - len(list(model.modules())))

    declared = as_measure(fragile, invariant_under=[Group.PERMUTATION])
    tally = soak.soak([declared], 3, 0)["fragile"]
    assert "raised ZeroDivisionError" in tally.alarms[0]


def test_a_measure_that_changes_a_shared_network_is_an_alarm():
    """Its own copies are watched already; this is about the copies that measures share."""
    case = draw_case(0, 0)
    calls = []

    def late(model, x, y):
        calls.append(1)
        return vandal(model, x, y) if len(calls) > 2 else boastful(model, x, y)

    declared = as_measure(late, invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP])
    number = next(n for n in range(20) if draw_case(0, n).admitted(declared.invariant_under))
    case = draw_case(0, number)
    (tally,) = soak.one_case(case, [declared], {"late": 9})
    assert "changed a transformed network" in tally.alarms[-1]


def test_sampling_measures_owe_less_and_hopeless_ones_are_given_up():
    assert soak.budget(get_measure("extension_count"), 500) == 20
    assert soak.budget(get_measure("repaired_free_regions"), 500) == 100
    assert soak.budget(get_measure("hessian_trace"), 500) == 500
    tally = soak.soak([get_measure("gaussian_sharpness")], 50, 0)["gaussian_sharpness"]
    assert tally.given_up
    assert "only an estimate" in tally.reason


def test_command_line(capsys):
    assert soak_command.main(["parameter_norm", "--cases", "3", "--runs", "2"]) == 0
    assert "6 cases compared, 0 alarms" in capsys.readouterr().out


def test_command_line_refuses_what_makes_no_sense(capsys):
    assert soak_command.main(["parameter_norm", "--cases", "0"]) == 2
    assert "--cases must be at least 1" in capsys.readouterr().err
    assert soak_command.main(["parameter_nrm"]) == 2
    assert "Did you mean 'parameter_norm'?" in capsys.readouterr().err


def test_one_case_shown_again(capsys):
    assert soak_command.main(["parameter_norm", "--seed", "3", "--case", "0"]) == 0
    out = capsys.readouterr().out
    assert "seed 3, case 0" in out
    assert "parameter_norm" in out


def test_a_stopped_run_goes_on_where_it_was(tmp_path, capsys):
    """Killed in the middle of a line, resumed, and caught up by a measure that is new."""
    path, result = tmp_path / "progress.jsonl", tmp_path / "summary.json"
    options = ["--cases", "25", "--runs", "2", "--progress", str(path), "--summary", str(result)]
    soak_command.main(["parameter_norm", *options])
    whole = json.loads(result.read_text())
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 3
    path.write_text("".join(lines[:2]) + lines[2][:40])
    soak_command.main(["parameter_norm", "path_norm", *options])
    resumed = json.loads(result.read_text())
    for found in (whole, resumed):
        found["measures"]["parameter_norm"].pop("seconds")
    assert resumed["measures"]["parameter_norm"] == whole["measures"]["parameter_norm"]
    assert resumed["measures"]["path_norm"]["compared"] == 50
    assert resumed["complete"]
    capsys.readouterr()
    soak_command.main(["parameter_norm", *options])
    assert "run 0" not in capsys.readouterr().out  # nothing was left to do


@pytest.mark.slow  # two interpreters that import torch
def test_results_do_not_depend_on_the_number_of_processes(tmp_path):
    found = []
    for jobs in ("1", "2"):
        path = tmp_path / f"{jobs}.json"
        soak_command.main(
            [
                "parameter_norm",
                "--cases",
                "20",
                "--runs",
                "3",
                "--jobs",
                jobs,
                "--summary",
                str(path),
            ]
        )
        found.append(json.loads(path.read_text()))
        found[-1]["measures"]["parameter_norm"].pop("seconds")
    assert found[0] == found[1]


def test_progress_forgets_and_refuses(tmp_path):
    path = tmp_path / "progress.jsonl"
    kept = SoakProgress(path)
    kept.keep(0, {"path_norm": soak.Tally("path_norm", compared=7, cursor=9)})
    assert SoakProgress(path).of(0, ["path_norm"])["path_norm"].compared == 7
    assert SoakProgress(path, again=["path_norm"]).of(0, ["path_norm"])["path_norm"].cursor == 0
    assert SoakProgress(path).of(0, ["path_norm"])["path_norm"].cursor == 0
    path.write_text("something else\n")
    with pytest.raises(InvarianceError, match="is no progress of a soak"):
        SoakProgress(path)
