#!/bin/sh
# Workers of grain 0.2.18 keep running when the process that started them is killed.
#
# IterDataset.mp_prefetch starts its workers as daemons, which ends them with a parent that exits by itself. After SIGKILL
# (also that of an out-of-memory killer or a scheduler) nothing tells them: each waits for room in its buffer for ever, and
# keeps its memory. Seen with Python 3.11 on Linux. A worker_init_fn that waits for multiprocessing.parent_process() to end
# helps. Exits with 0 while this is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check grain==0.2.18 numpy==2.4.6
cat >"$folder/parent.py" <<'PYTHON'
import os
import time
from pathlib import Path

import grain
from absl import flags


def note(index: int, count: int) -> None:
    (Path(os.environ["FOLDER"]) / f"worker{index}").write_text(str(os.getpid()))


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    numbers = grain.MapDataset.range(10**9).to_iter_dataset()
    options = grain.MultiprocessingOptions(num_workers=2, per_worker_buffer_size=2)
    iterator = iter(numbers.mp_prefetch(options, worker_init_fn=note))
    next(iterator), next(iterator)
    print("ready", flush=True)
    time.sleep(600)
PYTHON
FOLDER="$folder" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
parent = subprocess.Popen([sys.executable, folder / "parent.py"], stdout=subprocess.PIPE, text=True)
assert parent.stdout.readline() == "ready\n"
workers = [int((folder / f"worker{index}").read_text()) for index in range(2)]
parent.kill()
parent.wait()
time.sleep(20)
left = []
for worker in workers:
    try:
        os.kill(worker, signal.SIGKILL)
        left.append(worker)
    except ProcessLookupError:
        pass
print(f"{len(left)} of {len(workers)} workers still ran 20 s after their parent was killed")
sys.exit(0 if len(left) == len(workers) else 1)
PYTHON
