"""Loading tasks: what is verified, where files are found, how subsets are drawn.

Catches: a corrupt file half used or skipped, pixels scaled wrongly, subsets that differ
from the documented formula, unseen points that were trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import N_TEST, N_TRAIN, idx

from invariance.core._errors import DataError, UsageError
from invariance.data import Task, load_task
from invariance.data import _locate as locate_module
from invariance.data._catalog import FILES
from invariance.data._idx import parse, read_verified


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_every_spelling_and_container_gives_the_same_pixels(tiny_mnist, packed, dotted):
    tiny_mnist.write(tiny_mnist.raw, packed=packed, dotted=dotted)
    task = load_task("mnist", root=tiny_mnist.root)
    expected = torch.from_numpy(tiny_mnist.arrays["x_train"].reshape(N_TRAIN, 9)).float() / 255
    assert torch.equal(task.x_train, expected)
    assert task.x_train.dtype == torch.float32
    assert task.x_train.max() == 1.0
    assert task.y_train.tolist() == tiny_mnist.arrays["y_train"].tolist()
    assert task.y_test.dtype == torch.int64
    assert task.x_test.shape == (N_TEST, 9)
    assert task.x_unseen.shape == (0, 9)
    assert (task.name, task.n_classes, task.n_train, task.n_features) == ("mnist", 10, 40, 9)
    assert "SHA-256" in task.source


def test_search_order(tiny_mnist, monkeypatch):
    places = {
        "root": tiny_mnist.root / "MNIST" / "raw",
        "INVARIANCE_DATA": Path("named/MNIST/raw"),
        "./data": Path("data/MNIST/raw"),
        "~/data": Path("home/data/MNIST/raw"),
        "~/.torch": Path("home/.torch/MNIST/raw"),
        "cache": locate_module.cache_folder(tiny_mnist.images),
    }
    for folder in places.values():
        tiny_mnist.write(folder)
    monkeypatch.setenv("INVARIANCE_DATA", "named")
    for place, folder in places.items():
        root = tiny_mnist.root if place == "root" else None
        if place == "./data":
            monkeypatch.delenv("INVARIANCE_DATA")
        source = load_task("auto", root=root, n_train=3).source
        assert str(folder) in source, place
        for path in folder.iterdir():
            path.unlink()


@pytest.mark.parametrize("layout", ["MNIST/raw", "MNIST", "mnist", "raw", "."])
def test_layouts_below_root(tiny_mnist, layout):
    tiny_mnist.write(tiny_mnist.root / layout)
    assert load_task("mnist", root=str(tiny_mnist.root), n_train=1).n_train == 1


DAMAGE = {
    "truncated": lambda data: data[:-5],
    "extended": lambda data: data + b"\0",
    "one bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "empty": lambda data: b"",
    "web page": lambda data: b"<html>not found</html>",
}


@pytest.mark.parametrize("name", ["mnist", "auto"])
@pytest.mark.parametrize("logical", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_error_even_if_a_good_copy_follows(tiny_mnist, name, logical, damage):
    tiny_mnist.write(tiny_mnist.raw)
    tiny_mnist.write(Path("data/MNIST/raw"))
    path = tiny_mnist.raw / FILES[logical]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError) as caught:
        load_task(name, root=tiny_mnist.root)
    text = str(caught.value)
    assert str(path) in text
    assert tiny_mnist.sums[logical] in text
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert "Delete the file" in text


@pytest.mark.parametrize("keep", [0, 2, 12, 60])
def test_a_truncated_archive_is_an_error(tiny_mnist, keep):
    tiny_mnist.write(tiny_mnist.raw, packed=True)
    path = tiny_mnist.raw / f"{FILES['x_train']}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x3-ubyte\.gz.*expected") as caught:
        load_task("mnist", root=tiny_mnist.root)
    assert tiny_mnist.sums["x_train"] in str(caught.value)


def test_a_damaged_archive_is_an_error(tiny_mnist):
    tiny_mnist.write(tiny_mnist.raw, packed=True)
    path = tiny_mnist.raw / f"{FILES['x_test']}.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
        load_task("mnist", root=tiny_mnist.root)


def test_swapped_files_are_an_error(tiny_mnist):
    tiny_mnist.write(tiny_mnist.raw)
    (tiny_mnist.raw / FILES["x_train"]).write_bytes(tiny_mnist.content["x_test"])
    with pytest.raises(DataError, match="train-images"):
        load_task("mnist", root=tiny_mnist.root)


def test_a_file_that_breaks_after_it_was_read_is_read_again(tiny_mnist):
    tiny_mnist.write(tiny_mnist.raw)
    load_task("mnist", root=tiny_mnist.root)
    path = tiny_mnist.raw / FILES["y_test"]
    path.write_bytes(path.read_bytes()[:-1] + b"\x63")
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="t10k-labels"):
        load_task("mnist", root=tiny_mnist.root)


def test_an_incomplete_folder_is_an_error(tiny_mnist):
    tiny_mnist.write(tiny_mnist.raw, skip=("y_train", "x_test"))
    with pytest.raises(DataError, match=r"only part of mnist: train-labels.*t10k-images"):
        load_task("auto", root=tiny_mnist.root)


def test_parse_refuses_what_is_no_image_file():
    good = idx(np.zeros((2, 3), dtype=np.uint8))
    assert parse(Path("x"), good).shape == (2, 3)
    for bad in (b"", b"\0\0\x08", b"\0\0\x0d\x01" + good[4:], b"\1" + good[1:], good[:6]):
        with pytest.raises(DataError, match="x is"):
            parse(Path("x"), bad)


def test_verified_arrays_are_read_once_and_cannot_be_written(tiny_mnist):
    path = tiny_mnist.write(tiny_mnist.raw) / FILES["x_train"]
    first = read_verified(path, tiny_mnist.sums["x_train"])
    assert read_verified(path, tiny_mnist.sums["x_train"]) is first
    assert not first.flags.writeable
    task = load_task("mnist", root=tiny_mnist.root)
    task.x_train.zero_()
    task.y_train.zero_()
    again = load_task("mnist", root=tiny_mnist.root)
    assert again.x_train.max() == 1.0
    assert again.y_train.tolist() == tiny_mnist.arrays["y_train"].tolist()


def test_an_unreadable_file_names_itself(tiny_mnist):
    path = tiny_mnist.write(tiny_mnist.raw) / FILES["x_train"]
    path.unlink()
    with pytest.raises(DataError, match="Cannot read"):
        read_verified(path, tiny_mnist.sums["x_train"])


@pytest.mark.parametrize("seed", [0, 42])
def test_subsets_follow_the_documented_formula(tiny_mnist, seed):
    tiny_mnist.write(tiny_mnist.raw)
    task = load_task("mnist", n_train=12, n_unseen=20, seed=seed, root=tiny_mnist.root)
    everything = load_task("mnist", root=tiny_mnist.root)
    order = torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(seed))[:12]
    assert torch.equal(task.x_train, everything.x_train[order])
    assert torch.equal(task.y_train, everything.y_train[order])
    rest = [i for i in range(N_TRAIN) if i not in set(order.tolist())]
    pool_x = torch.cat([everything.x_train[rest], everything.x_test])
    pool_y = torch.cat([everything.y_train[rest], everything.y_test])
    draw = torch.Generator().manual_seed(99 + seed)
    chosen = torch.randperm(len(pool_y), generator=draw)[:20]
    assert torch.equal(task.x_unseen, pool_x[chosen])
    assert torch.equal(task.y_unseen, pool_y[chosen])
    paper = load_task(
        "mnist", n_train=12, n_unseen=20, seed=seed, unseen_seed=99, root=tiny_mnist.root
    )
    chosen = torch.randperm(len(pool_y), generator=torch.Generator().manual_seed(99))[:20]
    assert torch.equal(paper.x_unseen, pool_x[chosen])
    assert torch.equal(paper.x_train, task.x_train)


def test_whole_pools_come_in_original_order(tiny_mnist):
    tiny_mnist.write(tiny_mnist.raw)
    sizes = {"rest": 28 + N_TEST, "train": 28, "test": N_TEST}
    for pool, size in sizes.items():
        task = load_task("mnist", n_train=12, n_unseen=None, unseen_from=pool, root=tiny_mnist.root)
        assert len(task.y_unseen) == size
    assert torch.equal(task.x_unseen, task.x_test)
    seen = {tuple(row) for row in task.x_train.tolist()}
    rest = load_task("mnist", n_train=12, n_unseen=None, root=tiny_mnist.root)
    assert not seen & {tuple(row) for row in rest.x_unseen.tolist()}


def test_digits_are_split_once_and_for_all():
    task = load_task("digits")
    other = load_task("digits", n_train=100, n_unseen=50, seed=5)
    assert task.x_train.shape == (1437, 64)
    assert task.x_test.shape == (360, 64)
    assert torch.equal(task.x_test, other.x_test)
    assert (task.x_train.min(), task.x_train.max()) == (0.0, 1.0)
    assert torch.equal(task.x_train * 16, (task.x_train * 16).round())
    assert task.y_test.bincount(minlength=10).min() > 20
    train = {tuple(row) for row in task.x_train.tolist()}
    assert len(train & {tuple(row) for row in task.x_test.tolist()}) == 0
    assert task.name == other.name == "digits"
    assert torch.equal(load_task("digits", n_train=100, seed=5).x_train, other.x_train)
    assert not torch.equal(load_task("digits", n_train=100, seed=6).x_train, other.x_train)


def test_without_files_and_network_auto_takes_the_digits_and_says_why(tiny_mnist):
    task = load_task("auto", n_train=30)
    assert task.name == "digits"
    assert "MNIST is not on this machine" in task.source
    assert "no network in this test" in task.source
    with pytest.raises(DataError, match=r"Could not download train-images.*root="):
        load_task("mnist")
    with pytest.raises(DataError, match=r"not found in .*download=False"):
        load_task("mnist", download=False)
    assert "download=False" in load_task("auto", download=False).source


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mnits"}, UsageError, "Unknown task 'mnits'.*Did you mean 'mnist'.*digits"),
        ({"unseen_from": "validation"}, UsageError, "Unknown unseen_from"),
        ({"n_train": 0}, DataError, "n_train must be an integer of at least 1"),
        ({"n_train": -3}, DataError, r"n_train.*Got -3"),
        ({"n_train": 2.5}, DataError, "n_train"),
        ({"n_train": 1438}, DataError, "n_train = 1438 is more than the 1437"),
        ({"n_unseen": -1}, DataError, "n_unseen must be an integer of at least 0"),
        ({"n_unseen": 361}, DataError, "n_unseen = 361 is more than the 360 points"),
        ({"n_train": 1000, "n_unseen": 438, "unseen_from": "train"}, DataError, "437 points"),
        ({"root": "/no/such/folder", "name": "mnist"}, DataError, "given by root, is not a folder"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        load_task(**{"name": "digits", **arguments})


def test_a_variable_that_names_no_folder(tiny_mnist, monkeypatch):
    monkeypatch.setenv("INVARIANCE_DATA", "/no/such/folder")
    with pytest.raises(DataError, match="environment variable INVARIANCE_DATA, is not a folder"):
        load_task("auto")


needs_mnist = pytest.mark.skipif(
    not os.environ.get("INVARIANCE_DATA"), reason="set INVARIANCE_DATA to a folder with MNIST"
)


@needs_mnist
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files(name):
    task = load_task(name, n_train=250, n_unseen=100, seed=42, unseen_seed=99)
    assert isinstance(task, Task)
    assert task.x_train.shape == (250, 784)
    assert task.x_test.shape == (10_000, 784)
    assert task.y_test.bincount().tolist() == (
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009] if name == "mnist" else [1000] * 10
    )
    whole = load_task(name)
    assert whole.n_train == 60_000
    if name == "mnist":
        assert whole.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(42))[:250]
    assert torch.equal(whole.x_train[order], task.x_train)


@pytest.mark.parametrize("packed", [True, False])
def test_nothing_beyond_the_largest_official_file_is_unpacked(tmp_path, monkeypatch, packed):
    import tracemalloc

    from invariance.data import _idx

    monkeypatch.setattr(_idx, "LARGEST", 10_000)
    path = tmp_path / "bomb"
    content = bytes(10_000_000)
    path.write_bytes(gzip.compress(content) if packed else content)
    del content
    tracemalloc.start()
    with pytest.raises(DataError, match="more than 10,000 bytes"):
        read_verified(path, "0" * 64)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
