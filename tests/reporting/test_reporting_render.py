"""Catches: pages that need the network, cells that vanish, text wider than a terminal."""

import re
from xml.etree import ElementTree

import pytest

import invariance as inv
from invariance.checking import alpha_sweep
from invariance.checking._correlate import correlate
from invariance.core._errors import UsageError
from invariance.reporting._terminal import render_text


@pytest.fixture(scope="module")
def report():
    task = inv.load_task("digits", n_train=80, n_unseen=6, seed=0)
    members = inv.fit_ensemble([64, 10, 10], task, seeds=range(6), lr=0.2, max_epochs=15)
    gaps = [member.train_accuracy - member.test_accuracy for member in members]
    chosen = ["hessian_trace", "relative_flatness", "parameter_norm"]
    models = [member.model for member in members]
    study = correlate(models, gaps, task, measures=chosen)
    return inv.check({"mlp": models[0]}, task, measures=chosen).extended(
        sweep=alpha_sweep(models[0], task), correlations=study, notes=("A note.",)
    )


def test_html_is_one_self_contained_page(report):
    page = report.to_html()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "<link" not in page
    # Only XML namespace names may look like addresses.
    addresses = set(re.findall(r'(?:href|src)="(?!#)([^"]*)"', page))
    assert addresses == set()
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 2
    for svg in svgs:
        ElementTree.fromstring(svg)


def test_html_is_the_same_each_time(report):
    assert report.to_html() == report.to_html()


def test_every_rendering_names_every_measure_and_map(report):
    for text in (report.to_html(), report.to_markdown(), str(report)):
        for name in ("hessian_trace", "relative_flatness", "parameter_norm"):
            assert name in text
        assert "LayerScaling" in text
        assert "A note." in text


def test_terminal_text_fits(report):
    for width in (100, 120, 160):
        assert max(len(line) for line in render_text(report, width).splitlines()) <= width


def test_save_by_ending(report, tmp_path):
    for ending in ("json", "md", "html"):
        assert report.save(tmp_path / f"r.{ending}").stat().st_size > 500
    with pytest.raises(UsageError, match=r"ending in \.json, \.md, \.html"):
        report.save(tmp_path / "r.pdf")


def test_html_escapes_what_it_was_given(report):
    import dataclasses

    odd = dataclasses.replace(report, task={**report.task, "name": "<b>odd</b>"})
    assert "<b>odd" not in odd.to_html()
