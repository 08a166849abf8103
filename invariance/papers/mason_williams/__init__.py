"""Mason-Williams et al., "A Function-Centric Perspective on Flat and Sharp Minima"."""
