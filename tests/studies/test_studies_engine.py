"""Catches: networks trained twice or not at all, records that depend on how they were made."""

import contextlib
import json
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_study
from tiny_study import STUDY as TINY
from toy_study import STUDY as TOY

from invariance.core._errors import StudyError, UsageError
from invariance.core._reproducible import VARIABLE
from invariance.papers.recipes import _perceptrons as perceptrons
from invariance.studies import Context, Findings, Interrupted, Options, Study, run_study
from invariance.studies._jobs import ONE_THREAD, Job
from invariance.studies._plan import batches_of, grid_of
from invariance.studies.executors import Work
from invariance.studies.executors._local import Pool, require_portable, usable_cores
from invariance.studies.store._store import Store, measurement_key


def content(outcome):
    """Everything in results.json that must not depend on how the run went."""
    plain = json.loads((outcome.folder / "results.json").read_text())
    del plain["run"]
    return plain


def weights_of(outcome):
    return {path.name: path.read_bytes() for path in (outcome.folder / "weights").iterdir()}


class Spy:
    """A study that notes what it trains and measures."""

    def __init__(self, study=TOY, **changes):
        self.trained, self.measured = [], []
        self.study = replace(study, train=self._train, measure=self._measure, **changes)

    def _train(self, configs, context):
        self.trained.append([config.seed for config in configs])
        return toy_study.train(configs, context)

    def _measure(self, configs, trained, context):
        self.measured.append([config.seed for config in configs])
        return toy_study.measure(configs, trained, context)


def test_batches_are_of_one_cell_and_expensive_ones_come_first():
    batches = batches_of(TOY, grid_of(TOY, TOY.full))
    assert [(b.configs[0].settings["n"], [c.seed for c in b.configs]) for b in batches] == [
        (2, [0, 1, 2]), (2, [3, 4]), (1, [0, 1, 2]), (1, [3, 4]),
    ]  # fmt: skip
    assert [batch.cost for batch in batches] == [6.0, 4.0, 3.0, 2.0]


def test_each_network_is_trained_and_measured_once(tmp_path):
    spy = Spy()
    outcome = run_study(spy.study, out=tmp_path, resume=True, workers=1)
    # Measuring follows training at once: a study that cannot be measured fails early.
    assert spy.trained == spy.measured == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]
    assert [(r.config.settings["n"], r.config.seed) for r in outcome.records] == [
        (n, seed) for n in (1, 2) for seed in range(5)
    ]
    random = toy_study.generator(3, outcome.records[3].config.cell)
    expected = float(torch.randn(5, generator=random).norm())
    assert outcome.records[3].measured["measures"]["norm"] == expected
    run_study(spy.study, out=tmp_path, resume=True, workers=1)
    assert len(spy.trained) == len(spy.measured) == 4


def test_a_network_that_is_twice_in_the_grid_is_one(tmp_path):
    spy = Spy(grid=lambda options: toy_study.grid(options) * 2)
    assert len(run_study(spy.study, out=tmp_path, resume=True, workers=1).records) == 10


def test_a_larger_study_trains_what_is_new(tmp_path):
    spy = Spy()
    small = TOY.full.but(networks=2)
    run_study(spy.study, small, out=tmp_path / "a", workers=1)
    spy.trained.clear()
    grown = run_study(spy.study, out=tmp_path / "a", resume=True, workers=1)
    assert spy.trained == [[2], [3, 4], [2], [3, 4]]
    assert content(grown) == content(run_study(TOY, out=tmp_path / "b", workers=1))
    back = run_study(spy.study, small, out=tmp_path / "a", resume=True, workers=1)
    assert len(back.results["networks"]) == 4  # the rest is kept, not shown


def test_another_way_to_measure_trains_nothing(tmp_path):
    spy = Spy()
    run_study(spy.study, out=tmp_path, resume=True, workers=1)
    run_study(spy.study, TOY.full.but(n_unseen=7), out=tmp_path, resume=True, workers=1)
    assert (len(spy.trained), len(spy.measured)) == (4, 8)
    run_study(spy.study, out=tmp_path, resume=True, workers=1)  # the first way is still there
    assert (len(spy.trained), len(spy.measured)) == (4, 8)


def test_weights_that_were_deleted_are_trained_anew_only_if_needed(tmp_path):
    spy = Spy()
    first = run_study(spy.study, out=tmp_path, resume=True, workers=1)
    path = tmp_path / "weights" / f"{first.records[0].config.id}.safetensors"
    whole = path.read_bytes()
    path.unlink()
    assert content(run_study(spy.study, out=tmp_path, resume=True)) == content(first)
    assert not path.exists()
    assert len(spy.trained) == 4
    run_study(spy.study, TOY.full.but(n_unseen=7), out=tmp_path, resume=True, workers=1)
    assert spy.trained[4:] == [[0]]
    assert path.read_bytes() == whole


def test_weights_without_records_are_not_trained_again(tmp_path):
    """What is left to do when study.db was damaged and moved away, as its error says."""
    first = run_study(TOY, out=tmp_path, resume=True, workers=1)
    (tmp_path / "study.db").unlink()
    spy = Spy()
    again = run_study(spy.study, out=tmp_path, resume=True, workers=1)
    assert (spy.trained, len(spy.measured)) == ([], 4)
    assert content(again) == content(first)
    assert again.results["run"]["runs"][0]["adopted"] == 10


def test_changed_weights_stop_the_study_before_they_are_measured(tmp_path):
    first = run_study(TOY, out=tmp_path, resume=True, workers=1)
    path = tmp_path / "weights" / f"{first.records[0].config.id}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StudyError, match="has changed since it was written"):
        run_study(TOY, TOY.full.but(n_unseen=7), out=tmp_path, resume=True, workers=1)


def test_off_the_cpu_whole_batches_are_done_again(tmp_path, monkeypatch):
    """There the last bits may depend on the batch; records made before are not touched."""
    spy = Spy()
    small = TOY.full.but(networks=2)
    run_study(spy.study, small, out=tmp_path, resume=True, workers=1)
    monkeypatch.setattr("invariance.training._options.resolve_device", lambda device: "meta")
    monkeypatch.setattr("invariance.studies._engine.describe_machine", lambda device: {})
    before = weights_of(run_study(spy.study, small, out=tmp_path, resume=True))
    spy.trained.clear()
    after = weights_of(run_study(spy.study, out=tmp_path, resume=True))
    assert spy.trained == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]
    assert {name: after[name] for name in before} == before


def test_progress_is_work_not_batches(tmp_path):
    seen = []
    run_study(
        TOY, TOY.full, out=tmp_path, resume=True, workers=1, progress=lambda *now: seen.append(now)
    )
    shares = [done / total for done, total, _ in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {total for _, total, _ in seen} == {30.0}  # 2 stages x 5 networks x (1 + 2)
    assert any(0 < share < 6 / 30 for share in shares)  # within the first batch
    assert seen[-1][2] == "analysing"


def test_jobs_run_on_one_thread_and_leave_the_number_as_it_was(tmp_path):
    found = []

    def train(configs, context):
        found.append(torch.get_num_threads())
        return toy_study.train(configs, context)

    torch.set_num_threads(2)
    try:
        run_study(replace(TOY, train=train), out=tmp_path, resume=True, workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(found) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": lambda configs, context: []}, "train of a study must return one result"),
        ({"measure": lambda c, t, x: [{}]}, "measure of a study must return one result"),
        ({"measure": lambda c, t, x: [1.0] * len(c)}, "must return mappings. Got float"),
        ({"measure": lambda c, t, x: [{"id": 1}] * len(c)}, "cannot be called 'id'"),
        ({"measure": lambda c, t, x: [{"a": [{1}]}] * len(c)}, r"\.a\[0\] must be made of plain"),
        ({"grid": lambda options: []}, "grid of study 'toy' is empty"),
        ({"batch_size": lambda config: 0}, "batch_size of study 'toy'"),
    ],
)
def test_a_faulty_study_is_told_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run_study(replace(TOY, **changes), out=tmp_path, resume=True, workers=1)


def test_a_wrong_number_of_workers_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"workers must be a positive integer\. Got 0"):
        run_study(TOY, out=tmp_path / "a", workers=0)
    assert not (tmp_path / "a").exists()


def test_what_came_before_a_failure_is_kept(tmp_path):
    def measure(configs, trained, context):
        if configs[0].settings["n"] == 1:
            raise ZeroDivisionError("a bug of the user's")
        return toy_study.measure(configs, trained, context)

    with pytest.raises(ZeroDivisionError):
        run_study(replace(TOY, measure=measure), out=tmp_path, resume=True, workers=1)
    spy = Spy()
    run_study(spy.study, out=tmp_path, resume=True, workers=1)
    assert spy.trained == [[3, 4]]  # the failed batch was trained, and kept
    assert spy.measured == [[0, 1, 2], [3, 4]]


def test_ctrl_c_says_how_much_is_kept(tmp_path):
    def train(configs, context):
        if configs[0].settings["n"] == 1:
            raise KeyboardInterrupt
        return toy_study.train(configs, context)

    with pytest.raises(Interrupted) as stop:
        run_study(replace(TOY, train=train), out=tmp_path, resume=True, workers=1)
    assert (stop.value.kept, stop.value.total) == (5, 10)


# The pool


def report_threads_then_die(configs, trained, context):
    if configs[0].settings["n"] == 1:
        uri = Path(os.environ["TOY_FOLDER"], "study.db").as_uri() + "?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            while database.execute("SELECT count(*) FROM measurements").fetchone() != (3,):
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    from threadpoolctl import threadpool_info

    pools = {entry["num_threads"] for entry in threadpool_info()}
    variables = {os.environ[name] for name in ONE_THREAD}
    found = {
        "torch": torch.get_num_threads(),
        "pools": sorted(pools),
        "env": sorted(variables),
        "kernels": os.environ[VARIABLE],
    }
    return [found] * len(configs)


def failing(configs, context):
    raise DatasetGoneError("mnist", 3)


class DatasetGoneError(Exception):
    """Cannot be rebuilt from its arguments alone, as errors of libraries often cannot."""

    def __init__(self, name, count):
        super().__init__(f"{name} is gone")


def test_a_pool_gives_what_one_process_gives(tmp_path):
    one = run_study(TINY, out=tmp_path / "one", workers=1)
    shares = []
    two = run_study(
        TINY, out=tmp_path / "two", workers=2, progress=lambda d, t, _: shares.append(d / t)
    )
    assert content(one) == content(two)
    assert weights_of(one) == weights_of(two)
    assert len(weights_of(one)) == 16
    assert two.results["run"]["executor"] == "2 processes"
    assert shares == sorted(shares)


def test_a_worker_that_dies_is_told_with_its_batch_and_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_FOLDER", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    study = replace(TOY, measure=report_threads_then_die)
    with pytest.raises(StudyError, match=r"died .SIGKILL. while measuring .* network.*--resume"):
        run_study(study, TOY.full.but(networks=3), out=tmp_path, resume=True, workers=2)
    large = [config for config in TOY.grid(TOY.full.but(networks=3)) if config.settings["n"] == 2]
    with Store(tmp_path, "toy", resume=True) as store:
        assert len(store.trained()) == 6
        key = measurement_key({"study": "toy", "measurement": TOY.measurement(TOY.full)})
        for record in store.records(large, key):
            assert record.measured == {
                "torch": 1, "pools": [1], "env": ["1"], "kernels": "AUTO",
            }  # fmt: skip
    assert os.environ.get("NUMBA_NUM_THREADS") is None
    assert VARIABLE not in os.environ


def leave(configs, context):
    os._exit(3)


def test_memory_is_suspected_only_where_the_system_killed_a_worker():
    with contextlib.closing(Pool(1)) as pool:
        configs = TOY.grid(TOY.full)[:2]
        pool.submit(Work(lambda: Job("train", leave, configs, TOY.full, "cpu"), "training"))
        with pytest.raises(StudyError, match=r"died \(exit code 3\) while training") as error:
            pool.wait()
    assert "SIGKILL" not in str(error.value)
    assert "memory" not in str(error.value)


def test_too_few_processes_are_told(monkeypatch):
    def refuse(process):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    with pytest.raises(StudyError, match=r"no further process .*0 of 2 .*fewer --workers"):
        Pool(2)


@pytest.mark.parametrize(
    ("scale", "refused"),
    [
        ({"rate": "NaN"}, True), ({"rate": "Infinity"}, True), ({"rate": "-1"}, False),
        ({"rate": "1e999"}, True), ({"rate": "true"}, True), ({"rate": "no"}, True),
        ({"steps": "2"}, False), ({"steps": "2.0"}, True), ({"kinds": '["b", "c"]'}, False),
        ({"kinds": "[1]"}, True), ({"kinds": "[[1]]"}, True), ({"kinds": "b"}, True),
        ({"bias": "no"}, True), ({"bias": "false"}, False), ({"bias": "0"}, True),
        ({"free": "NaN"}, True), ({"free": "x"}, False), ({"free": "[" * 5000}, False),
        ({"free": '{"a": 1}'}, True),
    ],
)  # fmt: skip
def test_sizes_of_a_study_are_of_the_kind_of_its_own(scale, refused):
    from invariance.cli._study_options import _scale

    base = TOY.full.but(scale={**TOY.full.scale, "bias": True, "free": None})
    words = [f"{name}={text}" for name, text in scale.items()]
    if refused:
        with pytest.raises(UsageError, match=f"--set {next(iter(scale))} takes"):
            _scale(words, base)
    else:
        base.but(scale=_scale(words, base))


@pytest.mark.parametrize(
    "changes",
    [{"n_unseen": -1}, {"seed": 0.5}, {"n_train": (0,)}, {"n_train": ()}, {"networks": 2.0},
     {"scale": {"rate": float("nan")}}, {"scale": {"rate": [1]}}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(changes):
    with pytest.raises(UsageError, match=f"(?i){next(iter(changes))}|Setting 'rate'"):
        TOY.full.but(**changes)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "a\n", "\x1b[31m", "-a", "a" * 65, "é"])
def test_a_studys_name_can_name_a_folder(name):
    with pytest.raises(UsageError, match="name must be at most 64 letters"):
        replace(TOY, name=name)


def test_what_a_study_need_not_say():
    small = Study(
        name="small", title="", paper="", question="", full=TOY.full, quick=TOY.quick,
        grid=TOY.grid, train=TOY.train, measure=TOY.measure, analyse=TOY.analyse,
    )  # fmt: skip
    assert small.measurement(TOY.full) == {"version": 1}
    assert small.figures((), Findings(), Path()) == []
    config = TOY.grid(TOY.full)[0]
    assert (small.batch_size(config), small.cost(config)) == (50, 1.0)


def test_an_error_in_a_worker_names_the_batch():
    with contextlib.closing(Pool(1)) as pool:
        configs = TOY.grid(TOY.full)[:2]
        pool.submit(Work(lambda: Job("train", failing, configs, TOY.full, "cpu"), "training"))
        assert not pool.room()
        message = r"DatasetGoneError while training 2 .*toy/1 \(n=1; seeds 0 to 1\): mnist is gone"
        with pytest.raises(StudyError, match=message):
            pool.wait()


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_a_container_with_less_time_than_cores(tmp_path, monkeypatch, text, cores):
    monkeypatch.setattr("invariance.studies.executors._local.available_cores", lambda: 8)
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path / "cpu.max") == cores
    assert usable_cores(tmp_path / "none") == 8


def test_functions_that_only_this_process_has_are_refused_with_the_remedy():
    job = Job("train", lambda configs, context: [], TOY.grid(TOY.full), TOY.full, "cpu")
    with pytest.raises(UsageError, match=r"top level of a module, or run with --workers 1"):
        require_portable(job)


# What the engine relies on


def test_a_perceptron_does_not_depend_on_its_batch_mates():
    """Only so may a resumed study train what is missing, and not what is there."""
    configs = [c for c in TINY.grid(TINY.full.but(networks=5)) if c.settings["n_train"] == 60][:5]
    context = Context(Options(), "cpu", lambda share: None)
    together = perceptrons.train(configs, context)
    assert len({t.facts["epochs"] for t in together}) > 1  # they stop at different epochs
    apart = [
        *perceptrons.train(configs[3:], context),
        *perceptrons.train(configs[1:3], context),
        *perceptrons.train(configs[:1], context),
    ]
    for config, one, other in zip(
        configs, together, [apart[4], apart[2], apart[3], apart[0], apart[1]], strict=True
    ):
        assert one.facts == other.facts, config
        for name, tensor in one.tensors.items():
            assert torch.equal(tensor, other.tensors[name]), (config, name)
