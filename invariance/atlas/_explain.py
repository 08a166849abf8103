"""``invariance explain``: one name, and what there is to know about it."""

from __future__ import annotations

import importlib
import inspect

from invariance import transforms
from invariance.atlas._atlas import known_of
from invariance.core._errors import unknown_name
from invariance.core._groups import ABOUT, Group
from invariance.measures._registry import all_measures, get_measure
from invariance.symmetry._structures import SymmetryKind
from invariance.transforms._base import Transform


def explain(name: str) -> str:
    """Explain a measure, a transform or a kind of map.

    Args:
        name: Its Python name, or a group's value such as ``"neuron_scaling"``.

    Returns:
        Definition, declarations or members, cost and source, as plain text.

    Raises:
        UsageError: For a name that is none of them, with the nearest one.

    Example:
        >>> import invariance as inv
        >>> print(inv.atlas.explain("logit_shift").splitlines()[0])
        logit_shift (a kind of map)
    """
    importlib.import_module("invariance.measures")
    maps = {
        title: found
        for title in transforms.__all__
        if inspect.isclass(found := getattr(transforms, title)) and issubclass(found, Transform)
    }
    if name in all_measures():
        return _measure(name)
    if name in maps:
        return _transform(maps[name])
    if name in {group.value for group in Group}:
        return _group(Group(name))
    raise unknown_name("name", name, [*all_measures(), *maps, *(group.value for group in Group)])


def _measure(name: str) -> str:
    measure, known = get_measure(name), known_of(name)
    lines = [f"{name} (a measure)", "", inspect.getdoc(measure.function) or ""]
    words: dict[str, list[str]] = {}
    for group in Group:
        said = measure.declared([group]) if measure.claims([group]) else "undeclared"
        words.setdefault(said, []).append(group.value)
    lines += ["", *(f"{word}: {', '.join(groups)}" for word, groups in words.items())]
    lines += [f"cost: {measure.cost}", f"source: {known.source or 'not stated'}"]
    if known.pitfall:
        lines.append(f"pitfall: {known.pitfall}")
    return "\n".join([*lines, f"why: invariance prove {name}"]) + "\n"


def _transform(found: type[Transform]) -> str:
    group = getattr(found, "group", None)
    lines = [f"{found.__name__} (a transform)", "", inspect.getdoc(found) or "", ""]
    return "\n".join([*lines, f"kind of map: {group or 'that of its parts'}"]) + "\n"


def _group(group: Group) -> str:
    about = ABOUT[group]
    makers = [kind.__name__ for kind in transforms.KINDS if kind.group is group]
    makers = makers or (["Reparametrize"] if group is Group.COORDINATES else [])
    named = {kind.value for kind in SymmetryKind} & set(about.sites)
    lines = [
        f"{group.value} (a kind of map)",
        "",
        f"transforms: {', '.join(makers) or 'none'}",
        f"sites: {', '.join(sorted(named)) or 'none'}",
        f"keeps the logits: {'yes' if about.keeps_logits else 'no, the softmax only'}",
        f"ReLU perceptrons that admit it: {about.relu_mlp}",
    ]
    if about.meaning:
        lines.append(f"a measure that moves under it: {about.meaning}")
    return "\n".join(lines) + "\n"
