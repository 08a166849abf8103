"""Catches: pages that need the network, cells that vanish, text wider than a terminal."""

import json
import os
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

import invariance as inv
from invariance.checking import alpha_sweep
from invariance.checking._correlate import correlate
from invariance.core._errors import UsageError
from invariance.reporting._terminal import render_text
from invariance.reporting._words import SYMBOLS, change, headline, word


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
    assert "<link" not in page
    assert "<script src" not in page
    assert "@import" not in page
    assert "url(http" not in page
    # Only XML namespace names may look like addresses.
    addresses = set(re.findall(r'(?:href|src)="(?!#)([^"]*)"', page))
    assert addresses == set()
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 2
    for svg in svgs:
        picture = ElementTree.fromstring(svg)
        assert [child.tag.split("}")[1] for child in picture][:2] == ["title", "desc"]
        assert all(child.text for child in list(picture)[:2])


def test_html_is_the_same_each_time(report):
    assert report.to_html() == report.to_html()


def test_every_rendering_names_every_measure_and_map(report):
    for text in (report.to_html(), report.to_markdown(), str(report)):
        for name in ("hessian_trace", "relative_flatness", "parameter_norm"):
            assert name in text
        assert "LayerScaling" in text
        assert "A note." in text


def test_terminal_text_fits(report):
    for width in (80, 100, 120, 160):
        assert max(len(line) for line in render_text(report, width).splitlines()) <= width


def test_text_is_plain_whatever_the_environment_says(report, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in str(report)


def test_save_by_ending(report, tmp_path):
    for ending in ("json", "md", "html"):
        assert report.save(tmp_path / f"r.{ending}").stat().st_size > 500
    with pytest.raises(UsageError, match=r"ending in \.json, \.md, \.html"):
        report.save(tmp_path / "r.pdf")


def test_html_escapes_what_it_was_given(report):
    import dataclasses

    odd = dataclasses.replace(report, task={**report.task, "name": "<b>odd</b>"})
    assert "<b>odd" not in odd.to_html()


def test_the_point_comes_first_and_trouble_with_data_is_a_footnote(report):
    import dataclasses

    odd = {**report.task, "source": "digits, since the download of MNIST failed"}
    changed = dataclasses.replace(report, task=odd)
    page = changed.to_html()
    assert page.index("<h1>") < page.index("<table") < page.index("<details")
    assert page.index("download of MNIST failed") > page.index("<footer")
    lines = str(changed).splitlines()
    assert "multiplied hessian_trace by" in lines[0]
    assert "download of MNIST failed" not in "\n".join(lines[:40])


def test_headline_says_what_moved_and_what_stayed(report):
    point, moved, stayed, judged, kept = headline(report)
    assert "hessian_trace" in point
    assert moved == "Moved by it (2): hessian_trace, parameter_norm."
    assert stayed == "Stayed (1): relative_flatness."
    assert judged.startswith("No cell contradicts its declaration")
    assert "0 predicted labels changed" in kept


@pytest.mark.parametrize(
    ("declared", "claimed", "verdict", "expected"),
    [
        ("invariant", True, "invariant", "invariant"),
        ("law", True, "law", "follows its law"),
        ("varies", True, "varies", "moves, as declared"),
        ("varies", True, "invariant", "did not move here"),
        ("varies", False, "varies", "moves, not claimed"),
        ("varies", False, "invariant", "stays, not claimed"),
        ("invariant", True, "contradicts", "contradicts"),
    ],
)
def test_each_outcome_has_its_own_word(declared, claimed, verdict, expected):
    row = inv.checking.CellRow(
        "m", "T", 1.0, 90.0, 90.0, declared, None, verdict, label="T()", claimed=claimed
    )
    assert word(row) == expected
    assert expected in SYMBOLS


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.9991, "x0.9991"), (1.0 + 4e-5, "x1.00004"), (1 - 3e-9, "x1-3e-9"), (90.0, "x90"),
     (1.0, "x1"), (14000.0, "x1.4e4")],
)  # fmt: skip
def test_factors_are_readable(ratio, expected):
    row = inv.checking.CellRow("m", "T", 1.0, ratio, ratio, "varies", None, "varies")
    assert change(row) == expected


@pytest.mark.parametrize("measure", [lambda model, x, y: [1.0, 2.0], None])
def test_a_report_without_rows_is_printed(measure):
    """A vector-valued measure, or the pair proxy without unseen points, gives no row."""
    task = inv.load_task("digits", n_train=60, n_unseen=0)
    found = inv.check(
        inv.models.mlp([64, 6, 10]), task, measures=[measure or "pair_proxy"],
        transforms=[inv.transforms.Permutation()],
    )  # fmt: skip
    assert "Nothing was compared" in found.to_html()
    assert "Nothing was compared" in str(found)
    assert "Nothing was compared" in found.to_markdown()


def test_results_show_themselves_in_a_line_and_in_a_notebook(report):
    task = inv.load_task("digits", n_train=60)
    fit = inv.fit(inv.models.mlp([64, 6, 10]), task, max_epochs=1)
    symmetries = inv.symmetries(fit.model, task.x_train[:2])
    estimate = inv.measures.hessian_trace(fit.model, task.x_train, task.y_train)
    for found in (report, task, fit, symmetries, estimate):
        assert len(repr(found).splitlines()) == 1
        assert len(repr(found)) < 200
        ElementTree.fromstring(found._repr_html_())
    long = inv.core._estimate.Estimate(list(range(1000)))
    assert len(repr(long)) < 200
    assert "992 more" in repr(long)


def browser():
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@pytest.mark.skipif(
    browser() is None and "INVARIANCE_REQUIRE_BROWSER" not in os.environ,
    reason="no Chromium on this machine",
)
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_overflows_and_tables_sort(report, tmp_path, width):
    """A frame of the given width (a window has a least one), read after a heading was pressed."""
    page = json.dumps(report.to_html()).replace("</", "<\\/")
    (tmp_path / "page.html").write_text(
        f"<iframe id=f style='width:{width}px;height:900px;border:0'></iframe><pre id=out></pre>"
        "<script>const f = document.getElementById('f'); f.onload = () => {"
        "const d = f.contentDocument, t = d.querySelector('table');"
        "d.querySelectorAll('details').forEach(e => e.open = true);"
        "const wide = d.documentElement.scrollWidth, room = d.documentElement.clientWidth;"
        "const top = t.getBoundingClientRect().top;"
        "t.querySelector('th button').click();"
        "const names = [...t.tBodies[0].rows].map(r => r.cells[0].textContent);"
        "document.getElementById('out').textContent = JSON.stringify({wide, room, top, names});"
        f"}}; f.srcdoc = {page};</script>"
    )
    done = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom",
         (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(re.search(r'<pre id="out">(.*?)</pre>', done.stdout).group(1))
    assert found["wide"] <= found["room"] <= width
    assert found["names"] == sorted(found["names"])
    assert len(found["names"]) == 3
    assert found["top"] < 900
