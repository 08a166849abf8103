"""Catches: networks trained twice or not at all, records that depend on how they were made."""

import json

import pytest
import tiny_study
from tiny_study import STUDY

from invariance.core.errors import StudyError
from invariance.studies import run_study


def content(outcome):
    """Everything in results.json that must not depend on how the run went."""
    plain = json.loads((outcome.folder / "results.json").read_text())
    del plain["run"]
    return plain


def test_a_pool_gives_what_one_process_gives(tmp_path):
    one = run_study(STUDY, out=tmp_path / "one", workers=1)
    two = run_study(STUDY, out=tmp_path / "two", workers=2)
    assert content(one) == content(two)
    for path in (one.folder / "weights").iterdir():
        assert path.read_bytes() == (two.folder / "weights" / path.name).read_bytes()
    assert len(list((one.folder / "weights").iterdir())) == 16


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    run_study(STUDY, STUDY.quick, out=tmp_path / "a", workers=1)
    before = (tmp_path / "a" / "results.json").read_bytes()
    with pytest.raises(StudyError, match="--resume, or choose another folder with --out"):
        run_study(STUDY, STUDY.quick, out=tmp_path / "a", workers=1)
    assert (tmp_path / "a" / "results.json").read_bytes() == before


def test_resuming_a_finished_study_trains_and_measures_nothing(tmp_path, monkeypatch):
    first = content(run_study(STUDY, STUDY.quick, out=tmp_path, workers=1))
    from dataclasses import replace

    never = replace(STUDY, train=pytest.fail, measure=pytest.fail)
    assert content(run_study(never, STUDY.quick, out=tmp_path, resume=True)) == first
