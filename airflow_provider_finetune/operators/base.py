"""``TrainingOperator``: the life of one training task, and the arguments that say where and how it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import Asset, BaseOperator

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.contract.parameters import TrainingParameters
from airflow_provider_finetune.contract.uris import secrets_in
from airflow_provider_finetune.exceptions import FineTuneError, InvalidParameters
from airflow_provider_finetune.operators.arguments import problems_of
from airflow_provider_finetune.operators.assets import assets_without_scheme, plain
from airflow_provider_finetune.operators.cluster_places import CONFIGURED_ROOT
from airflow_provider_finetune.operators.connections import mask
from airflow_provider_finetune.operators.delivery import error_of, event_of, result_of
from airflow_provider_finetune.operators.pod_rules import CONFIGURED_IMAGE
from airflow_provider_finetune.operators.task import TrainingTask, state_of, task_instance
from airflow_provider_finetune.settings import setting, switched_on

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_finetune.operators.cluster_run import ClusterRun
    from airflow_provider_finetune.operators.local_run import LocalRun

_ARGUMENTS = (
    "kubernetes_conn_id",
    "namespace",
    "image",
    "runtime",
    "runtime_kind",
    "queue_name",
    "gpu_resource",
    "secrets",
    "runner",
    "local_python",
    "queue_timeout",
    "startup_timeout",
    "training_timeout",
    "progress_interval",
    "resume",
    "on_finish",
    "keep",
    "fail_fast",
    "max_dropped",
    "show_samples",
    "pod_operator_arguments",
    "extra_args",
    "deferrable",
)


class TrainingOperator(BaseOperator):
    """Train one model; the base of :class:`FineTuneOperator` and :class:`LoRAOperator`.

    All arguments are keyword-only. An :class:`~airflow.sdk.Asset` stands for its URI and a path object for its text.
    What is wrong with them is said while the DAG file is parsed, as far as it is known there, and else before anything
    starts. Arguments of a cluster have no effect with ``launcher="local"``.

    :param documented: the subclass's own inputs by name; each becomes an attribute.
    :param launcher: what runs the training: ``"trainjob"`` (Kubeflow Trainer), ``"pod"`` (one GPU pod) or ``"local"``
        (a process on the worker's machine). ``None`` is ``[finetune] launcher``, else ``"trainjob"``.
    :param kubernetes_conn_id: connection of the cncf.kubernetes provider (templated).
    :param namespace: namespace of the job. ``None`` is the connection's, else the worker pod's own (templated).
    :param image: image with training-hub. ``None`` is ``[finetune] image``, else the runtime's; ``launcher="pod"``
        needs one (templated).
    :param runtime: name of the Kubeflow training runtime, for ``launcher="trainjob"`` (templated).
    :param runtime_kind: ``"ClusterTrainingRuntime"`` or ``"TrainingRuntime"``.
    :param queue_name: Kueue local queue. ``None`` queues nowhere (templated).
    :param gpu_resource: resource name of a GPU, e.g. ``"amd.com/gpu"`` or a MIG slice (templated).
    :param secrets: where each secret environment variable lies: ``{"HF_TOKEN": "<secret name>/<key>"}``, and with
        ``launcher="local"`` ``{"HF_TOKEN": "conn:<connection id>"}``, which takes that connection's password. ``None``
        is none (templated).
    :param runner: how the runner gets into the container: ``"configmap"``, ``"inline"`` or ``"image"``.
    :param local_python: interpreter with training-hub for ``launcher="local"``: a path or a name on ``PATH``. ``None``
        is ``[finetune] local_python``, else the worker's own (templated).
    :param queue_timeout: longest time suspended in a queue: timedelta or seconds. ``None`` has no limit.
    :param startup_timeout: longest time from there to the start of the program: timedelta or seconds. ``None`` has no
        limit.
    :param training_timeout: longest time of the program itself, also locally: timedelta or seconds. ``None`` has no
        limit.
    :param progress_interval: time between two progress lines: timedelta or seconds.
    :param resume: ``"auto"`` lets a training that is ended by a signal save a checkpoint in the grace period (30 s
        locally, 300 s in a pod and in a TrainJob of Trainer 2.3) and a later try of the same training go on from it,
        on a ``pvc_path`` that outlives the pod; after a success, or where data or parameters have changed, it starts
        anew. ``"never"`` saves none and starts anew, ``"require"`` fails where there is nothing to go on from
        (templated).
    :param on_finish: what becomes of the job object: ``"delete_succeeded"``, ``"delete"`` or ``"keep"``.
    :param keep: which files of the run stay: ``"model"``, ``"checkpoints"`` or ``"all"``.
    :param fail_fast: end at once when the cause of a stuck start is the user's to mend.
    :param max_dropped: share of the rows, 0 to 1, that may be dropped before it is an error.
    :param show_samples: number of samples that are printed with the trained text marked; they stay out of the outcome.
    :param pod_operator_arguments: further ``KubernetesPodOperator`` arguments by its own names, for ``launcher="pod"``,
        e.g. ``pod_template_file`` or ``init_containers``; one that this operator sets is an error. ``None`` is none
        (templated).
    :param extra_args: further training-hub keywords by its own names. ``None`` is none (templated).
    :param deferrable: wait in the triggerer without a worker slot. ``None`` is ``[finetune] deferrable``, else true.
        No effect with ``launcher="local"``, which blocks.
    :param kwargs: ``BaseOperator``'s own arguments.
    """

    record: ClassVar[type[TrainingParameters]]
    """The documented ``training_`` parameters of the subclass."""

    template_fields: Sequence[str] = (
        "kubernetes_conn_id",
        "namespace",
        "image",
        "runtime",
        "queue_name",
        "gpu_resource",
        "secrets",
        "local_python",
        "resume",
        "pod_operator_arguments",
        "extra_args",
    )

    _run: LocalRun | ClusterRun | None = None

    def __init__(
        self,
        *,
        documented: dict[str, Any],
        launcher: str | None = None,
        kubernetes_conn_id: str = "kubernetes_default",
        namespace: str | None = None,
        image: str | None = None,
        runtime: str = "training-hub",
        runtime_kind: str = "ClusterTrainingRuntime",
        queue_name: str | None = None,
        gpu_resource: str = "nvidia.com/gpu",
        secrets: dict[str, str] | None = None,
        runner: str = "configmap",
        local_python: str | None = None,
        queue_timeout: timedelta | float | None = None,
        startup_timeout: timedelta | float | None = timedelta(minutes=30),
        training_timeout: timedelta | float | None = None,
        progress_interval: timedelta | float = 30,
        resume: str = "auto",
        on_finish: str = "delete_succeeded",
        keep: str = "model",
        fail_fast: bool = True,
        max_dropped: float = 0.05,
        show_samples: int = 0,
        pod_operator_arguments: dict[str, Any] | None = None,
        extra_args: dict[str, Any] | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.launcher = launcher
        self.kubernetes_conn_id = kubernetes_conn_id
        self.namespace = namespace
        self.image = image
        self.runtime = runtime
        self.runtime_kind = runtime_kind
        self.queue_name = queue_name
        self.gpu_resource = gpu_resource
        self.secrets = secrets
        self.runner = runner
        self.local_python = plain(local_python)
        self.queue_timeout = queue_timeout
        self.startup_timeout = startup_timeout
        self.training_timeout = training_timeout
        self.progress_interval = progress_interval
        self.resume = resume
        self.on_finish = on_finish
        self.keep = keep
        self.fail_fast = fail_fast
        self.max_dropped = max_dropped
        self.show_samples = show_samples
        self.pod_operator_arguments = pod_operator_arguments
        self.extra_args = extra_args
        self.deferrable = deferrable
        self._documented = tuple(documented)
        for name, value in documented.items():
            setattr(self, name, plain(value))
        model = documented["output_model"]
        self._model_asset = model if isinstance(model, Asset) else None
        if self._model_asset is not None and self._model_asset not in self.outlets:
            self.outlets = [*self.outlets, self._model_asset]
        self._check(assets_without_scheme(documented))

    def algorithm(self, values: Mapping[str, Any]) -> str:
        """Return training-hub's name of the algorithm.

        :param values: the checked values of the record.
        :raises NotImplementedError: the subclass lacks it.
        """
        raise NotImplementedError

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render as Airflow does, and keep what gives access to a URL out of logs and of the rendered fields.

        Airflow 3.1 masks what it logs, and shows rendered fields as they are.

        :param content: a template field, or a part of one.
        :param args: Airflow's.
        :param kwargs: Airflow's.
        """
        rendered = super().render_template(content, *args, **kwargs)
        if isinstance(rendered, str):
            mask(*secrets_in(rendered))
        return rendered

    def execute(self, context: Context) -> dict[str, Any]:
        """Train, and return what the next task needs: the model and how the training went.

        :param context: Airflow's.
        :raises InvalidParameters: an argument is wrong; not retried.
        :raises TrainingFailed: there is no model; retried unless only the DAG author can mend it.
        """
        values = self._check()
        self._check_outlet()
        task = self._resolved(values, context)
        if task.arguments["launcher"] == "local":
            from airflow_provider_finetune.operators.local_run import LocalRun

            self._run = here = LocalRun(task, self.log, self.executor)
            return self._finish(here.run(), context)
        self._run = run = self._cluster_run(context, values)
        run.submit()
        return self._wait(run, context)

    def as_pod_operator_arguments(self, context: Context | None = None) -> dict[str, Any]:
        """Return the arguments of the ``KubernetesPodOperator`` from which ``launcher="pod"`` has its pod.

        They are those of one try: name and labels are the task instance's. No request is made.

        :param context: Airflow's; ``None`` is that of the task that runs now.
        :raises InvalidParameters: an argument is wrong.
        """
        from airflow.sdk import get_current_context

        run = self._cluster_run(context or get_current_context(), self._check())
        return run.pod_operator_arguments()

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on where the trigger has seen the end of the workload, and return what :meth:`execute` returns.

        :param context: Airflow's.
        :param event: payload of :class:`~airflow_provider_finetune.triggers.TrainingTrigger`'s event.
        :raises TrainingFailed: there is no model; retried unless only the DAG author can mend it.
        """
        run = self._cluster_run(context, self._check(), event["workload"])
        if event.get("recover") and run.can_recover:
            self.log.warning("The training is complete and has left no word, so its outcome is looked for")
            self._run = run
            run.submit(recover=True)
            return self._wait(run, context)
        outcome = run.named(Outcome.from_json(json.dumps(event["outcome"])))
        try:
            result = self._finish(outcome, context, event, run)
        except FineTuneError:
            run.settle(event, succeeded=False)
            raise
        if run.stays(event, succeeded=True):
            run.settle(event, succeeded=True)
        else:
            run.mark_delivered()
            self.on_success_callback = [*self.on_success_callback, partial(self._clear_up, run, event)]
        return result

    def _clear_up(self, run: ClusterRun, event: dict[str, Any], context: Context) -> None:
        """Delete what a success makes useless, once Airflow has noted it; a try after a crash before needs it all.

        A worker that hung, was missed and goes on comes here as well: then another try has the job by now.
        """
        state = state_of(context["ti"])
        if state == "success":
            run.settle(event, succeeded=True)
        else:
            self.log.warning("Airflow has not noted this success (%s): its job is left to the next try", state)

    def on_kill(self) -> None:
        """End the training: a process of this machine with all it started, a workload with its pods."""
        if self._run is not None:
            self._run.end()

    def _check(self, problems: Sequence[Problem] = ()) -> dict[str, Any]:
        values, found = problems_of(self.record, self._inputs(), self._arguments())
        if problems or found:
            raise InvalidParameters(self.task_id, [*problems, *found])
        return values

    def _inputs(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._documented}

    def _arguments(self) -> dict[str, Any]:
        return {
            "launcher": self.launcher or setting("launcher") or "trainjob",
            CONFIGURED_ROOT: setting("pvc_path"),
            CONFIGURED_IMAGE: setting("image"),
            **{name: getattr(self, name) for name in _ARGUMENTS},
        }

    def _check_outlet(self) -> None:
        """Refuse an Asset that the scheduler does not know as an outlet: it would drop the event in silence."""
        asset, dag = self._model_asset, self.dag
        if asset is not None and dag is not None and asset not in dag.get_task(self.task_id).outlets:
            rule = "the scheduler does not see an Asset in output_model of a mapped task"
            cure = "Name it in outlets=[...] of .partial() as well"
            raise InvalidParameters(self.task_id, [Problem("output_model", asset.uri, rule, cure)])

    def _resolved(self, values: dict[str, Any], context: Context) -> TrainingTask:
        return TrainingTask(
            instance=task_instance(context["ti"]),
            algorithm=self.algorithm(values),
            record=self.record,
            documented=self._inputs(),
            values=values,
            arguments=self._arguments(),
        )

    def _cluster_run(
        self, context: Context, values: dict[str, Any], workload: Mapping[str, str] | None = None
    ) -> ClusterRun:
        from airflow_provider_finetune.operators.cluster_run import ClusterRun
        from airflow_provider_finetune.operators.pod_operator import PodMaker

        pods = PodMaker(self, context, self.kubernetes_conn_id, self.pod_operator_arguments or {})
        return ClusterRun(self._resolved(values, context), self.log, workload, pods=pods)

    def _wait(self, run: ClusterRun, context: Context) -> dict[str, Any]:
        """Defer until the workload has ended, or wait for it here."""
        if switched_on("deferrable", default=True) if self.deferrable is None else self.deferrable:
            self.defer(trigger=run.trigger(self._deadline(context)), method_name="execute_complete")
        self.log.info("This task holds its worker slot until the training ends (deferrable=False)")
        return self.execute_complete(context, run.wait())

    def _deadline(self, context: Context) -> float | None:
        """Return when ``execution_timeout`` is over, which Airflow 3 does not look at while a task is deferred."""
        if self.execution_timeout is None:
            return None
        return (context["ti"].start_date + self.execution_timeout).timestamp()

    def _finish(
        self, outcome: Outcome, context: Context, event: Mapping[str, Any] | None = None, run: ClusterRun | None = None
    ) -> dict[str, Any]:
        """Deliver a model to XCom and to the asset, or raise why there is none."""
        if outcome.status != "succeeded" or outcome.model_uri is None:
            if event is None or run is None:
                raise error_of(outcome)
            raise error_of(outcome, event, stays=run.stays(event, succeeded=False), gpus=run.gpus)
        result = result_of(outcome, self._arguments()["launcher"], event["workload"] if event else None)
        for key in ("model_uri", "metrics", "loss_chart"):
            context["ti"].xcom_push(key=key, value=result[key])
        if self._model_asset is not None:
            context["outlet_events"][self._model_asset].extra = event_of(outcome)
        return result
