"""Results go to a store whole, and nothing of the user's there is ever put away for them.

* a place that cannot be written is found before training, by trying
* a model replaces a model and what is left of an upload; nothing else
* no reader finds half a model, also when an upload is killed or two publish at once
* what was published is found again
* no key is in a message or in the traceback of a failure
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import storage
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.tries import recovery
from tests.train.servers import S3, SECRET

ADAPTER = {"adapter_config.json": "{}", "adapter_model.safetensors": "weights", "tokenizer.json": "{}"}
FULL = {"config.json": "{}", "model-00001-of-00002.safetensors": "one", "model-00002-of-00002.safetensors": "two"}


def save(directory: Path, files: dict[str, str]) -> Path:
    """Write a model."""
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def quiet(line: str) -> None:
    """Nobody listens."""


def refused(call: Callable[[], object]) -> Failure:
    """Return why it fails, when it holds no secret."""
    with pytest.raises(RunFailed) as raised:
        call()
    failure = raised.value.failure
    assert SECRET not in "".join([*traceback.format_exception(raised.value), failure.message, failure.cure])
    assert "output_model" in failure.message
    assert failure.cure
    return failure


@pytest.fixture
def place(s3: S3) -> storage.Place:
    """A prefix in a bucket, with nothing below it."""
    return storage.place(f"{s3.url}/models/m/", "output_model")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A trained adapter."""
    return save(tmp_path / "adapter", ADAPTER)


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> storage.Place:
    """Return the place as somebody with other rights sees it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return storage.place("s3://a-bucket/models/m", "output_model")


def test_a_model_is_published_and_found_again(s3: S3, place: storage.Place, adapter: Path) -> None:
    assert not place.holds_model()
    place.ensure_replaceable()
    place.ensure_writable(quiet)
    assert s3.names() == [], "trying leaves nothing"
    place.put_model(adapter, quiet)
    assert s3.names() == [f"models/m/{name}" for name in sorted(ADAPTER)]
    assert s3.read("models/m/adapter_model.safetensors") == b"weights"
    assert place.holds_model()
    assert (place.uri, place.path) == ("s3://a-bucket/models/m/", None)
    assert place.child("adapter").uri == "s3://a-bucket/models/m/adapter"


def test_a_model_replaces_the_earlier_one_and_its_other_files(
    s3: S3, place: storage.Place, adapter: Path, tmp_path: Path
) -> None:
    place.put_model(adapter, quiet)
    place.ensure_replaceable()
    place.put_model(save(tmp_path / "full", FULL), quiet)
    assert s3.names() == [f"models/m/{name}" for name in sorted(FULL)]


def test_a_part_of_several_megabytes_arrives_whole(s3: S3, place: storage.Place, tmp_path: Path) -> None:
    model = save(tmp_path / "large", FULL)
    weights = bytes(range(251)) * 480_000
    (model / "model-00001-of-00002.safetensors").write_bytes(weights)
    place.put_model(model, quiet)
    assert s3.read("models/m/model-00001-of-00002.safetensors") == weights


@pytest.mark.parametrize(
    "keys",
    [
        ["notes.txt"],
        ["config.json"],
        ["config.json", "model.safetensors", "deep/config.json"],
        ["config.json", "model.safetensors", "additional_chat_templates/notes.txt"],
        ["other/config.json", "other/model.safetensors"],
        [".finetune-arriving", "notes.txt"],
    ],
)
def test_a_prefix_that_holds_something_else_than_a_model_is_left_alone(
    s3: S3, place: storage.Place, adapter: Path, keys: list[str]
) -> None:
    for key in keys:
        s3.put(f"models/m/{key}", "mine")
    before = s3.names()
    for call in (place.ensure_replaceable, lambda: place.put_model(adapter, quiet)):
        failure = refused(call)
        assert (failure.failure_class, failure.cause) == ("user", "output_in_use")
        assert "s3://a-bucket/models/m/" in failure.message
    assert s3.names() == before


def test_neighbours_with_the_same_beginning_are_somebody_elses(s3: S3, place: storage.Place, adapter: Path) -> None:
    neighbours = {s3.put(key, "mine") for key in ("models/m2/notes.txt", "models/m.txt", "models/m")}
    place.ensure_replaceable(neighbours - {f"{s3.url}/models/m"})
    place.put_model(adapter, quiet)
    assert len(s3.names()) == len(neighbours) + len(ADAPTER)


@pytest.mark.parametrize(
    "needed",
    [
        "s3://a-bucket/models/m",
        "s3://a-bucket/models/m/rows.jsonl",
        "s3a://a-bucket/models/m/",
        "S3://a-bucket/models/m",
    ],
)
def test_the_base_model_and_the_data_are_never_replaced_by_the_model_trained_with_them(
    place: storage.Place, needed: str
) -> None:
    failure = refused(
        lambda: place.ensure_replaceable(
            ["/local", "org/model", "gs://a-bucket/models/m", "s3://a-bucket/models", needed]
        )
    )
    assert failure.cause == "output_in_use"
    assert needed in failure.message


def test_a_bucket_without_the_right_to_write_is_found_by_trying(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    place = use(s3.user("s3:GetObject", "s3:ListBucket"), monkeypatch)
    place.ensure_replaceable()
    failure = refused(lambda: place.ensure_writable(quiet))
    assert (failure.failure_class, failure.cause) == ("user", "output_not_writable")
    assert "s3://a-bucket/models/m cannot be written: the store refuses it (AccessDenied)" in failure.message


def test_a_bucket_that_does_not_exist_is_not_made(s3: S3) -> None:
    failure = refused(lambda: storage.place("s3://no-bucket/models/m", "output_model").ensure_writable(quiet))
    assert (failure.failure_class, failure.cause) == ("user", "output_not_writable")
    assert "no such bucket" in failure.message
    assert [bucket["Name"] for bucket in s3.client("s3").list_buckets()["Buckets"]] == [s3.bucket]


def test_a_store_that_is_not_there_may_be_there_for_a_retry(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    place = use({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, monkeypatch)
    failure = refused(lambda: place.ensure_writable(quiet))
    assert (failure.failure_class, failure.cause) == ("infrastructure", "output_unreachable")


MAY_NOT_DELETE = ("s3:GetObject", "s3:ListBucket", "s3:PutObject")


def test_who_may_not_delete_can_publish_once_and_is_told(
    s3: S3, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = use(s3.user(*MAY_NOT_DELETE), monkeypatch)
    said: list[str] = []
    for _ in range(2):
        place.ensure_replaceable()
        place.ensure_writable(said.append)
    assert "nothing can be removed from s3://a-bucket/models/m" in said[0]
    place.put_model(adapter, said.append)
    assert "s3://a-bucket/models/m cannot be cleared" in said[-1]
    assert "The model there is whole" in said[-1]
    assert place.holds_model()
    failure = refused(lambda: place.ensure_writable(quiet))
    assert "can be written but not removed, so not be replaced" in failure.message, "once, and no second time"


def test_an_earlier_model_that_could_not_be_removed_is_said_before_training(
    s3: S3, place: storage.Place, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put_model(adapter, quiet)
    place = use(s3.user(*MAY_NOT_DELETE), monkeypatch)
    failure = refused(lambda: place.ensure_writable(quiet))
    assert (failure.failure_class, failure.cause) == ("user", "output_not_writable")
    assert "right to delete" in failure.cure
    assert place.holds_model(), "the old one is whole"


def test_a_model_that_is_on_its_way_is_none_yet_and_its_rest_is_replaced(
    s3: S3, place: storage.Place, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put_model(adapter, quiet)
    broken = save(tmp_path / "full", FULL)
    (broken / "model-00002-of-00002.safetensors").unlink()
    (broken / "model-00002-of-00002.safetensors").mkdir()
    with pytest.raises(RunFailed):
        place.put_model(broken, quiet)
    assert not place.holds_model()
    assert not {f"models/m/{name}" for name in ("config.json", "adapter_config.json")} & set(s3.names())
    place.ensure_replaceable()
    place.put_model(save(tmp_path / "again", FULL), quiet)
    assert s3.names() == [f"models/m/{name}" for name in sorted(FULL)]


def test_of_two_that_publish_at_once_one_model_is_there_and_the_other_run_says_so(
    s3: S3, place: storage.Place, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = storage.place("s3://a-bucket/models/m", "output_model")
    full = save(tmp_path / "full", FULL)
    upload = storage.RemotePlace._upload

    def upload_while_another_does(self: storage.RemotePlace, *arguments: object) -> None:
        upload(self, *arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(storage.RemotePlace, "_upload", upload)
        other.put_model(full, quiet)

    monkeypatch.setattr(storage.RemotePlace, "_upload", upload_while_another_does)
    failure = refused(lambda: place.put_model(adapter, quiet))
    assert (failure.failure_class, failure.cause) == ("infrastructure", "upload_torn")
    assert s3.names() == [f"models/m/{name}" for name in sorted(FULL)]
    assert place.holds_model()


def test_what_arrives_otherwise_than_it_was_sent_is_not_taken_for_the_model(
    s3: S3, place: storage.Place, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = storage.RemotePlace._upload

    def lose_some(self: storage.RemotePlace, *arguments: object) -> None:
        upload(self, *arguments)  # type: ignore[arg-type]
        s3.put("models/m/adapter_model.safetensors", "wei")

    monkeypatch.setattr(storage.RemotePlace, "_upload", lose_some)
    failure = refused(lambda: place.put_model(adapter, quiet))
    assert (failure.failure_class, failure.cause) == ("infrastructure", "upload_torn")
    assert "adapter_model.safetensors" in failure.message
    assert not place.holds_model()


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://a-bucket/m/run.json", "m/run.json"),
        ("s3://a-bucket/m", "m/metrics.json"),
        ("s3://a-bucket", "metrics.json"),
    ],
)
def test_metrics_and_charts_go_to_an_object_by_its_suffix_and_below_a_prefix_else(s3: S3, uri: str, key: str) -> None:
    place = storage.output_place(uri, "output_metrics", "metrics.json")
    place.ensure_writable(quiet)
    assert s3.names() == []
    place.put_text("{}")
    assert s3.names() == [key]
    assert place.uri == f"{s3.url}/{key}"


@pytest.mark.parametrize(
    ("uri", "cause", "said"),
    [
        ("https://host/models/m", "unsupported_uri", "can be read only"),
        (f"s3://a-bucket/m?secret={SECRET}", "unsupported_uri", "no '?'"),
        (f"s3://key:{SECRET}@a-bucket/m", "unsupported_uri", "credentials stand in the URI"),
        ("pvc://claim/m", "unsupported_uri", "cannot use pvc://"),
        ("hf://org/model", "unsupported_uri", "cannot use hf://"),
        ("gopher://host/m", "unsupported_uri", "knows no gopher://"),
        ("gs://bucket/m", "package_missing", "gcsfs"),
    ],
)
def test_a_place_that_no_result_can_go_to_is_refused(uri: str, cause: str, said: str) -> None:
    failure = refused(lambda: storage.place(uri, "output_model"))
    assert (failure.failure_class, failure.cause) == ("user", cause)
    assert said in failure.message


def test_a_store_with_directories_has_them_made(tmp_path: Path) -> None:
    place = storage.place(f"local://{tmp_path}/deep/models/m", "output_model")
    place.ensure_writable(quiet)
    template = "additional_chat_templates/tool_use.jinja"
    for number in range(2):
        model = save(tmp_path / str(number), ADAPTER)
        save(model / "additional_chat_templates", {"tool_use.jinja": ""})
        place.put_model(model, quiet)
    there = [path for path in (tmp_path / "deep" / "models" / "m").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "deep/models/m").as_posix() for path in there} == {*ADAPTER, template}


def test_a_file_of_a_store_with_directories_is_replaced_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    place = storage.output_place(f"local://{tmp_path}/out/m.json", "output_metrics", "metrics.json")
    for text in ("old", "new"):
        place.put_text(text)
        assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"m.json": text}


def test_a_lost_outcome_is_found_again_when_its_model_is_still_there(
    s3: S3, place: storage.Place, adapter: Path, tmp_path: Path
) -> None:
    spec = TrainingSpec(algorithm="lora_sft", base_model="m", dataset="d", work_dir=str(tmp_path / "work"))
    lineage = tmp_path / "work" / "1"
    lineage.mkdir(parents=True)
    outcome = Outcome(status="succeeded", model_uri=place.uri, spec_hash=spec.whole_hash(), work_dir=str(lineage))
    (lineage / "outcome.json").write_text(outcome.to_json())
    assert recovery.find(spec) is None
    place.put_model(adapter, quiet)
    assert recovery.find(spec) == outcome
