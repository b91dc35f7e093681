"""Speed as ratios: ours and the usual way side by side, in one process, on the same weights, images and threads.

`python -m bench` prints a table and writes bench/results/<time>.json; `--quick` only shows that all of it still runs.
Absolute times of a shared machine say little, so both sides take turns and the result is the median ratio, by the wall
and by the CPU time of the process.
"""
