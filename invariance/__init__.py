"""Function-preserving reparameterizations of networks, and the measures that survive them."""

__version__ = "0.1.0"
