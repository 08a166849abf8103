"""What a check, a sweep and correlations found, and its renderings: text, Markdown, HTML, figures.

A renderer is a function from a :class:`Report` to text, in a file of this folder that is imported
here; it says which ending of a file's name it writes.
"""

# The renderers register themselves, in the order in which their endings are listed.
# isort: off
from invariance.reporting import _markdown  # noqa: F401
from invariance.reporting import _html  # noqa: F401
from invariance.reporting import _terminal  # noqa: F401

# isort: on
from invariance.reporting._report import AxisSweep, CorrelationRow, CorrelationStudy, Report

__all__ = ["AxisSweep", "CorrelationRow", "CorrelationStudy", "Report"]
