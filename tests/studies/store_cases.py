"""A small finished study on disk, and ways to damage it."""

import torch

from invariance.studies import Config
from invariance.studies.store import _weights as weights
from invariance.studies.store._store import measurement_key

CONFIGS = [Config("toy/1", {"lr": 0.1}, seed) for seed in range(4)]
SETTINGS = {"study": "toy", "measurement": {"version": 1}}
KEY = measurement_key(SETTINGS)
MACHINE = '{"torch":"1"}'


def content(seed):
    return weights.encode({"w": torch.full((3,), float(seed)), "b": torch.zeros(2)})


def fill(store, configs=CONFIGS):
    for config in configs:
        store.add_network(config, content(config.seed), '{"epochs":3}', MACHINE)
        store.add_measurement(config, SETTINGS, f'{{"norm":{config.seed}.0}}', MACHINE)


def everything(place):
    return {
        path.relative_to(place): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and not path.name.startswith("run.lock")
        and not path.name.endswith("-shm")  # an index that SQLite rebuilds at will
    }


def damage(folder, what):
    path = folder / "study.db"
    if what == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "one page less":
        path.write_bytes(path.read_bytes()[:-4096])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("not a database, but long enough to look like one\n" * 100)
    elif what in ("zeroed page", "zeroed last page"):
        whole = bytearray(path.read_bytes())
        start = 4096 if what == "zeroed page" else len(whole) - 4096
        whole[start : start + 4096] = bytes(4096)
        path.write_bytes(whole)
