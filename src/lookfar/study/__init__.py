"""Compare attention blocks in the same host, on your data, with honest intervals.

A study is a folder. ``run`` makes one or goes on with one, ``load`` gives its tables, ``report`` its page::

    from lookfar import study

    results = study.run(study.Plan(data="scenes:lookup", blocks=("nonlocal", "global_context")), "runs/lookup")
    results.summary("nonlocal").difference
"""

from lookfar.study.plan import Plan
from lookfar.study.results import Interval, Results, Summary, Trial, load

__all__ = ["Interval", "Plan", "Results", "Summary", "Trial", "load"]
