"""Standard errors that keep their word: from few samples, and from samples that share probes."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

#: How much wider a 95 % interval must be for samples of skewness g: the term of the Edgeworth
#: expansion of Student's t (Hall 1992, "The bootstrap and Edgeworth expansion", section 2.6),
#: ``(z^4 + 2 z^2 - 3) / 18 = 1.08`` times ``g^2 / n``, and the terms after it, as simulated.
_SKEWNESS = 1.4

#: From n samples of a quadratic form the skewness comes out too small by ``1 + 14 / n``.
_UNSEEN = 14.0


def standard_error(samples: Tensor, covariance: Tensor | None = None) -> Tensor:
    """Return standard errors of means, such that ``mean +- 1.96 stderr`` covers 95 %.

    The usual ``sd / sqrt(n)`` does so for many independent normal samples. Here samples are few,
    hence Student's quantile; those of a quadratic form of a matrix with few large eigenvalues are
    skewed like a chi-square of one degree of freedom; and some share the probes of a sketch.

    Example:
        A little more than ``sd / sqrt(n) = 9.133``:

        >>> import torch
        >>> from invariance.curvature.estimates._interval import standard_error
        >>> round(float(standard_error(torch.arange(1000.0))), 3)
        9.144

    Shapes: ``samples (n, ...)``, ``covariance (...)``; returns ``(...)``.
    """
    n = samples.shape[0]
    centred = samples.double() - samples.double().mean(0)
    variance = centred.square().sum(0) / (n - 1)
    size = centred.square().mean(0).sqrt()
    skewness = torch.where(size > 0, centred.pow(3).mean(0) / size.pow(3), 0.0)
    student = float(stats.t.ppf(0.975, n - 1)) / float(stats.norm.ppf(0.975))
    wider = student * (1 + _SKEWNESS / n * ((1 + _UNSEEN / n) * skewness).square())
    of_mean = variance / n
    if covariance is not None:
        of_mean = of_mean + covariance.clamp_min(0).to(of_mean)
    return of_mean.sqrt() * wider
