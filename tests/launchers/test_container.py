"""The container that trains.

Aspects: the runner as ConfigMap and in the arguments (which really starts), texts that Kubernetes would change, which
variable wins, resources.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from typing import Any

import pytest

from airflow_provider_finetune.archive import runner_bytes
from airflow_provider_finetune.launchers.container import command, environment, resources, runner_config_map
from airflow_provider_finetune.launchers.local import DEFAULT_ENVIRONMENT


def kubernetes(text: str) -> str:
    """What Kubernetes makes of a text without a reference to a known variable: ``$$`` is an escaped ``$``."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else found[0], text)


def env(**options: Any) -> dict[str, Any]:
    given = {"hub_cache": "/hub", "training_envs": {}, "config_env": [], "secrets": {}, **options}
    entries = environment(**given)
    by_name = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
    assert len(by_name) == len(entries)
    return by_name


def test_the_config_map_holds_the_runner_and_is_named_by_its_content():
    manifest = runner_config_map("team-a")
    digest = hashlib.sha256(runner_bytes()).hexdigest()
    assert manifest["metadata"]["name"] == f"finetune-runner-{digest[:12]}"
    assert base64.b64decode(manifest["binaryData"]["finetune-runner.pyz"]) == runner_bytes()
    assert manifest["immutable"] is True


@pytest.mark.parametrize("runner", ["configmap", "image"])
def test_a_mounted_and_a_baked_runner_are_started_at_the_same_place(runner: str):
    assert command(runner, "{}") == (
        ["python3", "-u", "/opt/finetune/finetune-runner.pyz"],
        ["run", "--spec-json", "{}", "--termination-message", "/dev/termination-log"],
    )


def test_a_runner_in_the_arguments_unpacks_itself_and_runs_with_its_own_arguments():
    program, arguments = command("inline", "{}")
    arguments = list(map(kubernetes, arguments))
    assert all(len(argument) < 65_536 for argument in arguments)
    rest = arguments.index("--") + 1
    done = subprocess.run(
        [sys.executable, "-I", "-S", *program[1:], *arguments[:rest], "run", "--help"], capture_output=True, text=True
    )
    assert "--termination-message" in done.stdout, done.stderr
    assert arguments[rest:][:2] == ["run", "--spec-json"]


@pytest.mark.parametrize("text", ["$(HOME)", "$$", "$$(HOME)", "5$", "a$b", "$("])
def test_a_text_of_ours_reaches_the_program_as_it_is(text: str):
    _, arguments = command("configmap", text)
    assert kubernetes(arguments[2]) == text
    assert kubernetes(env(training_envs={"A": text})["A"]) == text
    assert "$(" not in arguments[2].replace("$$", "")


def test_the_defaults_are_those_of_the_local_launcher_and_of_a_container_without_a_home():
    found = env()
    assert DEFAULT_ENVIRONMENT.items() <= found.items()
    assert found["HF_HUB_CACHE"] == "/hub"
    assert found["HF_HOME"].startswith("/tmp/")


def test_later_variables_win_and_none_stands_twice():
    config = [{"name": "NCCL_DEBUG", "value": "TRACE"}, {"name": "A", "value": "$(NCCL_DEBUG)"}]
    assert env(config_env=config)["NCCL_DEBUG"] == "TRACE"
    assert env(config_env=config)["A"] == "$(NCCL_DEBUG)"
    assert env(config_env=config, training_envs={"NCCL_DEBUG": "INFO"})["NCCL_DEBUG"] == "INFO"
    secret = env(training_envs={"HF_TOKEN": "x"}, secrets={"HF_TOKEN": "hub/my.token"})["HF_TOKEN"]
    assert secret == {"secretKeyRef": {"name": "hub", "key": "my.token"}}


def test_what_is_asked_for_is_also_the_limit_and_no_gpu_is_named_where_none_is_wanted():
    asked = resources(cpu="500m", memory="1Gi", gpus=2, gpu_resource="amd.com/gpu")
    assert asked["requests"] == asked["limits"] == {"cpu": "500m", "memory": "1Gi", "amd.com/gpu": "2"}
    none = resources(cpu="1", memory="1Gi", gpus=0, gpu_resource="amd.com/gpu")
    assert none["limits"] == {"cpu": "1", "memory": "1Gi"}
