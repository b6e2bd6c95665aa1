"""Fuzz bnnopt by command.

python -m tests.fuzz --inputs 100000 --seed 1 --out faults/
python -m tests.fuzz --seed 1 --replay 4711          the traceback of one input
python -m tests.fuzz --sanitizers ...                the kernels under the sanitizers
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Run what the command line says; the exit code is 1 where a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="targets: model, folder, ...")
    parser.add_argument("--out", type=Path, help="a folder for the inputs of faults")
    parser.add_argument("--replay", type=int, help="run this input here, without limits")
    parser.add_argument("--accepted", type=Path, help="a file for the numbers that were accepted")
    parser.add_argument("--numbers", type=Path, help="a file of numbers, one a line, to run")
    parser.add_argument("--sanitizers", action="store_true")
    options = parser.parse_args()
    if options.sanitizers:
        from tests.fuzz.sanitizers import restart

        restart()
    with tempfile.TemporaryDirectory(prefix="bnnopt-fuzz-") as made:
        return _run(options, Path(made))


def _run(options: argparse.Namespace, made: Path) -> int:
    from tests.fuzz.campaign import ACCEPTED, Campaign, Tally, load_everything
    from tests.fuzz.seeds import make_seeds
    from tests.fuzz.targets import TARGETS

    (made / "seeds").mkdir()
    (made / "scratch").mkdir()
    load_everything()
    make_seeds(made / "seeds")
    campaign = Campaign(TARGETS, made / "seeds", made / "scratch", options.seed)
    if options.replay is not None:
        folder = options.out or made / "input"
        folder.mkdir(exist_ok=True)
        campaign.make(options.replay, folder)
        return not TARGETS[campaign.kind(options.replay)].use(folder, made / "seeds")
    numbers = range(options.first, options.first + options.inputs)
    if options.numbers:
        numbers = [int(line) for line in options.numbers.read_text().split()]
    if options.only:
        numbers = [number for number in numbers if campaign.kind(number) in options.only]
    tally, begin, accepted = Tally(campaign, options.out), time.monotonic(), []
    done = 0
    with contextlib.suppress(KeyboardInterrupt):
        for done, result in enumerate(campaign.run(numbers, options.workers), 1):
            tally.add(result)
            if result.outcome == ACCEPTED:
                accepted.append(result.number)
            if done % 1000 == 0:
                rate = done / (time.monotonic() - begin)
                print(
                    f"{done} of {len(numbers)}, {rate:.0f}/s, {tally.n_faults} faults", flush=True
                )
    if options.accepted:
        options.accepted.write_text("\n".join(map(str, sorted(accepted))))
    seconds = time.monotonic() - begin
    print("\n".join([*tally.lines(), f"{done} inputs in {seconds:.0f} s"]))
    return bool(tally.n_faults)


if __name__ == "__main__":
    sys.exit(main())
