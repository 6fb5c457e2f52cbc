"""The base model where it lies in a directory or in an object store.

What is tested: which weights count and that they are whole, what is fetched of a store and when, architecture and
tokenizer that cannot be trained. The hub has tests of its own, and so has the OCI image.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner import model, storage
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.model import BaseModel
from tests.train.servers import S3

Damage = Callable[[Path], object]


@pytest.fixture
def directory(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def said() -> list[str]:
    """The lines for people."""
    return []


@pytest.fixture
def locate(tmp_path: Path, said: list[str]) -> Callable[..., BaseModel]:
    """Find a model, with a scratch directory of the test's."""
    return lambda name, **options: model.locate(str(name), scratch=tmp_path / "scratch", say=said.append, **options)


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file; ``None`` removes one."""
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def in_parts(directory: Path) -> list[Path]:
    """Cut the weights into two files with an index, without regard to what is in them."""
    whole = directory / "model.safetensors"
    content = whole.read_bytes()
    whole.unlink()
    parts = [directory / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for part, half in zip(parts, (content[:1000], content[1000:]), strict=True):
        part.write_bytes(half)
    weight_map = {f"layer{number}": part.name for number, part in enumerate([*parts, parts[0]])}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return parts


def test_a_directory_is_used_where_it_is(locate: Callable[..., BaseModel], directory: Path, said: list[str]) -> None:
    size = (directory / "model.safetensors").stat().st_size
    expected = BaseModel(str(directory), str(directory), str(directory), None, size, fetched=True)
    assert locate(directory) == locate(directory.as_uri()) == expected
    assert model.fetch_weights(expected, said.append) is expected
    assert not said


def test_weights_in_parts_count_as_a_whole_and_other_weights_do_not(
    locate: Callable[..., BaseModel], directory: Path
) -> None:
    size = (directory / "model.safetensors").stat().st_size
    in_parts(directory)
    (directory / "pytorch_model.bin").write_bytes(b"the same weights once more")
    (directory / "consolidated.safetensors").write_bytes(b"and in the form of another library")
    assert locate(directory).weight_bytes == size


def test_weights_that_are_no_safetensors_count_where_there_are_no_others(
    locate: Callable[..., BaseModel], directory: Path
) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert locate(directory).weight_bytes == (directory / "pytorch_model.bin").stat().st_size


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda found: (found / "config.json").unlink(), "has no config.json"),
        (lambda found: (found / "config.json").rename(found / "adapter_config.json"), "has no config.json"),
        (lambda found: (found / "model.safetensors").unlink(), "has no weights"),
        (lambda found: (found / "model.safetensors").write_bytes(b""), "or they are empty: model.safetensors"),
        (lambda found: (found / "model.safetensors").write_text("version https://git-lfs.github"), "git lfs pull"),
        (lambda found: in_parts(found)[1].unlink(), "lacks weights, or they are empty: model-00002-of-00002"),
        (
            lambda found: in_parts(found) and (found / "model.safetensors.index.json").write_text("{}"),
            "cannot be read, model.safetensors.index.json",
        ),
    ],
    ids=["config", "adapter", "weights", "empty", "Git LFS", "one part", "index"],
)
def test_a_directory_that_holds_no_whole_model(
    locate: Callable[..., BaseModel], directory: Path, damage: Damage, why: str
) -> None:
    damage(directory)
    with pytest.raises(UserError, match=why) as caught:
        locate(directory)
    assert caught.value.failure.cause == "model_incomplete"
    assert str(directory) in caught.value.failure.message


def test_an_adapter_is_named_as_what_it_is(locate: Callable[..., BaseModel], directory: Path) -> None:
    (directory / "config.json").rename(directory / "adapter_config.json")
    with pytest.raises(UserError) as caught:
        locate(directory)
    assert "Merge the adapter" in caught.value.failure.cure


def load(base: BaseModel) -> None:
    """What the check does with the small files."""
    model.load_tokenizer(base)
    model.ensure_fits(base, None, longest=10)


@pytest.mark.parametrize(
    ("damage", "cause", "why"),
    [
        (lambda found: (found / "config.json").write_text("{"), "model_incomplete", "cannot be read"),
        (
            lambda found: edit(found / "config.json", model_type="llama99"),
            "architecture_unknown",
            r"model_type='llama99', which transformers \d+",
        ),
        (lambda found: edit(found / "config.json", model_type=None), "architecture_unknown", "model_type=None"),
        (lambda found: edit(found / "config.json", model_type="clip"), "architecture_not_loadable", "architecture of"),
        (
            lambda found: edit(found / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
            "model_brings_code",
            "not run unasked",
        ),
        (
            lambda found: edit(found / "tokenizer_config.json", eos_token=None, pad_token=None),
            "tokenizer_without_end",
            "no end-of-sequence token and no padding token",
        ),
    ],
    ids=["config", "architecture", "no architecture", "no language model", "code", "end token"],
)
def test_a_model_that_cannot_be_trained_is_found_by_its_small_files(
    locate: Callable[..., BaseModel], directory: Path, damage: Damage, cause: str, why: str
) -> None:
    damage(directory)
    base = locate(directory)
    with pytest.raises(UserError, match=why) as caught:
        load(base)
    assert caught.value.failure.cause == cause
    assert str(directory) in caught.value.failure.message


def test_a_padding_token_is_enough_to_train_with(locate: Callable[..., BaseModel], directory: Path) -> None:
    edit(directory / "tokenizer_config.json", eos_token=None)
    assert model.load_tokenizer(locate(directory)).pad_token


@pytest.fixture
def store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model as ``s3://bucket/model``: files are copied where they would be fetched."""

    def sizes(uri: str, argument: str, *, what: str) -> dict[str, int]:
        assert (uri, argument, what) == ("s3://bucket/model", "training_base_model", "model")
        files = [path for path in directory.rglob("*") if path.is_file()]
        return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}

    def fetch(
        uri: str, argument: str, into: Path, say: Callable[[str], None], *, what: str, wanted: Callable[[str], bool]
    ) -> list[Path]:
        names = [name for name in sizes(uri, argument, what=what) if wanted(name)]
        say(f"fetching {' '.join(sorted(names))}")
        for name in names:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(directory / name, into / name)
        return [into / name for name in names]

    monkeypatch.setattr(storage, "sizes", sizes, raising=False)
    monkeypatch.setattr(storage, "fetch", fetch, raising=False)
    monkeypatch.setattr(storage, "shown", lambda uri: uri, raising=False)
    return directory


def test_of_a_store_the_small_files_come_first_and_the_weights_when_they_are_asked_for(
    locate: Callable[..., BaseModel], store: Path, said: list[str], tmp_path: Path
) -> None:
    size = (store / "model.safetensors").stat().st_size
    in_parts(store)
    (store / "modeling.py").write_text("raise SystemExit")
    (store / "original").mkdir()
    (store / "original/model.safetensors").write_bytes(b"in the form of another library")
    base = locate("s3://bucket/model")
    path = tmp_path / "scratch/base-model"
    assert base == BaseModel("s3://bucket/model", str(path), "s3://bucket/model", None, size, fetched=False)
    load(base)
    assert not list(path.rglob("*.safetensors"))
    assert not list(path.rglob("*.py"))
    whole = model.fetch_weights(base, said.append)
    assert whole.fetched
    assert said[1:] == ["fetching model-00001-of-00002.safetensors model-00002-of-00002.safetensors"]
    assert not list(path.rglob("original"))


def test_code_of_a_store_is_fetched_where_it_is_trusted(
    locate: Callable[..., BaseModel], store: Path, tmp_path: Path
) -> None:
    (store / "modeling.py").write_text("")
    locate("s3://bucket/model", trust_remote_code=True)
    assert (tmp_path / "scratch/base-model/modeling.py").is_file()


def test_a_store_without_weights_is_refused_before_anything_large_comes(
    locate: Callable[..., BaseModel], store: Path
) -> None:
    (store / "model.safetensors").unlink()
    with pytest.raises(RunFailed, match="s3://bucket/model has no weights"):
        locate("s3://bucket/model")


@pytest.mark.parametrize("mark", ["#", "?"])
def test_a_store_is_not_asked_for_a_model_that_an_adapter_could_not_name(
    locate: Callable[..., BaseModel], directory: Path, s3: S3, said: list[str], mark: str
) -> None:
    for file in directory.iterdir():
        s3.put(f"models/base/{file.name}", b"another")
        s3.put(f"models/base{mark}2/{file.name}", file.read_bytes())
    with pytest.raises(UserError, match="may follow in the place of a model") as caught:
        model.fetch_weights(locate(f"{s3.url}/models/base{mark}2"), said.append)
    assert caught.value.failure.cause == "unsupported_uri"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_the_training_may_not_read_is_named(
    locate: Callable[..., BaseModel], tiny_model: Path, name: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(shutil.copytree(tiny_model, Path(folder) / "model"))
        for path in (Path(folder), directory, *directory.iterdir()):
            path.chmod(0o755)
        (directory / name).chmod(0o600)
        os.seteuid(1001)
        try:
            with pytest.raises(UserError, match=f"{name} of .* cannot be read by user 1001") as error:
                locate(directory)
        finally:
            os.seteuid(0)
        assert error.value.failure.cause == "model_unreadable"
        assert "chmod" in error.value.failure.cure
