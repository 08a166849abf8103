"""What a check, a sweep and correlations found, and its renderings: text, Markdown, HTML, figures.

A renderer is a function from a :class:`Report` to text, in a file of this folder that is imported
here; it says which ending of a file's name it writes.
"""

from invariance.reporting import _html, _markdown, _terminal  # noqa: F401 - they register
from invariance.reporting._report import CorrelationRow, CorrelationStudy, Report, Sweep

__all__ = ["CorrelationRow", "CorrelationStudy", "Report", "Sweep"]
