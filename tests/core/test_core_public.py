"""Catches: a public name that does not import, a package whose import drags torch in."""

import subprocess
import sys

import invariance as inv


def test_every_public_name_resolves():
    for name in inv.__all__:
        assert getattr(inv, name) is not None, name


def test_importing_the_package_does_not_import_torch():
    code = "import sys, invariance, invariance.cli._main; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
