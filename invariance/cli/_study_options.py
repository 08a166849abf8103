"""From words on the command line to a study and its options."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from invariance.core._errors import UsageError, unknown_name
from invariance.core._foreign import foreign

if TYPE_CHECKING:
    from invariance.studies import Options, Study
    from invariance.studies._config import Setting


def find_study(name: str) -> Study:
    """Find a study by its name, or import one of the user's."""
    from invariance.studies._catalogue import catalogue
    from invariance.studies._study import Study

    known = {study.name: study for study in catalogue()}
    if ":" not in name:
        if name in known:
            return known[name]
        raise unknown_name("study", name, [*known, "MODULE:ATTRIBUTE"])
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with foreign(f"Importing {module_name!r} failed: it"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            missing = error.name or module_name
            raise UsageError(
                f"No module {module_name!r} in {here} or among the installed packages. "
                "Give the study as MODULE:ATTRIBUTE."
                if module_name == missing or module_name.startswith(f"{missing}.")
                else f"Module {module_name!r} imports {missing!r}, which is not installed."
            ) from error
        except ValueError as error:
            if module_name:
                raise
            raise UsageError(f"{name!r} is not MODULE:ATTRIBUTE.") from error
        found = getattr(module, attribute, None)
    if not isinstance(found, Study):
        names = [key for key, value in vars(module).items() if isinstance(value, Study)]
        raise UsageError(
            f"{name!r} must name a Study. Got {type(found).__name__}. "
            f"Studies in {module_name}: {', '.join(names) or 'none'}."
        )
    return found


def options_from(words: argparse.Namespace, study: Study) -> Options:
    """Return the study's own options with what was said on the command line."""
    base = study.quick if words.quick else study.full
    return base.but(
        task=words.task,
        networks=words.networks,
        n_train=tuple(words.n_train) if words.n_train else None,
        n_unseen=words.n_unseen,
        seed=words.seed,
        device=words.device,
        quick=words.quick,
        scale={**base.scale, **_scale(words.set, base)} if words.set else None,
    )


def _scale(words: list[str], base: Options) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE. Got {word!r}.")
        if name not in base.scale:
            raise unknown_name("size of this study", name, base.scale or ["none"])
        value = _value(text)
        before = base.scale[name]
        if not _fits(value, before):
            raise UsageError(
                f"--set {name} takes {type(before).__name__}, such as {before!r}. Got {text!r}."
            )
        found[name] = value
    return found


def _value(text: str) -> Setting:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _fits(value: object, before: Setting) -> bool:
    """Whether a value is of the kind of the one that it replaces."""
    if isinstance(before, bool) or isinstance(value, bool):
        return isinstance(value, bool) and (before is None or isinstance(before, bool))
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(before, float):
        return isinstance(value, (int, float))
    if isinstance(before, tuple):
        return isinstance(value, tuple) and all(
            any(_fits(entry, one) for one in before) or not before for entry in value
        )
    if before is None:
        return value is None or isinstance(value, (int, float, str))
    return isinstance(value, type(before))
