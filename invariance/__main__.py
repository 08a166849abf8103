"""``python -m invariance`` is the ``invariance`` command."""

from invariance.cli._main import main

if __name__ == "__main__":
    raise SystemExit(main())
