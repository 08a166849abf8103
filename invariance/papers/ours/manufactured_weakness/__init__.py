"""Bennett's argument against flatness, applied to weakness."""
