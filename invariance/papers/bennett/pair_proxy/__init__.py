"""Labels left open, and generalization."""
