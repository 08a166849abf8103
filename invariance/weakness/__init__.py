"""How many extensions a learned policy leaves open."""
