"""The version, where every folder can read it."""

__version__ = "0.2.0"
