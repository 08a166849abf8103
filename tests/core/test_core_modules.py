"""Catches: clones that share storage or gradients, modes that are not restored, global RNG use."""

import copy

import pytest
import torch
from torch import nn

from invariance.core._errors import unknown_name
from invariance.core._files import write_atomically
from invariance.core._modules import clone, evaluation_mode, in_train_mode, weight_layers
from invariance.core._rng import generator


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_clone_shares_nothing_and_leaves_gradients_alone():
    model = small()
    model(torch.randn(5, 3)).sum().backward()
    kept = [p.grad for p in model.parameters()]
    copied = clone(model)
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
    assert all(p.grad is None for p in copied.parameters())
    storages = {t.data_ptr() for t in model.state_dict().values()}
    assert storages.isdisjoint(t.data_ptr() for t in copied.state_dict().values())


def counted():
    """Modules that are copied in ways of their own, or refer to one another."""

    class Chosen(nn.Linear):
        def __deepcopy__(self, memo):
            made = Chosen(3, 3)
            made.mark = "its own way"
            return made

    class Circular(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.__dict__["me"] = self
            self.seen = [self.inner]
            self.named = {"inner": self.inner.weight}

    shared = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    weighted = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return [nn.Sequential(shared, tied, shared), Circular(), nn.Sequential(Chosen(3, 3)), weighted]


@pytest.mark.parametrize("number", range(4))
def test_clone_copies_all_that_deepcopy_copies(number):
    model = counted()[number]
    model.register_forward_hook(lambda module, args, out: None)
    expected, copied = copy.deepcopy(model), clone(model)
    pairs = list(zip(copied.named_modules(), expected.named_modules(), strict=True))
    for (name, mine), (other_name, theirs) in pairs:
        assert name == other_name
        assert list(vars(mine)) == list(vars(theirs))
        assert [type(v) for v in vars(mine).values()] == [type(v) for v in vars(theirs).values()]
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in expected.named_parameters()]
    if number != 2:  # it draws other weights
        values = zip(copied.state_dict().values(), model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in values)


def test_clone_keeps_who_refers_to_whom():
    shared, circular, chosen, _ = map(clone, counted())
    assert shared[0] is shared[2]
    assert shared[0].weight is shared[1].weight
    assert circular.me is circular
    assert circular.seen[0] is circular.inner
    assert circular.named["inner"] is circular.inner.weight
    assert chosen[0].mark == "its own way"


def test_evaluation_mode_restores_each_flag_even_after_an_error():
    model = small()
    model[1].eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError("inside")
    assert [m.training for m in model.modules()] == before


def test_train_mode_is_found_by_name():
    model = small()
    assert in_train_mode(model, (nn.BatchNorm1d,)) == "1"
    assert in_train_mode(model.eval(), (nn.BatchNorm1d,)) is None


def test_weight_layers_in_order():
    assert [name for name, _ in weight_layers(small())] == ["0", "3"]


def test_generators_are_independent_streams_and_leave_the_global_one():
    state = torch.get_rng_state()
    a, b = generator(0, "a"), generator(0, "b")
    draws = torch.rand(3, generator=a), torch.rand(3, generator=b)
    assert not torch.equal(*draws)
    assert torch.equal(draws[0], torch.rand(3, generator=generator(0, "a")))
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_names_list_the_known_ones():
    message = str(unknown_name("task", "mnits", ["mnist", "digits"]))
    assert "Did you mean 'mnist'" in message
    assert "digits" in message


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out" / "report.json"
    write_atomically(path, "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("module", "random"),
    [
        (nn.LSTM(3, 4, num_layers=2, dropout=0.2), True),
        (nn.LSTM(3, 4), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.1), True),
    ],
)
def test_what_is_random_in_train_mode_also_inside_a_module(module, random):
    assert (in_train_mode(module.train()) is not None) == random
    assert in_train_mode(module.eval()) is None
