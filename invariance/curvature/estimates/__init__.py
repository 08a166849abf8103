"""Private: unbiased estimates with a standard error. A new estimator goes here."""
