"""What a DAG author gets wrong, when it is said, and that no retry repeats it.

Aspects: at parse, in execute after rendering, in a mapped task; launchers that are not there; places that a machine
does not have; every argument that says where and how to run.
"""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ('training_lora_r="abc"', "training_lora_r='abc': it must be a whole number"),
        ("dataset=None", "dataset=None: there is nothing to train on"),
        ('dataset=Asset("train")', "dataset='train': the URI of this Asset has no scheme"),
        ('pvc_path="pvc://claim/runs"', "file:///absolute/path"),
        ('output_model="pvc://claim/model"', "output_model='pvc://claim/model'"),
        ('training_base_model="pvc://claim/model"', "training_base_model='pvc://claim/model'"),
        ('pvc_path="file://runs/mine"', "pvc_path='file://runs/mine': what stands between file:// and the next slash"),
        ('output_model="file://models/mine"', "Write three slashes before an absolute path"),
        ('pvc_path="s3://bucket/runs"', "the training works in it, so it must be a directory"),
        ('launcher="slurm"', "launcher='slurm': it must be one of 'trainjob', 'pod', 'local'"),
        ('keep="nothing"', "keep='nothing': it must be one of 'model'"),
        ("max_dropped=5", "max_dropped=5: it is a share of the rows, from 0 to 1"),
        ("show_samples=-1", "show_samples=-1: it must be a whole number of at least 0"),
        ("training_timeout=0", "training_timeout=0: it must be a timedelta or a number of seconds, above 0"),
        ("training_timeout=timedelta(0)", "it must be a timedelta or a number of seconds, above 0"),
        ("progress_interval=None", "progress_interval=None: it must be a timedelta"),
        ('resume="always"', "resume='always': it must be one of 'auto', 'never', 'require'"),
        ('secrets={"HF_TOKEN": "hf_abc"}', "secrets={'HF_TOKEN': '***'}"),
        ('secrets={"HF_TOKEN": "hf_abc"}, launcher="pod"', "'<secret name>/<key>'"),
        ('extra_args="weight_decay=1"', "it must be a dict of training-hub keywords"),
        ('extra_args={"when": timedelta(1)}', "it travels as JSON"),
        ('pod_operator_arguments={"x": 1}', "launcher='local' starts no KubernetesPodOperator"),
        ('kubernetes_config={"resources": {}}', "Use training_resource_*"),
        ('kubernetes_config={"nodeSelector": {}}', "unknown: nodeSelector"),
        ('fail_fast="yes"', "fail_fast='yes': it must be True or False"),
        (
            'launcher="trainjob", training_resource_num_procs_per_worker="4"',
            "each process needs a GPU of its own, and training_resource_gpu_per_worker=1",
        ),
        ('launcher="pod", training_envs="HF_TOKEN=hf_abc"', "HF_TOKEN would stand readable in the job object"),
        ('launcher="trainjob", pvc_path=None', "pvc_path=None: nothing that a pod writes to its own disk is there"),
        ('launcher="trainjob"', "no volume that outlives the pod is mounted there"),
        ('launcher="trainjob", kubernetes_config={"scheduler_name": "volcano"}', "no TrainJob can carry it"),
        ('launcher="trainjob", training_resource_num_workers=2', "Use one worker with more GPUs"),
    ],
)
def test_a_wrong_value_is_an_import_error_that_names_value_rule_and_cure(parse, arguments, sentence):
    parsed = parse(f'LoRAOperator(task_id="train", **{{**LOCAL, **dict({arguments})}})')
    assert parsed.dag is None
    assert "Task 'train' cannot train as it is written:" in parsed.error
    assert sentence in parsed.error
    assert "hf_abc" not in parsed.error.split("cannot train as it is written:")[1]


def test_all_wrong_values_are_said_at_once(parse):
    error = parse('LoRAOperator(task_id="train", **LOCAL, training_lora_r=0, training_seed="x", keep="x")').error
    assert all(name in error for name in ("training_lora_r=0", "training_seed='x'", "keep='x'"))


def test_a_template_that_renders_to_a_word_fails_the_task_without_a_retry(run):
    result = run('LoRAOperator(task_id="train", retries=2, training_num_epochs="{{ \'abc\' }}", **LOCAL)')
    assert result.state == "failed"
    assert (result.tasks["train"].state, result.tasks["train"].try_number) == ("failed", 1)
    assert "training_num_epochs='abc': it must be a whole number" in result.log


@pytest.mark.parametrize("value", ["0.5", '"{{ 1 / 2 }}"'])
def test_a_wrong_value_in_partial_fails_the_task_without_a_retry(run, value):
    result = run(
        f"""
        LoRAOperator.partial(task_id="train", retries=2, training_lora_r={value}, **LOCAL).expand(
            training_seed=[1, 2]
        )
        """
    )
    assert result.state == "failed"
    assert {(ti.state, ti.try_number) for ti in result.tasks.values()} == {("failed", 1)}
    assert "it must be a whole number" in result.log


def test_a_place_that_only_a_template_knows_is_checked_after_rendering(run):
    result = run("""LoRAOperator(task_id="train", output_model="{{ 'pvc' }}://claim/model", **LOCAL)""")
    assert result.state == "failed"
    assert "output_model='pvc://claim/model'" in result.log
    assert "file:///absolute/path" in result.log


def test_an_interpreter_that_is_not_there_is_named(run):
    result = run(
        'LoRAOperator(task_id="train", retries=2, **{**LOCAL, "local_python": "/no/such/python"})',
    )
    assert (result.state, result.tasks["train"].try_number) == ("failed", 1)
    assert "local_python='/no/such/python' is no program on this machine" in result.log


def test_a_work_directory_that_cannot_be_written_is_said_before_anything_starts(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(f'LoRAOperator(task_id="train", **{{**LOCAL, "pvc_path": {str(tmp_path / "file")!r}}})')
    assert result.state == "failed"
    assert "user: work_dir_not_writable" in result.log
    assert "training has begun" not in result.log
