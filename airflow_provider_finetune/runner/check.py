"""Everything that can be known before the first training step, cheapest first; the base model's weights come last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import (
    algorithms,
    backends,
    forecast,
    masking,
    memory,
    merging,
    model,
    planning,
    preconditions,
    publishing,
    report,
    storage,
    targets,
)
from airflow_provider_finetune.runner.accepted import refuse_a_trl_that_does_not_fit, refuse_what_would_be_dropped
from airflow_provider_finetune.runner.data import rows
from airflow_provider_finetune.runner.data.locate import locate
from airflow_provider_finetune.runner.data.rows import Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.fates import effective_parameters, without_effect
from airflow_provider_finetune.runner.forecast import Part
from airflow_provider_finetune.runner.handover import Handover
from airflow_provider_finetune.runner.masking import Encoding
from airflow_provider_finetune.runner.model import BaseModel
from airflow_provider_finetune.runner.nodes import placement
from airflow_provider_finetune.runner.prepared import Prepared
from airflow_provider_finetune.runner.report import Report
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_NO_CHATS = ("text", "tokens")


def check(
    spec: TrainingSpec, work_dir: WorkDir, events: Events, *, to_train: bool = True, every_row: bool = False
) -> Prepared:
    """Check and prepare one training.

    :param spec: what is to be trained.
    :param work_dir: where rows and tokens go.
    :param events: takes the report of what was found.
    :param to_train: prepare the training as well: tokens of all rows, and the base model's weights.
    :param every_row: lengths and mask of all rows at once, instead of a sample drawn evenly.
    :raises RunFailed: something would make the training fail or its model wrong.
    """
    trust = algorithms.trusts_remote_code(spec)
    algorithms.refuse_collisions(spec)
    preconditions.ensure_outputs_writable(spec, work_dir, events)
    preconditions.ensure_installed()
    device = preconditions.find_device(spec)
    base = model.locate(spec.base_model, scratch=work_dir.scratch(), say=events.say, trust_remote_code=trust)
    events.report(base_model={"name": base.reference, **({"revision": base.revision} if base.revision else {})})
    data_dir = _data_dir(spec, work_dir)
    form = "tokens" if spec.parameters.get("use_processed_dataset") else ""
    structure = _read(spec.dataset, "dataset", data_dir / "rows.jsonl", work_dir, events, trust, form)
    events.report(dataset=structure.summary())
    report.tell_data(structure, spec.max_dropped, events)
    with events.timed("seconds_import"):
        backend = preconditions.import_libraries(spec.algorithm, device)
    tokenizer = model.load_tokenizer(base, chats=structure.form not in _NO_CHATS, trust_remote_code=trust)
    if spec.algorithm == "sft" and device == "cuda":
        model.ensure_instructlab_takes(tokenizer, base)
    for sentence in without_effect(spec, device):
        events.warn(sentence)
    return _Check(spec, work_dir, data_dir, events, structure, base, tokenizer, device, backend).run(
        to_train=to_train, every_row=every_row
    )


class _Check:
    """What is checked once data, small files of the model, and libraries are there."""

    def __init__(
        self,
        spec: TrainingSpec,
        work_dir: WorkDir,
        data_dir: Path,
        events: Events,
        structure: Structure,
        base: BaseModel,
        tokenizer: Any,
        device: str,
        backend: str,
    ) -> None:
        self._spec, self._work_dir, self._data_dir, self._events = spec, work_dir, data_dir, events
        self._structure, self._base, self._tokenizer, self._device = structure, base, tokenizer, device
        self._trust = algorithms.trusts_remote_code(spec)
        self._parameters = effective_parameters(spec)
        self._encoding = _encoding(spec.algorithm, self._parameters)
        self._sent = self._keywords(backend)
        self._by_library = self._sent.get("dataset_type", "passthrough") != "passthrough"

    def run(self, *, to_train: bool, every_row: bool) -> Prepared:
        found = self._look(None if every_row else report.SAMPLE)
        steps = self._judge(found)
        if self._by_library and self._spec.show_samples:
            self._events.warn("show_samples has no effect: training-hub itself makes tokens of the chats")
        elif self._spec.show_samples:
            samples = rows.rows(self._structure.path)
            report.show_samples(self._spec.show_samples, samples, self._tokenizer, self._encoding, self._events)
        if "eval_data_path" in self._sent:
            self._sent["eval_data_path"] = self._prepare_evaluation(self._sent["eval_data_path"])
        self._foresee(found, steps)
        if to_train and found.sampled:
            found = self._look(None)
            self._judge(found)
            self._ensure_arguments_fit(found)
        base = model.fetch_weights(self._base, self._events.say) if to_train else self._base
        return Prepared(base, self._tokenizer.chat_template, self._sent, self._device, self._structure.sha256)

    def _keywords(self, backend: str) -> dict[str, Any]:
        spec = self._spec
        patterns = targets.patterns_of(self._base.model_type) if spec.algorithm == "osft" else None
        sent = algorithms.keywords(
            spec,
            device=self._device,
            model_path=self._base.path,
            checkpoints=str(self._work_dir.checkpoints),
            data_dir=str(self._data_dir),
            patterns=patterns,
            chats=self._structure.form not in _NO_CHATS,
        )
        sent = algorithms.with_extra_args(spec, sent)
        sent["data_path"] = str(self._handover(sent, "train").path)
        refuse_what_would_be_dropped(spec.algorithm, backend, sent)
        return sent

    def _handover(self, sent: dict[str, Any], name: str) -> Handover:
        """Return the file that the backend reads: our own take parquet, training-hub's JSON lines."""
        by_library = sent.get("dataset_type", "passthrough") != "passthrough"
        lines = by_library or (self._device == "cuda" and self._spec.algorithm != "lora_sft")
        if lines and self._spec.algorithm == "sft":
            # instructlab-training opens the file of this name in data_output_dir, whatever data_path says.
            name = "data"
        return Handover(self._data_dir / f"{name}.{'jsonl' if lines else 'parquet'}", chats=by_library)

    def _look(self, wanted: int | None) -> Report:
        """Tokenise ``wanted`` rows drawn evenly, or all; the tokens of a sample are not kept."""
        structure, target = self._structure, None
        if wanted and wanted < structure.usable:
            chosen, total = rows.evenly(structure.path, structure.usable, wanted), wanted
        else:
            chosen, total, target = rows.rows(structure.path), structure.usable, self._handover(self._sent, "train")
        chosen = report.followed(chosen, total, self._events)
        return Report(structure, masking.tokenise(chosen, self._tokenizer, self._encoding, target))

    def _judge(self, found: Report) -> int:
        """Tell what was found, refuse what cannot be trained on, and return the steps that will come."""
        self._events.report(dataset=found.summary(trained_whole=self._by_library))
        report.tell_tokens(found, self._parameters["max_seq_len"], self._spec.max_dropped, self._events)
        if self._by_library:
            asked = "dataset_type" in self._spec.extra_args
            report.tell_library_mask(self._sent["dataset_type"], found, self._events, asked=asked)
        else:
            report.tell_mask(found, self._events)
        # Of a sample the number of rows is an estimate.
        meets = self._device == "cuda" and not found.sampled
        algorithms.ensure_a_model_is_saved(self._spec, found.rows, meets=meets)
        processes = placement(self._spec, os.environ).processes
        planning.ensure_processes_can_train(self._spec, self._device, processes)
        return planning.plan_steps(
            self._spec, self._sent, found, self._parameters, self._events, device=self._device, processes=processes
        )

    def _foresee(self, found: Report, steps: int) -> None:
        """Hold arguments, disk and memory against what there is."""
        spec, base = self._spec, self._base
        trained = self._ensure_arguments_fit(found)
        if spec.algorithm == "osft":
            targets.tell(trained, self._sent["target_patterns"], self._parameters["unfreeze_rank_ratio"], self._events)
        counted = forecast.sizes(trained)
        beside = forecast.model_files(Path(base.path))
        merged, copied = forecast.published(spec.algorithm, spec.output_kind, counted, base.weight_bytes, beside)
        checkpoints = forecast.checkpoints(spec.algorithm, self._sent, counted, beside, rows=found.rows, steps=steps)
        parts = [
            Part("base model's weights", Path(base.path), 0 if base.fetched else base.weight_bytes),
            Part("tokenised data", self._data_dir, forecast.tokenised(spec.algorithm, found.tokens)),
            Part("checkpoints", self._work_dir.checkpoints, checkpoints),
            Part("merged model" if spec.algorithm == "lora_sft" else "model", self._work_dir.path, merged),
            *(Part("published model", place, copied) for place in self._published_to()),
        ]
        forecast.ensure_disk_suffices(parts, self._events)
        if spec.output_kind != "adapter":
            merging.ensure_mergeable(base.path, trust_remote_code=self._trust)
            needed = merging.memory_needed(base.weight_bytes)
            forecast.ensure_memory_suffices(needed, self._events, available=memory.available())

    def _published_to(self) -> Iterable[Path]:
        places = publishing.targets(self._spec, self._work_dir.model).values()
        return [place.path for place in places if place.path][:1]

    def _ensure_arguments_fit(self, found: Report) -> Any:
        """Find before the weights are touched what the libraries would find after; return the model without weights."""
        adapter = None
        if self._device == "cuda" and self._spec.algorithm == "lora_sft":
            refuse_a_trl_that_does_not_fit(self._sent)
        try:
            if self._device == "cpu":
                _ensure_numbers(backends.of(self._spec.algorithm).training_arguments(self._sent))
            if self._spec.algorithm == "lora_sft":
                adapter = backends.of("lora_sft").lora_config(self._sent)
        except Exception as error:
            raise UserError(
                "arguments_refused",
                f"TRL or PEFT refuses the training's arguments: {error}",
                "Correct training_lr_scheduler or the values in extra_args; their types are those of training-hub",
            ) from error
        return model.ensure_fits(self._base, adapter, found.tokenised.longest, trust_remote_code=self._trust)

    def _prepare_evaluation(self, uri: str) -> str:
        """Read, tell and hand over the rows that the model is evaluated on, by the rules of the training's."""
        argument, events = "extra_args['eval_data_path']", self._events
        structure = _read(uri, argument, self._data_dir / "eval-rows.jsonl", self._work_dir, events, self._trust)
        report.tell_data(structure, self._spec.max_dropped, events)
        target = self._handover(self._sent, "eval")
        found = Report(structure, masking.tokenise(rows.rows(structure.path), self._tokenizer, self._encoding, target))
        report.tell_tokens(found, self._parameters["max_seq_len"], self._spec.max_dropped, events)
        if self._by_library:
            report.tell_library_mask(self._sent["dataset_type"], found, events, asked=True)
        return str(target.path)


def _ensure_numbers(arguments: Any) -> None:
    for item in fields(arguments):
        # TRL checks no types; the optimizer would in its first step.
        if type(item.default) in (int, float) and isinstance(value := getattr(arguments, item.name), str):
            raise TypeError(f"{item.name}={value!r} must be a number")


def _read(
    uri: str, argument: str, target: Path, work_dir: WorkDir, events: Events, trust: bool, form: str = ""
) -> Structure:
    """Bring a data set to one file of canonical rows; what was fetched for that is removed again."""
    fetched = work_dir.scratch() / f"fetched-{target.stem}"
    try:
        source = locate(uri, argument=argument, scratch=fetched, say=events.say, trust_remote_code=trust)
        return rows.read(source, target, events.say, form)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)


def _encoding(algorithm: str, parameters: dict[str, Any]) -> Encoding:
    return Encoding(
        parameters["max_seq_len"],
        drop_longer=algorithm != "lora_sft",
        unmask=bool(parameters.get("unmask_messages")),
    )


def _data_dir(spec: TrainingSpec, work_dir: WorkDir) -> Path:
    """Return where rows and tokens go: in a directory of this attempt, also where several were given one."""
    asked_for = spec.parameters.get("data_output_dir")
    directory = work_dir.processed(asked_for)
    if asked_for:
        storage.ensure_writable(directory, "training_data_output_dir")
    return directory
