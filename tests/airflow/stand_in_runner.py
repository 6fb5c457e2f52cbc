"""Takes the runner's command line and speaks its protocol, without a training.

What it does is in ``STAND_IN``: ``train`` succeeds; ``small`` succeeds without a full outcome file; ``reject`` and
``fail`` end with a failure of the class ``user`` and ``infrastructure``; ``die`` exits with status 3 and no outcome;
``wait`` starts a child that ignores SIGTERM, and waits for SIGTERM itself.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

assert sys.argv[1].endswith("finetune-runner.pyz"), sys.argv
assert sys.argv[2] == "run", sys.argv
assert sys.argv[-1] == "--exit-with-parent", sys.argv
spec = json.loads(pathlib.Path(sys.argv[sys.argv.index("--spec") + 1]).read_text())
message = pathlib.Path(sys.argv[sys.argv.index("--termination-message") + 1])
mode = os.environ.get("STAND_IN", "train")
attempt = pathlib.Path(spec["work_dir"], "1")
attempt.mkdir(parents=True, exist_ok=True)
(attempt / "train.log").write_text("")
(attempt / "received.json").write_text(json.dumps(spec))
(attempt / "environment.json").write_text(json.dumps(dict(os.environ)))


def end(outcome: dict[str, object], full: dict[str, object] | None) -> None:
    """Leave the outcome as the runner does: full file, termination message, line."""
    outcome = {"version": 1, "work_dir": str(attempt), **outcome}
    (attempt / "outcome.json").unlink(missing_ok=True)
    if full is not None:
        (attempt / "outcome.json").write_text(json.dumps({**outcome, **full}))
    message.write_text(json.dumps(outcome))
    print("finetune-outcome", json.dumps(outcome), flush=True)
    sys.exit(1 if outcome["status"] == "failed" else 0)


def fail(failure_class: str, cause: str) -> None:
    """End without a model."""
    failure = {"failure_class": failure_class, "cause": cause, "message": "It broke here.", "cure": "Mend it."}
    end({"status": "failed", "failure": failure}, {})


print("training has begun")
print("warning: the data is small")
print("finetune-progress", json.dumps({"step": 1, "steps": 2}))
if mode == "die":
    print("last words", flush=True)
    sys.exit(3)
if mode == "reject":
    fail("user", "dataset_empty")
if mode == "fail":
    fail("infrastructure", "no_cuda_device")
if mode == "wait":
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf])
    signal.signal(signal.SIGTERM, lambda *_: fail("preempted", "sigterm"))
    (attempt / "pids.json").write_text(json.dumps([os.getpid(), child.pid]))
    print("finetune-progress", json.dumps({"step": 1, "waiting": True}), flush=True)
    print("waiting", flush=True)
    time.sleep(60)
output = spec["output_model"] or str(attempt / "model")
remote = "://" in output and not output.startswith("file://")
model = None if remote else output.removeprefix("file://")
end(
    {
        "status": "succeeded",
        "model_uri": output if remote else f"file://{model}",
        "model_path": model,
        "model_kind": "adapter",
        "metrics": {"loss": 0.5, "seed": spec["parameters"]["seed"]},
        "loss_chart": f"file://{attempt}/loss.html",
        **({"adapter_uri": f"{output}/adapter"} if spec["output_kind"] == "both" else {}),
        **({"base_model": {"name": "org/model", "revision": "1a2b3c4"}} if "@" in spec["base_model"] else {}),
    },
    None if mode == "small" else {"loss_curve": [[1, 2.0], [2, 0.5]]},
)
