"""LoRA by TRL for machines without CUDA, behind training-hub's own ``lora_sft``.

The settings are those of training-hub's unsloth backend, less what needs a GPU.
"""

from __future__ import annotations

from typing import Any

from training_hub import AlgorithmRegistry
from training_hub.algorithms.lora import JSONLLoggingCallback, UnslothLoRABackend

from airflow_provider_finetune.runner.backends import trl


class TRLLoRABackend(UnslothLoRABackend):
    """Backend ``trl`` of ``lora_sft``. Each keyword that it honours is read from ``params`` by its literal name."""

    def execute_training(self, algorithm_params: dict[str, Any]) -> dict[str, Any]:
        """Train, save the adapter and the tokenizer, and return model, tokenizer and trainer.

        :param algorithm_params: training-hub's keywords of ``lora_sft``.
        """
        from peft import get_peft_model
        from transformers import set_seed
        from trl import SFTTrainer

        params = algorithm_params
        # Before the adapter is drawn, so that the seed decides its initialisation as well.
        set_seed(params.get("seed", 3407))
        model, tokenizer = trl.load(params["model_path"], trust_remote_code=params.get("trust_remote_code", False))
        # Embeddings that the key-value cache keeps are of no use while training.
        model.config.use_cache = False
        model = get_peft_model(model, lora_config(params))
        evaluation = params.get("eval_data_path")
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=training_arguments(params),
            train_dataset=self._dataset(params, params["data_path"], tokenizer),
            eval_dataset=self._dataset(params, evaluation, tokenizer) if evaluation else None,
        )
        files = JSONLLoggingCallback(params["ckpt_output_dir"])
        trl.train(trainer, files, params.get("callbacks"), going_on=params.get("enable_jit_checkpoint", False))
        if params.get("save_model", True) and trainer.is_world_process_zero():
            trainer.save_model(params["ckpt_output_dir"])
            tokenizer.save_pretrained(params["ckpt_output_dir"])
        return {"model": model, "tokenizer": tokenizer, "trainer": trainer}

    def _dataset(self, params: dict[str, Any], path: str, tokenizer: Any) -> Any:
        """Read rows as training-hub does: passed through, or rendered by its own ways of chat and Alpaca rows."""
        names = {
            "dataset_type": params.get("dataset_type"),
            "field_messages": params.get("field_messages"),
            "field_instruction": params.get("field_instruction"),
            "field_input": params.get("field_input"),
            "field_output": params.get("field_output"),
        }
        chosen = {name: value for name, value in names.items() if value is not None}
        return self._prepare_dataset({"data_path": path, **chosen}, tokenizer)


def lora_config(params: dict[str, Any]) -> Any:
    """Return PEFT's configuration of the adapter. Without target modules all linear layers but the head get one."""
    from peft import LoraConfig

    optional = {
        "init_lora_weights": params.get("init_lora_weights"),
        "rank_pattern": params.get("rank_pattern"),
        "alpha_pattern": params.get("alpha_pattern"),
        "loftq_config": params.get("loftq_config"),
    }
    return LoraConfig(
        r=params.get("lora_r", 16),
        lora_alpha=params.get("lora_alpha", 32),
        lora_dropout=params.get("lora_dropout", 0.0),
        target_modules=params.get("target_modules") or "all-linear",
        use_rslora=params.get("use_rslora", False),
        use_dora=params.get("use_dora", False),
        bias="none",
        task_type="CAUSAL_LM",
        **{name: value for name, value in optional.items() if value is not None},
    )


def training_arguments(params: dict[str, Any]) -> Any:
    """Return TRL's configuration with the defaults of training-hub's ``lora_sft``."""
    accumulation = params.get("gradient_accumulation_steps", 1)
    effective = params.get("effective_batch_size")
    micro = trl.micro_batch_size(effective, accumulation) if effective else params.get("micro_batch_size", 2)
    return trl.arguments(
        output_dir=params["ckpt_output_dir"],
        seed=params.get("seed", 3407),
        max_length=params.get("max_seq_len", 2048),
        num_train_epochs=params.get("num_epochs", 3),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=params.get("per_device_eval_batch_size", micro),
        gradient_accumulation_steps=accumulation,
        learning_rate=params.get("learning_rate", 2e-4),
        lr_scheduler_type=params.get("lr_scheduler", "linear"),
        warmup_steps=params.get("warmup_steps", 10),
        weight_decay=params.get("weight_decay", 0.01),
        max_grad_norm=params.get("max_grad_norm", 0.3),
        bf16=params.get("bf16", False),
        fp16=params.get("fp16", False),
        logging_steps=params.get("logging_steps", 1),
        save_strategy="epoch" if params.get("checkpoint_at_epoch") else "steps",
        save_steps=params.get("save_steps", 500),
        save_total_limit=params.get("save_total_limit", 3),
        eval_strategy="steps" if params.get("eval_data_path") else "no",
        eval_steps=params.get("eval_steps", 500),
        dataset_text_field="text",
    )


def register() -> str:
    """Make the backend known to training-hub and return its name."""
    AlgorithmRegistry.register_backend("lora_sft", trl.NAME, TRLLoRABackend)
    return trl.NAME
