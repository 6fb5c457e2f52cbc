#!/usr/bin/python3 -IS
"""Stands in a pod for the interpreter that trains: takes its arguments, prints progress, leaves an outcome.

It notes in a journal on the claim when it begins and how it ends, each time with a number drawn anew, which is in its
outcome too: so it can be told which program an outcome is from. ``PART`` says what it plays and ``SECONDS`` how long:

* ``succeeds``; ``fails``: by the author's fault
* ``breaks once``: by a fault that the next try mends; ``dies once``: as one that is killed, without a word

Asked to recover, it leaves the outcome that a success before it has left, as the runner does.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn


def argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


SPEC = json.loads(argument("--spec-json"))
WORK = Path(SPEC["work_dir"])
NUMBER, PART, SECONDS = os.environ["NUMBER"], os.environ["PART"], float(os.environ["SECONDS"])
RUN = secrets.token_hex(8)


def note(event: str) -> None:
    job = os.uname().nodename.removesuffix("-node-0-0")
    entry = {"number": int(NUMBER), "run": RUN, "job": job, "event": event, "at": time.time()}
    # In one write, so that lines of two programs do not mingle.
    with open(WORK / "journal.jsonl", "ab", buffering=0) as journal:
        journal.write(json.dumps(entry).encode() + b"\n")


def end(code: int, event: str, **outcome: object) -> NoReturn:
    document = {"version": 1, "work_dir": str(WORK), "metrics": {"run": RUN, "number": int(NUMBER)}, **outcome}
    text = json.dumps(document)
    if event == "succeeded":
        (WORK / "outcome.json").write_text(text)
    note(event)
    leave(code, text)


def leave(code: int, text: str) -> NoReturn:
    print(f"finetune-outcome {text}", flush=True)
    Path(argument("--termination-message")).write_text(text)
    sys.exit(code)


def failure(failure_class: str, cause: str) -> dict[str, object]:
    message = f"program {RUN} of task {NUMBER} plays {PART!r}"
    return {"status": "failed", "failure": {"failure_class": failure_class, "cause": cause, "message": message}}


def killed(*_: object) -> NoReturn:
    end(143, "killed", **failure("preempted", "terminated"))


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, killed)
    if SPEC["recover"] and (WORK / "outcome.json").exists():
        leave(0, (WORK / "outcome.json").read_text())
    WORK.mkdir(parents=True, exist_ok=True)
    again = (WORK / "journal.jsonl").exists()
    note("began")
    steps = max(1, round(SECONDS / 0.5))
    for step in range(1, steps + 1):
        time.sleep(SECONDS / steps)
        print(f"finetune-progress {json.dumps({'step': step, 'steps': steps})}")
        print(f"task {NUMBER} step {step}/{steps}", flush=True)
    if PART == "fails":
        end(1, "failed", **failure("user", "told_to"))
    if PART == "breaks once" and not again:
        end(1, "failed", **failure("infrastructure", "told_to"))
    if PART == "dies once" and not again:
        note("failed")
        os._exit(137)
    end(0, "succeeded", status="succeeded", model_uri=f"pvc://work/models/{NUMBER}/{RUN}")


if __name__ == "__main__":
    main()
