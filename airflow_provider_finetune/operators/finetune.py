"""``FineTuneOperator``: OSFT and SFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_finetune.contract.parameters import ALGORITHMS, FineTuneParameters, TrainingParameters
from airflow_provider_finetune.operators.base import TrainingOperator
from airflow_provider_finetune.operators.signature import NOT_DOCUMENTED, documented_names

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from airflow_provider_finetune.operators.signature import Names, Number, Pairs, Place, Switch, Text, WholeNumber


class FineTuneOperator(TrainingOperator):
    """Fine-tune all of a language model with OSFT, which keeps what the model knows, or with SFT.

    SFT trains every weight. OSFT, the default, parts each targeted matrix by its singular values and trains only the
    directions that matter least; it forgets less, and takes more memory and time. On a CPU both train in float32.

    Takes the inputs of the pipelines component ``finetuning`` by name and default. Numbers and switches may be
    templates or upstream results: the text that comes out is read as what the parameter is. Where and how to run
    (``launcher``, ``secrets``, timeouts, ``extra_args``, ...) is documented at
    :class:`~airflow_provider_finetune.operators.base.TrainingOperator`. "Locally" is ``launcher="local"``; "on a CPU"
    is where nobody asked for a GPU or the machine has none.

    .. code-block:: python

        train = FineTuneOperator(
            task_id="train",
            dataset=prepare.output,
            training_algorithm="SFT",
            training_num_epochs=2,
            pvc_path="pvc://training/runs",
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
    :param training_algorithm: ``"OSFT"`` trains the least important ranks of each targeted weight matrix and keeps the
        rest; ``"SFT"`` trains all weights (templated).
    :param training_effective_batch_size: samples of one optimizer step, over all GPUs of all workers: micro-batch x
        accumulation x processes (templated).
    :param training_max_tokens_per_gpu: most tokens of a micro-batch on one GPU, at least ``training_max_seq_len``;
        lower it when memory runs out. LoRA has no such limit on a GPU; on a CPU it limits the micro-batch, with 4,096
        tokens at most whatever it allows (templated).
    :param training_max_seq_len: most tokens of one sample. OSFT and SFT drop longer ones, LoRA cuts them; the task log
        says how many (templated).
    :param training_learning_rate: highest learning rate, above 0. ``None``: 5e-6 for OSFT and SFT, 2e-4 for LoRA
        (templated).
    :param training_backend: backend of training-hub: ``"mini-trainer"`` for OSFT, ``"instructlab-training"`` for SFT.
        The default means the algorithm's own, so it need not be set; another one than that is an error (templated).
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
    :param training_unfreeze_rank_ratio: share of the ranks of each targeted matrix that OSFT trains, above 0 and below
        1. SFT: no effect (templated).
    :param training_osft_memory_efficient_init: no effect with training-hub 0.11, which decides itself how it loads the
        model (templated).
    :param training_target_patterns: parts of the names of the modules that OSFT trains, as ``a,b`` or a list. Empty:
        mini-trainer's choice for the model's architecture, told by its configuration. SFT: no effect (templated).
    :param training_seed: random seed. ``None``: 42 for OSFT and SFT, 3407 for LoRA. LoRA on a GPU: it decides the first
        weights of the adapter, not the order of the data (templated).
    :param training_use_liger: use Liger kernels, which save GPU memory. ``None``: no. LoRA, or on a CPU: no
        effect (templated).
    :param training_use_processed_dataset: the data is tokenised already, in rows of ``input_ids`` and ``labels``.
        ``None``: no. SFT: true is an error; it recognises such rows by themselves (templated).
    :param training_unmask_messages: train on the prompts as well, not on what the assistant says only. ``None``: no
        (templated).
    :param training_lr_scheduler: course of the learning rate after the warm-up, by its transformers name such as
        ``"cosine"`` or ``"linear"``. ``None``: cosine for OSFT and SFT, linear for LoRA. SFT: another than cosine is an
        error (templated).
    :param training_lr_scheduler_kwargs: options of the OSFT scheduler, as ``key=val,key=val`` or a dict. Empty: none.
        SFT: any is an error (templated).
    :param training_save_final_checkpoint: save the model of OSFT at the end of the training. ``None``: yes. False
        without ``training_checkpoint_at_epoch`` is an error, as no model would be left. SFT: no effect (templated).
    :param training_save_samples: save a checkpoint of SFT each time this many samples have been trained on. ``None`` or
        0: no. OSFT: no effect (templated).
    :param training_accelerate_full_state_at_epoch: save the optimizer's state of SFT with the checkpoint of each epoch,
        which takes several times the model's disk space. ``None``: no. OSFT: no effect (templated).
    :param training_fsdp_sharding_strategy: how FSDP spreads the model of SFT over the GPUs: ``"FULL_SHARD"``,
        ``"SHARD_GRAD_OP"``, ``"HYBRID_SHARD"`` or ``"NO_SHARD"``. ``None``: HYBRID_SHARD. On a CPU: no effect.
        OSFT: any is an error (templated).
    :param kubernetes_config: what else the pods need, as a dict with the keys of ``dsl.TaskConfig`` (``volumes``,
        ``volume_mounts``, ``env``, ``node_selector``, ``tolerations``, ``affinity``) and ``env_from``,
        ``service_account_name``, ``security_context``, ``container_security_context``, ``image_pull_secrets``,
        ``priority_class_name``, ``scheduler_name``, ``termination_grace_period_seconds``; values as Kubernetes JSON or
        models of ``kubernetes.client``, in which nothing is rendered. Another key is an error, and so is what
        no TrainJob can carry (``env_from``, ``priority_class_name``, ``scheduler_name``): its runtime has it.
        ``None``: nothing. Locally: no effect (templated).
    """

    record: ClassVar[type[TrainingParameters]] = FineTuneParameters

    def __init__(
        self,
        *,
        pvc_path: Place | None = None,
        output_model: Place | None = None,
        output_metrics: Place | None = None,
        output_loss_chart: Place | None = None,
        dataset: Place | None = None,
        training_base_model: Place = "Qwen/Qwen2.5-1.5B-Instruct",
        training_algorithm: Text = "OSFT",
        training_effective_batch_size: WholeNumber = 128,
        training_max_tokens_per_gpu: WholeNumber = 64000,
        training_max_seq_len: WholeNumber = 8192,
        training_learning_rate: Number | None = None,
        training_backend: Text = "mini-trainer",
        training_lr_warmup_steps: WholeNumber | None = None,
        training_checkpoint_at_epoch: Switch | None = None,
        training_num_epochs: WholeNumber | None = None,
        training_data_output_dir: Place | None = None,
        training_envs: Pairs = "",
        training_resource_cpu_per_worker: Text = "8",
        training_resource_gpu_per_worker: WholeNumber = 1,
        training_resource_memory_per_worker: Text = "32Gi",
        training_resource_num_procs_per_worker: WholeNumber = "auto",
        training_resource_num_workers: WholeNumber = 1,
        training_metadata_labels: Pairs = "",
        training_metadata_annotations: Pairs = "",
        training_unfreeze_rank_ratio: Number = 0.25,
        training_osft_memory_efficient_init: Switch = True,
        training_target_patterns: Names = "",
        training_seed: WholeNumber | None = None,
        training_use_liger: Switch | None = None,
        training_use_processed_dataset: Switch | None = None,
        training_unmask_messages: Switch | None = None,
        training_lr_scheduler: Text | None = None,
        training_lr_scheduler_kwargs: Pairs = "",
        training_save_final_checkpoint: Switch | None = None,
        training_save_samples: WholeNumber | None = None,
        training_accelerate_full_state_at_epoch: Switch | None = None,
        training_fsdp_sharding_strategy: Text | None = None,
        kubernetes_config: Mapping[str, Any] | XComArg | None = None,
        **kwargs: Any,
    ) -> None:
        documented = {name: value for name, value in dict(locals()).items() if name not in NOT_DOCUMENTED}
        super().__init__(documented=documented, **kwargs)

    template_fields: Sequence[str] = (*documented_names(__init__), *TrainingOperator.template_fields)

    def algorithm(self, values: Mapping[str, Any]) -> str:
        return ALGORITHMS[values["algorithm"]]
