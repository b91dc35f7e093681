"""What a conductor costs beside other releases in its namespace: `python tests/conductor/scale.py`, some seconds.

Against the fake API, so bytes and requests are those of a real one and times are only this machine's. The last column
is what a conductor that lists the namespace and picks its own would read at each look.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_api import FakeApi
from shapes import SHORT, STAGES, T0, chain, complete, ended, release_plan, released, running

from pocketvlm.cluster.api import Api
from pocketvlm.cluster.conductor import Conductor
from pocketvlm.cluster.metrics import RunMetrics
from pocketvlm.progress import Progress

LOOKS = 50


def main() -> None:
    print("releases  Jobs  ms per look  KB per look  requests of a run  KB of a run  KB per look without labels")
    for number in (1, 50, 200):
        with FakeApi() as fake:
            fake.put(*chain(complete("labeller"), released("trainer")), running(released("trainer")))
            for other in range(1, number):
                jobs = [complete(stage, release=f"other-{other}") for stage in STAGES]
                fake.put(*jobs, *(ended(job, 0) for job in jobs))
            print(f"{number:>8}  {len(fake.objects['jobs']):>4}  {look(fake)}  {whole_run(fake)}  {everything(fake):>26.0f}")


def look(fake: FakeApi) -> str:
    api = Api(release_plan(), fake.client())
    api.look()
    before, begun = fake.bytes_sent, time.perf_counter()
    for _ in range(LOOKS):
        api.look()
    took_ms = (time.perf_counter() - begun) / LOOKS * 1000
    return f"{took_ms:>11.1f}  {(fake.bytes_sent - before) / LOOKS / 1000:>11.1f}"


def whole_run(fake: FakeApi) -> str:
    def run(name: str) -> None:
        now = released(name.removeprefix("digits-"), started=fake.now - T0)
        for step in (now, running(now), ended(now, 0), complete(name.removeprefix("digits-"), started=fake.now - T0)):
            time.sleep(0.05)
            fake.put(step)

    fake.put(*chain())
    fake.on_release = run
    fake.requests.clear()
    before = fake.bytes_sent
    plan = release_plan()
    Conductor(plan, Api(plan, fake.client()), Progress("", io.StringIO()), RunMetrics(plan), SHORT).run()
    return f"{len(fake.requests):>17}  {(fake.bytes_sent - before) / 1000:>11.0f}"


def everything(fake: FakeApi) -> float:
    return sum(len(json.dumps(one)) for what in ("jobs", "pods") for one in fake.objects[what].values()) / 1000


if __name__ == "__main__":
    main()
