"""``LoRAOperator``: LoRA and QLoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_finetune.contract.parameters import ALGORITHMS, LoRAParameters, TrainingParameters
from airflow_provider_finetune.operators.base import TrainingOperator
from airflow_provider_finetune.operators.signature import NOT_DOCUMENTED, documented_names

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from airflow_provider_finetune.operators.signature import Names, Number, Pairs, Place, Switch, Text, WholeNumber


class LoRAOperator(TrainingOperator):
    """Fine-tune a language model with LoRA: a small adapter is trained, and the base model stays as it is.

    Takes the inputs of the pipelines component ``lora`` by name and default, and ``output_kind``. Numbers and switches
    may be templates or upstream results: the text that comes out is read as what the parameter is. Where and how to run
    (``launcher``, ``secrets``, timeouts, ``extra_args``, ...) is documented at
    :class:`~airflow_provider_finetune.operators.base.TrainingOperator`. "Locally" is ``launcher="local"``; "on a CPU"
    is where nobody asked for a GPU or the machine has none.

    .. code-block:: python

        train = LoRAOperator(
            task_id="train",
            dataset=prepare.output,
            training_base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
            training_lora_r=8,
            launcher="local",
        )

    A value that would silently give no model or another one than expected is an error; any other value without effect
    is named once in the task log.

    :param pvc_path: root of all files of the run: a directory, or ``pvc://<claim>/<path>`` on a cluster. A task
        instance works in ``<pvc_path>/<dag>/<run>/<task>``, a mapped one in its map index below that. ``None``: locally
        ``[finetune] work_dir``, else ``$AIRFLOW_HOME/finetune``; on a cluster ``[finetune] pvc_path``, without which
        ``output_model`` must be remote, as what a pod writes to its own disk is lost with it (templated).
    :param output_model: where to publish the model: a directory, its ``file://`` or, on a cluster,
        ``pvc://<claim>/<path>`` URI, a directory of a store such as ``s3://<bucket>/<path>`` (any scheme that fsspec
        writes), or an Asset. An Asset gets an event with URI and metrics, and must stand in ``outlets`` of a
        ``.partial()`` as well. Mapped instances publish in their map index below it. ``None``: it stays in the work
        directory (templated).
    :param output_metrics: where to publish the metrics as JSON: a file, a directory (``metrics.json``), a URI of either
        or an Asset, with the schemes of ``output_model``. ``None``: they stay in the work directory, and lie beside a
        remote model where a pod has no ``pvc_path`` (templated).
    :param output_loss_chart: where to publish the loss chart as one HTML page: a file, a directory (``loss.html``), a
        URI of either or an Asset, with the schemes of ``output_model``. ``None``: it stays in the work directory, and
        lies beside a remote model where a pod has no ``pvc_path`` (templated).
    :param dataset: training data. Place: a file or directory by path, ``file://`` or, on a cluster,
        ``pvc://<claim>/<path>``; ``https://``; ``s3://`` or another scheme that fsspec reads; a HuggingFace id,
        ``<org>/<name>@<revision>?config=<name>&split=<name>``, of which all but the name may be left out (``train`` is
        the split); an Asset; the output of an upstream task. Format: JSONL, JSON, CSV or parquet, also gzipped, or a
        directory of ``save_to_disk``. Rows: chats (``messages``), ShareGPT (``conversations``), Alpaca
        (``instruction``, ``input``, ``output``), ``prompt`` and ``completion``, or ``text``. ``None`` is an error:
        there is nothing to train on (templated).
    :param training_base_model: model to start from, with weights, tokenizer and chat template: a HuggingFace id,
        ``<org>/<name>@<revision>`` with or without ``hf://``; a directory by path, ``file://`` or, on a cluster,
        ``pvc://<claim>/<path>``; ``s3://`` or another scheme that fsspec reads; an image with a model,
        ``oci://<registry>/<name>:<tag>`` (templated).
    :param training_effective_batch_size: samples of one optimizer step, over all GPUs of all workers: micro-batch x
        accumulation x processes (templated).
    :param training_max_tokens_per_gpu: most tokens of a micro-batch on one GPU, at least ``training_max_seq_len``;
        lower it when memory runs out. LoRA has no such limit on a GPU; on a CPU it limits the micro-batch, with 4,096
        tokens at most whatever it allows (templated).
    :param training_max_seq_len: most tokens of one sample. OSFT and SFT drop longer ones, LoRA cuts them; the task log
        says how many (templated).
    :param training_learning_rate: highest learning rate, above 0. ``None``: 5e-6 for OSFT and SFT, 2e-4 for LoRA
        (templated).
    :param training_lr_warmup_steps: optimizer steps in which the learning rate rises to its highest. ``None``: 0 for
        OSFT and SFT, 10 for LoRA (templated).
    :param training_checkpoint_at_epoch: save a checkpoint at the end of each epoch. ``None``: yes for SFT, whose model
        is such a checkpoint, and no for OSFT and LoRA. LoRA on a GPU: no effect, a checkpoint is saved every 500 steps
        (templated).
    :param training_num_epochs: passes over the data, at least 1. ``None``: 1 for OSFT and SFT, 3 for LoRA (templated).
    :param training_data_output_dir: directory for the tokenised data. ``None``: in the work directory (templated).
    :param training_envs: environment variables of the training, as ``KEY=VAL,KEY=VAL`` or a dict (for values with a
        comma); they win over those that the provider sets, and ``$(NAME)`` in them stays as it is. Not for credentials:
        see ``secrets`` (templated).
    :param training_resource_cpu_per_worker: CPU cores of a worker, as a Kubernetes quantity such as ``"8"`` or
        ``"500m"``. Locally: no effect (templated).
    :param training_resource_gpu_per_worker: number of GPUs of a worker; 0 trains on the CPU. Locally: 0 does
        so too, any other number takes what the machine has (templated).
    :param training_resource_memory_per_worker: memory of a worker, as a Kubernetes quantity such as ``"32Gi"``.
        Locally: no effect (templated).
    :param training_resource_num_procs_per_worker: training processes of a worker: ``"auto"`` for one a GPU, or a number
        up to that of its GPUs. OSFT on a CPU: one (templated).
    :param training_resource_num_workers: number of workers (pods). Several need a ``ReadWriteMany`` claim and
        ``launcher="trainjob"``, and are an error with LoRA, which has not been seen on several yet. Locally: no effect
        (templated).
    :param training_metadata_labels: labels of the pods, as ``key=value,key=value`` or a dict. Locally: no effect
        (templated).
    :param training_metadata_annotations: annotations of the pods, as ``key=value,key=value`` or a dict. Locally: no
        effect (templated).
    :param training_lora_r: rank of the adapter, at least 1: more of it learns more and takes more memory (templated).
    :param training_lora_alpha: scaling of the adapter: its output is multiplied by ``alpha / r``, with rsLoRA by
        ``alpha / sqrt(r)`` (templated).
    :param training_lora_dropout: share of the adapter's inputs, from 0 to below 1, that is dropped while training
        (templated).
    :param training_lora_target_modules: names of the modules that get an adapter, as ``q_proj,v_proj`` or a list.
        Empty: training-hub's choice on a GPU, all linear layers but the head on a CPU (templated).
    :param training_lora_use_rslora: use rank-stabilized LoRA, whose scaling suits high ranks. ``None``: no (templated).
    :param training_lora_use_dora: use weight-decomposed LoRA (DoRA): closer to full fine-tuning, and slower. ``None``:
        no (templated).
    :param training_lora_load_in_4bit: quantise the base model to 4 bits (QLoRA), which needs a GPU: an error on a CPU,
        and together with ``training_lora_load_in_8bit``. ``None``: no (templated).
    :param training_lora_load_in_8bit: quantise the base model to 8 bits, which needs a GPU: an error on a CPU, and
        together with ``training_lora_load_in_4bit``. ``None``: no (templated).
    :param training_lora_bnb_4bit_quant_type: reserved: no effect, training-hub 0.11 cannot take it (templated).
    :param training_lora_bnb_4bit_compute_dtype: reserved: no effect, training-hub 0.11 cannot take it (templated).
    :param training_lora_bnb_4bit_use_double_quant: reserved: no effect, training-hub 0.11 cannot take it (templated).
    :param training_lora_sample_packing: train several short samples as one sequence. ``None``: yes. On a CPU: no
        effect, samples are trained side by side (templated).
    :param training_seed: random seed. ``None``: 42 for OSFT and SFT, 3407 for LoRA. LoRA on a GPU: it decides the first
        weights of the adapter, not the order of the data (templated).
    :param training_use_liger: use Liger kernels, which save GPU memory. ``None``: no. LoRA, or on a CPU: no
        effect (templated).
    :param training_lr_scheduler: course of the learning rate after the warm-up, by its transformers name such as
        ``"cosine"`` or ``"linear"``. ``None``: cosine for OSFT and SFT, linear for LoRA. SFT: another than cosine is an
        error (templated).
    :param kubernetes_config: what else the pods need, as a dict with the keys of ``dsl.TaskConfig`` (``volumes``,
        ``volume_mounts``, ``env``, ``node_selector``, ``tolerations``, ``affinity``) and ``env_from``,
        ``service_account_name``, ``security_context``, ``container_security_context``, ``image_pull_secrets``,
        ``priority_class_name``, ``scheduler_name``, ``termination_grace_period_seconds``; values as Kubernetes JSON or
        models of ``kubernetes.client``, in which nothing is rendered. Another key is an error, and so is what
        no TrainJob can carry (``env_from``, ``priority_class_name``, ``scheduler_name``): its runtime has it.
        ``None``: nothing. Locally: no effect (templated).
    :param output_kind: what is published: ``"adapter"``, a few megabytes that need the base model; ``"merged"``, the
        base model with the adapter merged into it, on the CPU, which takes memory and disk for the whole model;
        ``"both"``, in the directories ``adapter`` and ``merged`` below ``output_model`` (templated).
    """

    record: ClassVar[type[TrainingParameters]] = LoRAParameters

    def __init__(
        self,
        *,
        pvc_path: Place | None = None,
        output_model: Place | None = None,
        output_metrics: Place | None = None,
        output_loss_chart: Place | None = None,
        dataset: Place | None = None,
        training_base_model: Place = "Qwen/Qwen2.5-1.5B-Instruct",
        training_effective_batch_size: WholeNumber = 128,
        training_max_tokens_per_gpu: WholeNumber = 32000,
        training_max_seq_len: WholeNumber = 8192,
        training_learning_rate: Number | None = None,
        training_lr_warmup_steps: WholeNumber | None = None,
        training_checkpoint_at_epoch: Switch | None = None,
        training_num_epochs: WholeNumber | None = None,
        training_data_output_dir: Place | None = None,
        training_envs: Pairs = "",
        training_resource_cpu_per_worker: Text = "4",
        training_resource_gpu_per_worker: WholeNumber = 1,
        training_resource_memory_per_worker: Text = "32Gi",
        training_resource_num_procs_per_worker: WholeNumber = "auto",
        training_resource_num_workers: WholeNumber = 1,
        training_metadata_labels: Pairs = "",
        training_metadata_annotations: Pairs = "",
        training_lora_r: WholeNumber = 16,
        training_lora_alpha: WholeNumber = 32,
        training_lora_dropout: Number = 0.0,
        training_lora_target_modules: Names = "",
        training_lora_use_rslora: Switch | None = None,
        training_lora_use_dora: Switch | None = None,
        training_lora_load_in_4bit: Switch | None = None,
        training_lora_load_in_8bit: Switch | None = None,
        training_lora_bnb_4bit_quant_type: Text | None = None,
        training_lora_bnb_4bit_compute_dtype: Text | None = None,
        training_lora_bnb_4bit_use_double_quant: Switch | None = None,
        training_lora_sample_packing: Switch | None = None,
        training_seed: WholeNumber | None = None,
        training_use_liger: Switch | None = None,
        training_lr_scheduler: Text | None = None,
        kubernetes_config: Mapping[str, Any] | XComArg | None = None,
        output_kind: Text = "adapter",
        **kwargs: Any,
    ) -> None:
        documented = {name: value for name, value in dict(locals()).items() if name not in NOT_DOCUMENTED}
        super().__init__(documented=documented, **kwargs)

    template_fields: Sequence[str] = (*documented_names(__init__), *TrainingOperator.template_fields)

    def algorithm(self, values: Mapping[str, Any]) -> str:
        return ALGORITHMS["LORA"]
