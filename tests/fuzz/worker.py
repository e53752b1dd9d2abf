"""A process that reads hostile inputs: `python tests/fuzz/worker.py FOLDER KIND:FIRST-END …`.

Input `number` of a kind is drawn from Random("KIND/NUMBER"), so that a fault is found again by its number alone:
`python tests/fuzz/worker.py FOLDER KIND:NUMBER` keeps what it has made in FOLDER/KIND-NUMBER. Each fault is printed
as a line of JSON; the last line sums up.
"""

import faulthandler
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import advflyp
from fuzz.kinds import FAULTY, KINDS
from fuzz.watch import Watch, resident

# Seconds after which an input that does not come to an end ends the process, with a traceback.
STUCK = 60
ADDRESS_SPACE = 12 << 30


def run(folder: Path, kind: str, numbers: range, watch: Watch) -> None:
    wanted = KINDS.get(kind, FAULTY)
    settled = resident()
    for number in numbers:
        place = folder / f"{kind}-{number}"
        for name in ("in", "out"):
            (place / name).mkdir(parents=True)
        os.chdir(place)
        faulthandler.dump_traceback_later(STUCK, exit=True)
        use = wanted.make(random.Random(f"{kind}/{number}"), place)
        print(json.dumps({"kind": kind, "number": number, "begun": True}), flush=True)
        for fault in watch.faults(use, place, wanted.memory, wanted.seconds):
            print(json.dumps({"kind": kind, "number": number, "fault": fault}), flush=True)
        faulthandler.cancel_dump_traceback_later()
        os.chdir(folder)
        if len(numbers) > 1:
            shutil.rmtree(place)
        if number == numbers[len(numbers) // 4]:
            settled = resident()
    grown = resident() - settled
    print(json.dumps({"kind": kind, "done": len(numbers), "grown": grown}), flush=True)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    # What the program imports when it needs it is no input's doing.
    for module in pkgutil.walk_packages(advflyp.__path__, "advflyp."):
        if not module.name.endswith("__main__") and ".isolated." not in module.name:
            importlib.import_module(module.name)
    watch = Watch()
    for chunk in sys.argv[2:]:
        kind, _, numbers = chunk.partition(":")
        first, _, last = numbers.partition("-")
        run(folder, kind, range(int(first), int(last or int(first) + 1)), watch)


if __name__ == "__main__":
    main()
