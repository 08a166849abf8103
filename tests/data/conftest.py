"""A fake MNIST of 3 x 3 images, for the tests of loading and of downloading."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from data_cases import N_TEST, N_TRAIN, idx

from invariance.data import _download as download_module
from invariance.data import _load as load_module
from invariance.data._catalog import FILES, IMAGE_SETS, MNIST, ImageSet


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A fake MNIST of 3 x 3 images, its sums put in the catalog, and no other place to look."""
    draw = np.random.default_rng(0)
    arrays = {
        "x_train": draw.integers(0, 256, (N_TRAIN, 3, 3), dtype=np.uint8),
        "y_train": draw.integers(0, 10, N_TRAIN, dtype=np.uint8),
        "x_test": draw.integers(0, 256, (N_TEST, 3, 3), dtype=np.uint8),
        "y_test": draw.integers(0, 10, N_TEST, dtype=np.uint8),
    }
    arrays["x_train"][0, 0, 0] = 255
    content = {name: idx(array) for name, array in arrays.items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    fake = dataclasses.replace(MNIST, sha256=MappingProxyType(sums))
    monkeypatch.setattr(load_module, "MNIST", fake)
    monkeypatch.setattr(load_module, "IMAGE_SETS", {**IMAGE_SETS, "mnist": fake})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("INVARIANCE_DATA", raising=False)
    monkeypatch.setattr(download_module, "_probe", lambda mirror: "no network in this test")

    class Tiny:
        root = tmp_path / "store"
        raw = root / "MNIST" / "raw"
        images: ImageSet = fake

        @staticmethod
        def write(folder: Path, *, packed=False, dotted=False, skip=()) -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            for logical, name in FILES.items():
                if logical in skip:
                    continue
                spelled = name.replace("-idx", ".idx") if dotted else name
                if packed:
                    (folder / f"{spelled}.gz").write_bytes(gzip.compress(content[logical]))
                else:
                    (folder / spelled).write_bytes(content[logical])
            return folder

    Tiny.arrays, Tiny.content, Tiny.sums = arrays, content, sums
    return Tiny
