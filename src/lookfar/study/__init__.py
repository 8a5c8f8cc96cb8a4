"""Compare attention blocks in the same host, on your data, with honest intervals.

A study is a folder. ``run`` makes one or goes on with one, ``load`` gives its tables, ``report`` its page::

    from lookfar import study

    results = study.run(study.Plan(data="scenes:lookup", blocks=("nonlocal", "global_context")), "runs/lookup")
    results.summary("nonlocal").difference
    network, data, blocks = results.network("nonlocal", seed=0)
    study.report("runs/lookup")
"""

from lookfar.study.plan import Plan

# the module `report` gives way to the function
from lookfar.study.report import write_report as report
from lookfar.study.results import Results, load
from lookfar.study.rows import Interval, Summary, Trial
from lookfar.study.running import Stopped, run
from lookfar.study.trained import TrainedNetwork, load_trial

__all__ = [
    "Interval",
    "Plan",
    "Results",
    "Stopped",
    "Summary",
    "TrainedNetwork",
    "Trial",
    "load",
    "load_trial",
    "report",
    "run",
]
