"""Downloads: verified, kept, resumed, and never waited for without end.

Catches: a bad mirror trusted, bytes that do not match kept, a hang without a network.
"""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
from data_cases import N_TRAIN

from invariance.core._errors import DataError
from invariance.data import _download as download_module
from invariance.data import _locate as locate_module
from invariance.data import load_task
from invariance.data._catalog import FILES, MNIST


def test_a_network_that_hangs_costs_a_few_seconds_at_most(tiny_mnist, monkeypatch):
    monkeypatch.setattr(download_module, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(download_module, "_probe", lambda mirror: time.sleep(20))
    task = load_task("auto")
    assert task.name == "digits"
    assert "no answer within 0.2 s" in task.source


def served(tiny_mnist, monkeypatch, answer):
    """Let mirrors answer, and ``answer(url) -> bytes`` stand for the transfer."""
    asked = []

    def transfer(url, target, stop):
        asked.append(url)
        Path(target).write_bytes(answer(url))

    monkeypatch.setattr(download_module, "_probe", lambda mirror: None)
    monkeypatch.setattr(download_module, "_transfer", transfer)
    return asked


def packed(tiny_mnist, url):
    name = url.rsplit("/", 1)[1].removesuffix(".gz")
    return gzip.compress(tiny_mnist.content[{v: k for k, v in FILES.items()}[name]])


def test_downloads_are_verified_kept_and_not_repeated(tiny_mnist, monkeypatch):
    asked = served(tiny_mnist, monkeypatch, lambda url: packed(tiny_mnist, url))
    task = load_task("auto")
    assert task.name == "mnist"
    assert "downloaded" in task.source
    assert len(asked) == 4
    cache = locate_module.cache_folder(tiny_mnist.images)
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        f"{name}.gz" for name in FILES.values()
    )
    assert "download cache" in load_task("mnist").source
    assert len(asked) == 4


def test_a_bad_mirror_is_passed_over_and_its_bytes_are_thrown_away(tiny_mnist, monkeypatch):
    first, second = MNIST.mirrors[:2]
    asked = served(
        tiny_mnist,
        monkeypatch,
        lambda url: b"<html>pay here</html>" if url.startswith(first) else packed(tiny_mnist, url),
    )
    assert load_task("mnist").name == "mnist"
    assert sum(url.startswith(second) for url in asked) == 4


def test_only_bad_mirrors_leave_nothing_behind(tiny_mnist, monkeypatch):
    served(tiny_mnist, monkeypatch, lambda url: b"<html>pay here</html>")
    with pytest.raises(DataError, match="Could not download"):
        load_task("mnist")
    assert list(locate_module.cache_folder(tiny_mnist.images).iterdir()) == []
    assert load_task("auto").name == "digits"


def test_an_interrupted_download_goes_on_where_it_stopped(tiny_mnist, monkeypatch):
    def cut(url):
        if "t10k-images" in url:
            raise ConnectionError("cut")
        return packed(tiny_mnist, url)

    served(tiny_mnist, monkeypatch, cut)
    with pytest.raises(DataError, match="cut"):
        load_task("mnist")
    asked = served(tiny_mnist, monkeypatch, lambda url: packed(tiny_mnist, url))
    assert load_task("mnist").n_train == N_TRAIN
    assert len(asked) == 2


def test_a_corrupt_file_in_the_cache_is_an_error(tiny_mnist, monkeypatch):
    cache = tiny_mnist.write(locate_module.cache_folder(tiny_mnist.images), skip=("y_test",))
    (cache / FILES["y_train"]).write_bytes(b"junk")
    served(tiny_mnist, monkeypatch, lambda url: packed(tiny_mnist, url))
    with pytest.raises(DataError, match="train-labels"):
        load_task("auto")


def test_a_deadline_ends_a_slow_transfer():
    bar = download_module._Deadline(time.monotonic() - 1)
    with pytest.raises(TimeoutError):
        bar.update(1)
    download_module._Deadline(None).update(1)
