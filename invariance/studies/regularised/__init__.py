"""What the study of regularised networks finds in its records."""
