"""Every documented parameter x three algorithms x the installed training-hub.

* each parameter has a fate for each algorithm, and no other name has one
* what is sent is a keyword that the installed library reads
* what the library would drop is an error that names it and the version
* the cures of the field's mistakes are in the keywords
"""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import pytest

from airflow_provider_finetune.contract.parameters import OPERATOR_ONLY
from airflow_provider_finetune.contract.spec import RECORDS, TrainingSpec
from airflow_provider_finetune.runner import algorithms, backends
from airflow_provider_finetune.runner.accepted import (
    accepted_keywords,
    refuse_a_trl_that_does_not_fit,
    refuse_what_would_be_dropped,
)
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.fates import FATES, Sent, WithoutEffect, fates, without_effect

DEVICES = ("cuda", "cpu")
DOCUMENTED = [
    (algorithm, item.name)
    for algorithm, record in RECORDS.items()
    for item in fields(record)
    if item.name not in OPERATOR_ONLY
]


def keywords(algorithm: str, device: str = "cuda", extra: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    spec = TrainingSpec(
        algorithm=algorithm, base_model="m", dataset="d", work_dir="w", parameters=given, extra_args=extra or {}
    )
    return algorithms.keywords(spec, device=device, model_path="model", checkpoints="ckpt", data_dir="processed")


@pytest.mark.parametrize("algorithm", RECORDS)
def test_each_documented_parameter_has_one_fate(algorithm: str) -> None:
    assert set(FATES[algorithm]) == {name for which, name in DOCUMENTED if which == algorithm}


@pytest.mark.parametrize(("algorithm", "name"), DOCUMENTED)
def test_what_is_sent_is_read_by_the_installed_library(algorithm: str, name: str) -> None:
    for device in DEVICES:
        fate = fates(algorithm, device)[name]
        if isinstance(fate, Sent):
            assert fate.keyword in accepted_keywords(algorithm, backends.register(algorithm, device))


@pytest.mark.parametrize(("algorithm", "name"), DOCUMENTED)
def test_what_has_no_effect_is_said_when_somebody_sets_it(algorithm: str, name: str) -> None:
    default = getattr(RECORDS[algorithm](), name)
    other = {bool: not default, str: "x", list: ["x"]}.get(type(default), 17)
    spec = TrainingSpec(algorithm=algorithm, base_model="m", dataset="d", work_dir="w", parameters={name: other})
    said = without_effect(spec, "cuda")
    assert bool(said) == isinstance(FATES[algorithm][name], WithoutEffect)
    assert all(f"training_{name}={other!r}" in sentence for sentence in said)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", RECORDS)
def test_defaults_are_sent_whole_and_nothing_of_them_would_be_dropped(algorithm: str, device: str) -> None:
    backend = backends.register(algorithm, device)
    refuse_what_would_be_dropped(algorithm, backend, {"data_path", *keywords(algorithm, device)})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", RECORDS)
def test_a_misspelt_keyword_is_refused_by_name_and_version(algorithm: str, device: str) -> None:
    backend = backends.register(algorithm, device)
    with pytest.raises(UserError, match=f"training-hub {version('training-hub')} would ignore learning_rte"):
        refuse_what_would_be_dropped(algorithm, backend, ["learning_rte"])


def test_reserved_lora_keywords_are_refused_though_the_signature_takes_them() -> None:
    with pytest.raises(UserError, match="flash_attention, tf32"):
        refuse_what_would_be_dropped("lora_sft", "unsloth", ["flash_attention", "tf32"])


def test_a_trl_without_an_option_that_lora_on_cuda_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    def without(**options: Any) -> None:
        raise TypeError("SFTConfig.__init__() got an unexpected keyword argument 'logging_dir'")

    monkeypatch.setattr(trl, "SFTConfig", without)
    with pytest.raises(UserError, match=rf"transformers {version('transformers')}.*'logging_dir'"):
        refuse_a_trl_that_does_not_fit(keywords("lora_sft"))
    # A GPU that it cannot know of, and whatever else Unsloth sees to.
    monkeypatch.setattr(trl, "SFTConfig", lambda **options: 1 / 0)
    refuse_a_trl_that_does_not_fit(keywords("lora_sft"))


def test_osft_refuses_tensorboard_which_mini_trainer_lacks() -> None:
    with pytest.raises(UserError, match="tensorboard_log_dir"):
        refuse_what_would_be_dropped("osft", "mini-trainer", ["tensorboard_log_dir"])


@pytest.mark.parametrize("algorithm", RECORDS)
def test_a_cpu_gets_no_options_of_several_gpus(algorithm: str) -> None:
    sent = keywords(algorithm, device="cpu", seed=3, use_liger=True)
    assert {"nnodes", "nproc_per_node", "use_liger"}.isdisjoint(sent)


@pytest.mark.parametrize("algorithm", ["osft", "sft"])
def test_full_fine_tuning_on_a_cpu_refuses_options_of_the_other_backend(algorithm: str) -> None:
    backend = backends.register(algorithm, "cpu")
    with pytest.raises(UserError, match=rf"would ignore checkpoint_storage, validation_split for {algorithm} \(trl\)"):
        refuse_what_would_be_dropped(
            algorithm,
            backend,
            ["validation_split", "checkpoint_storage", "enable_jit_checkpoint", "beta2", "callbacks"],
        )


def test_options_of_the_optimizer_that_mini_trainer_takes_and_never_hands_on_are_refused() -> None:
    with pytest.raises(UserError, match=r"would ignore beta1, beta2, eps, weight_decay for osft"):
        refuse_what_would_be_dropped("osft", "mini-trainer", ["beta1", "beta2", "eps", "weight_decay", "save_dtype"])


@pytest.mark.parametrize(("algorithm", "keyword"), [("osft", "use_processed_dataset"), ("sft", "process_data")])
def test_full_fine_tuning_on_cuda_gets_the_tokens_that_were_reported(algorithm: str, keyword: str) -> None:
    assert keywords(algorithm)[keyword] is (algorithm == "osft")


@pytest.mark.parametrize("algorithm", RECORDS)
def test_a_checkpoint_is_saved_on_a_signal_unless_nobody_will_go_on(algorithm: str) -> None:
    assert keywords(algorithm)["enable_jit_checkpoint"] is True
    spec = TrainingSpec(algorithm=algorithm, base_model="m", dataset="d", work_dir="w", resume="never")
    sent = algorithms.keywords(spec, device="cpu", model_path="m", checkpoints="c", data_dir="p")
    assert "enable_jit_checkpoint" not in sent


def test_sft_sends_its_seed_under_the_name_that_the_backend_reads() -> None:
    assert keywords("sft", seed=3)["random_seed"] == 3


def test_sft_saves_a_model_at_each_epoch_and_no_full_state_by_default() -> None:
    sent = keywords("sft")
    assert sent["checkpoint_at_epoch"] is True
    assert sent["accelerate_full_state_at_epoch"] is False


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"])
def test_the_sharding_strategy_travels_as_json_and_becomes_the_librarys_own(strategy: str) -> None:
    from instructlab.training import FSDPOptions

    sent = json.loads(json.dumps(keywords("sft", fsdp_sharding_strategy=strategy)))["fsdp_options"]
    assert FSDPOptions.model_validate(sent).sharding_strategy.name == strategy


@pytest.mark.parametrize("algorithm", ["osft", "sft"])
def test_the_library_reads_and_writes_data_in_the_directory_of_the_attempt(algorithm: str) -> None:
    assert keywords(algorithm, data_output_dir="/shared")["data_output_dir"] == "processed"


def test_osft_scheduler_options_are_numbers() -> None:
    sent = keywords(
        "osft", lr_scheduler="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": "2", "power": "0.5"}
    )
    assert sent["lr_scheduler_kwargs"] == {"num_cycles": 2, "power": 0.5}


@pytest.mark.parametrize(
    ("algorithm", "rate", "warmup", "epochs"), [("osft", 5e-6, 0, 1), ("sft", 5e-6, 0, 1), ("lora_sft", 2e-4, 10, 3)]
)
def test_none_means_what_the_component_says(algorithm: str, rate: float, warmup: int, epochs: int) -> None:
    sent = keywords(algorithm)
    assert (sent["learning_rate"], sent["warmup_steps"], sent["num_epochs"]) == (rate, warmup, epochs)


def test_extra_args_may_not_replace_what_the_operator_sets() -> None:
    with pytest.raises(UserError, match="learning_rate, save_model"):
        algorithms.with_extra_args(
            TrainingSpec(
                algorithm="lora_sft",
                base_model="m",
                dataset="d",
                work_dir="w",
                extra_args={"learning_rate": 1.0, "save_model": False, "max_grad_norm": 1},
            ),
            keywords("lora_sft"),
        )
