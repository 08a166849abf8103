"""Proofs by algebra: generic networks, the maps on them, and what measures read of them."""
