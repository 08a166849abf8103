"""One function in many parameterisations."""
