"""``python -m invariance.testing.soak``."""

from invariance.testing.soak._command import main

if __name__ == "__main__":
    raise SystemExit(main())
