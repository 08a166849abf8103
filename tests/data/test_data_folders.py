"""Data sets that are read where they are: CIFAR's binary files, Tiny ImageNet's folder.

Catches: planes or rows in the wrong order, the coarse label taken for the fine one, a
truncated or Python-version file half used, classes in another order than their names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from invariance.core._errors import DataError
from invariance.data import _cifar as cifar
from invariance.data import _download as download_module
from invariance.data import _load as load_module
from invariance.data import _tiny_imagenet as tiny_imagenet
from invariance.data import load_task
from invariance.data._cifar import CIFAR_10, CIFAR_100


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INVARIANCE_DATA", raising=False)


def small(which, monkeypatch, per_file):
    fake = dataclasses.replace(
        which,
        train=MappingProxyType(dict.fromkeys(which.train, per_file)),
        test=MappingProxyType(dict.fromkeys(which.test, per_file)),
    )
    sets = {**load_module.BINARY_SETS, which.name: fake}
    monkeypatch.setattr(load_module, "BINARY_SETS", sets)
    return fake


def write(which, folder, seed=0):
    """Write files in the official form; return images and labels of each part."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    parts = {}
    for part, files in (("train", which.train), ("test", which.test)):
        images, labels = [], []
        for name, records in files.items():
            fine = np.arange(records) % which.n_classes
            pixels = draw.integers(0, 256, (records, 3, 32, 32), dtype=np.uint8)
            prefix = [np.full(records, 77)] * (which.label_bytes - 1) + [fine]
            table = np.concatenate([np.stack(prefix, 1), pixels.reshape(records, -1)], 1)
            (folder / name).write_bytes(table.astype(np.uint8).tobytes())
            images.append(pixels)
            labels.append(fine)
        parts[part] = np.concatenate(images), np.concatenate(labels)
    return parts


@pytest.mark.parametrize(("official", "records"), [(CIFAR_10, 20), (CIFAR_100, 200)])
def test_cifar_is_read_as_it_was_written(official, records, tmp_path, monkeypatch):
    which = small(official, monkeypatch, records)
    parts = write(which, tmp_path / "data" / official.layouts[0])
    task = load_task(official.name)
    assert (task.name, task.n_classes, task.n_features) == (official.name, which.n_classes, 3072)
    for part in ("train", "test"):
        images, labels = parts[part]
        x, y = getattr(task, f"x_{part}"), getattr(task, f"y_{part}")
        assert torch.equal(x, torch.from_numpy(images.reshape(len(images), -1)).float() / 255)
        assert y.tolist() == labels.tolist()
    assert "class counts verified" in task.source
    subset = load_task(official.name, n_train=7, n_unseen=5, seed=3, root=tmp_path / "data")
    pick = torch.randperm(task.n_train, generator=torch.Generator().manual_seed(3))[:7]
    assert torch.equal(subset.x_train, task.x_train[pick])


def test_official_sizes_are_those_of_the_format():
    assert sum(CIFAR_10.train.values()) == sum(CIFAR_100.train.values()) == 50_000
    assert [10_000 * 3073, 50_000 * 3074] == [30_730_000, 153_700_000]


def test_cifar_that_is_not_what_it_says_is_refused(tmp_path, monkeypatch):
    which = small(CIFAR_10, monkeypatch, 20)
    folder = tmp_path / "data" / "cifar-10"
    write(which, folder)
    first, good = folder / "data_batch_1.bin", (folder / "data_batch_1.bin").read_bytes()
    first.write_bytes(good[:-1])
    with pytest.raises(DataError, match="has 61459 bytes, expected 61460"):
        load_task("cifar-10")
    first.write_bytes(b"\x0b" + good[1:])
    with pytest.raises(DataError, match="label 11 in record 0"):
        load_task("cifar-10")
    first.write_bytes(b"\x05" + good[1:])
    with pytest.raises(DataError, match="9 images of class 0, expected 10"):
        load_task("cifar-10")
    first.unlink()
    with pytest.raises(DataError, match=r"only part of cifar-10: data_batch_1\.bin missing"):
        load_task("cifar-10")


def packed(official, tmp_path, monkeypatch):
    """The official archive in small: its bytes, the images in it, and the set with its sum."""
    which = small(official, monkeypatch, 200)
    parts = write(which, tmp_path / "made" / official.layouts[0])
    path = tmp_path / which.archive
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "made" / official.layouts[0], official.layouts[0])
    content = path.read_bytes()
    path.unlink()
    which = dataclasses.replace(which, md5=hashlib.md5(content, usedforsecurity=False).hexdigest())
    monkeypatch.setitem(load_module.BINARY_SETS, which.name, which)
    return content, parts, which


@pytest.mark.parametrize("official", [CIFAR_10, CIFAR_100])
def test_the_official_archive_is_read_after_its_sum_was_verified(official, tmp_path, monkeypatch):
    content, parts, which = packed(official, tmp_path, monkeypatch)
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / which.archive).write_bytes(content)
    task = load_task(official.name, root=folder)
    assert "MD5 verified" in task.source
    images, labels = parts["test"]
    assert torch.equal(task.x_test, torch.from_numpy(images.reshape(len(images), -1)).float() / 255)
    assert task.y_test.tolist() == labels.tolist()
    (folder / which.archive).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"is not the official .* Nothing of it was used"):
        load_task(official.name, root=folder)


def test_cifar_is_downloaded_once_verified_and_kept(tmp_path, monkeypatch):
    content, _, which = packed(CIFAR_10, tmp_path, monkeypatch)
    asked, answers = [], [b"<html>pay here</html>", content]

    def transfer(url, target, stop):
        asked.append(url)
        Path(target).write_bytes(answers.pop(0))

    monkeypatch.setattr(download_module, "_probe", lambda mirror: None)
    monkeypatch.setattr(download_module, "_transfer", transfer)
    monkeypatch.setattr(cifar.pooch, "os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(DataError, match="Could not download cifar-10-binary"):
        load_task("cifar-10")
    assert list((tmp_path / "cache").iterdir()) == []
    assert "downloaded" in load_task("cifar-10").source
    assert "download cache" in load_task("cifar-10").source
    assert asked == [cifar.MIRRORS[0] + which.archive] * 2


def test_copies_that_went_through_jpeg_are_called_so(tmp_path, monkeypatch):
    which = small(CIFAR_10, monkeypatch, 20)
    parts = write(which, tmp_path / "data" / "cifar-10")
    labels = np.concatenate([parts["train"][1], parts["test"][1]]).astype(np.uint8)
    assert "JPEG" not in load_task("cifar-10").source
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    monkeypatch.setattr(cifar, "_COPIES", {digest: next(iter(cifar._COPIES.values()))})
    assert load_task("cifar-10").source.startswith("CIFAR-10 (JPEG copies) from")


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100", "tiny-imagenet"])
def test_what_is_nowhere_is_said_to_be(name, tmp_path):
    why = "is not downloaded" if name == "tiny-imagenet" else "download=False"
    with pytest.raises(DataError, match=rf"{name} was not found in .* {why}"):
        load_task(name, root=tmp_path, download=False)
    with pytest.raises(DataError, match="is not a folder"):
        load_task(name, root=tmp_path / "missing")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A Tiny ImageNet of 3 classes with 4 training and 2 validation images each."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(tiny_imagenet, "N_CLASSES", 3)
    monkeypatch.setattr(load_module, "TINY_CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", (4, 2))
    folder = tmp_path / "data" / "tiny-imagenet-200"
    names = ["n03", "n01", "n02"]

    def save(path, level):
        path.parent.mkdir(parents=True, exist_ok=True)
        plane = np.full((64, 64), level, np.uint8)
        # Grey images are stored with one channel, as some of the official ones are.
        pixels = plane if level % 2 else np.stack([plane, plane // 2, 0 * plane], 2)
        image.fromarray(pixels).save(path, quality=95)

    for c, name in enumerate(names):
        for i in range(4):
            save(folder / "train" / name / "images" / f"{name}_{i}.JPEG", 40 + 60 * c + i)
    rows = [(f"val_{i}.JPEG", names[i % 3]) for i in range(6)]
    for i, (file, _) in enumerate(rows):
        save(folder / "val" / "images" / file, 40 + 60 * (i % 3))
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"{file}\t{name}\t0\t0\t62\t62\n" for file, name in rows)
    )
    return folder


def test_tiny_imagenet_is_read_from_its_folder(tiny):
    task = load_task("tiny-imagenet")
    assert (task.n_train, task.n_features, task.n_classes) == (12, 3 * 64 * 64, 3)
    # Classes are numbered by name: n01 was written second, with levels from 100.
    assert task.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    red = task.x_train.view(12, 3, 64 * 64).mean(2)[:, 0] * 255
    expected = torch.tensor([100.0, 101, 102, 103, 160, 161, 162, 163, 40, 41, 42, 43])
    assert (red - expected).abs().max() < 3
    green = task.x_train.view(12, 3, 64 * 64).mean(2)[0, 1] * 255
    assert abs(float(green) - 50) < 3
    assert task.y_test.tolist() == [2, 0, 1, 2, 0, 1]
    assert (task.x_test.view(6, 3, -1).mean(2)[:, 0] * 255 - torch.tensor(
        [40.0, 100, 160, 40, 100, 160])).abs().max() < 3  # fmt: skip
    assert "validation images are the test points" in task.source


def test_a_damaged_tiny_imagenet_is_refused(tiny):
    (tiny / "train" / "n01" / "images" / "n01_2.JPEG").write_bytes(b"nothing")
    load_task("tiny-imagenet", n_train=1, seed=0)  # decoded on demand: others can be read
    with pytest.raises(DataError, match=r"Cannot decode .*n01_2"):
        load_task("tiny-imagenet")
    (tiny / "train" / "n01" / "images" / "n01_2.JPEG").unlink()
    with pytest.raises(DataError, match="has 3 training images of class n01, expected 4"):
        load_task("tiny-imagenet")
