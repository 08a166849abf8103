"""Can weakness be manufactured?

Give each network units that nothing listens to. No label changes, and the number of pairs that
its features leave open does. So does a count over used features when the units whisper at 1e-9;
a count with a margin stays.

    python demos/study_manufactured_weakness.py
    invariance study manufactured-weakness      # the full size
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.ours.manufactured_weakness._study import STUDY
from invariance.studies.report._output import Outcome

SMALL = {"networks": 5, "n_train": (80,), "n_unseen": 3}


def main(arguments: list[str] | None = None) -> Outcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    return run_study_quickly(STUDY, __doc__, arguments, SMALL)


if __name__ == "__main__":
    main()
