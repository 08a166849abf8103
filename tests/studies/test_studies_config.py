"""Catches: two networks under one name, one network under two, names that change with Python."""

import hashlib
import pickle

import pytest

from invariance.core._errors import UsageError
from invariance.studies import Config, Options

ONE = Config("toy/1", {"lr": 0.1, "sizes": (4, 3), "task": "digits", "drop": None}, seed=7)
TEXT = '{"recipe":"toy/1","seed":7,"settings":{"drop":null,"lr":0.1,"sizes":[4,3],"task":"digits"}}'


def test_the_name_is_the_hash_of_the_whole_text():
    assert ONE.canonical() == TEXT
    assert ONE.id == hashlib.sha256(TEXT.encode()).hexdigest()[:24]


def test_the_order_of_settings_does_not_matter():
    other = Config("toy/1", dict(reversed(list(ONE.settings.items()))), seed=7)
    assert (other.id, other) == (ONE.id, ONE)
    assert hash(other) == hash(ONE)


@pytest.mark.parametrize(
    "other",
    [
        Config("toy/2", ONE.settings, 7),
        Config("toy/1", ONE.settings, 8),
        Config("toy/1", {**ONE.settings, "lr": 0.10000000000000002}, 7),
        Config("toy/1", {**ONE.settings, "more": 1}, 7),
        Config("toy/1", {k: v for k, v in ONE.settings.items() if k != "drop"}, 7),
    ],
)
def test_every_setting_counts(other):
    assert other.id != ONE.id


def test_a_cell_is_all_but_the_seed():
    assert Config("toy/1", ONE.settings, 8).cell == ONE.cell
    assert Config("toy/2", ONE.settings, 7).cell != ONE.cell
    assert Config("toy/1", {**ONE.settings, "lr": 0.2}, 7).cell != ONE.cell


def test_it_survives_its_text_and_a_pickle():
    for copy in (Config.from_json(TEXT), pickle.loads(pickle.dumps(ONE))):
        assert copy == ONE
        assert copy.id == ONE.id
        assert copy.settings["sizes"] == (4, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}, (1, [2]), object()])
def test_what_cannot_be_written_down_is_refused(value):
    with pytest.raises(UsageError, match="Setting 'lr' must be a finite number"):
        Config("toy/1", {"lr": value})


def test_settings_cannot_be_changed_behind_the_name():
    settings = {"lr": 0.1}
    config = Config("toy/1", settings)
    settings["lr"] = 0.2
    assert config.settings["lr"] == 0.1
    with pytest.raises(TypeError):
        config.settings["lr"] = 0.2


def test_options_change_only_what_is_said():
    options = Options(networks=3)
    assert options.but(networks=None, seed=5) == Options(networks=3, seed=5)
    with pytest.raises(UsageError, match=r"networks must be an integer of at least 1\. Got 0"):
        options.but(networks=0)
    with pytest.raises(UsageError, match="n_train"):
        options.but(n_train=())
