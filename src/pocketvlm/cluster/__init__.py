"""The conductor: releases the stages' Jobs one after the other, and says what went wrong.

    plan.py       what there is to conduct: the file that the chart writes
    objects.py    Jobs, pods and Events as Kubernetes gives them, cut down to what is looked at
    machine.py    Jobs, pods and the clock -> where the run stands, and what to do next; no side effects
    trouble.py    why a pod that should run does not
    words.py      values files, commands and numbers as people write them
    faults.py     how a run ends badly: what is wrong, and what to do
    table.py      the lines and the table of the log
    teller.py     who is told what, and that it is told once
    api.py        the Kubernetes API; the only file that imports `kubernetes`
    metrics.py    where the run stands, for Prometheus
    check.py      whether all rights are there
    conductor.py  list, act, watch, and list again
"""
