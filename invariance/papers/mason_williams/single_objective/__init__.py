"""One initialisation, seven functions to fit."""
