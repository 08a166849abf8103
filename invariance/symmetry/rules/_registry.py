"""Which rule treats which torch function."""

from __future__ import annotations

from collections.abc import Callable

from invariance.symmetry.analysis._context import Rule
from invariance.symmetry.analysis._tracing import Call

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for torch functions, methods and their in-place forms by name."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
            if not name.startswith("__"):
                _RULES.setdefault(f"{name}_", function)
        return function

    return register


def named(name: str) -> Rule:
    """Return the rule that is registered under a name."""
    return _RULES[name]


def find(call: Call) -> Rule | None:
    """Return the rule for a call, ``None`` if there is none.

    Only functions of torch itself are looked up by name: a user's function that takes part
    in torch's override protocol may carry any name.
    """
    module = getattr(call.function, "__module__", None)
    if module is not None and not module.startswith("torch"):
        return None
    return _RULES.get(call.name)
