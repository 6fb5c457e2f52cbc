"""Data and models from http(s) and s3 arrive whole, or it is said why not and what to do.

* one file with its name, also through redirects and behind a query; all files below a prefix with theirs
* a download may take its time, and a server may not be silent
* missing, refused, expired, cut off, out of reach: the right cause, and who must act
* no link, user or key of a credential is in a message or in the traceback of any of them
"""

from __future__ import annotations

import gzip
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec.config
import pytest

from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.runner import storage
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.storage import connecting, fetching
from tests.train.servers import S3, SECRET, Answer, Request, Web, content, s3_refusal, serve_with_tls, status

ROWS = b'{"messages": []}\n'


def fetch(uri: str, into: Path, **options: object) -> list[str]:
    """Fetch, and return the relative names."""
    files = storage.fetch(uri, "dataset", into, lambda line: None, **options)  # type: ignore[arg-type]
    return [file.relative_to(into).as_posix() for file in files]


def refused(uri: str, into: Path) -> Failure:
    """Return why nothing comes, when it holds no secret."""
    with pytest.raises(RunFailed) as raised:
        fetch(uri, into)
    failure = raised.value.failure
    everything = "".join([*traceback.format_exception(raised.value), failure.message, failure.cure])
    assert SECRET not in everything
    assert failure.cure
    assert not [file for file in into.rglob("*") if file.is_file()], "nothing that is not whole is left"
    return failure


def test_a_file_has_the_name_in_its_address_also_behind_a_redirect_and_before_a_query(web: Web, tmp_path: Path) -> None:
    web.answers["/data/my%20rows.jsonl"] = status(302, Location=f"/blob/1f3a?X-Amz-Signature={SECRET}")
    web.answers["/blob/1f3a"] = content(ROWS)
    assert fetch(f"{web.url}/data/my%20rows.jsonl?sig=a%2Fb%2B", tmp_path) == ["my rows.jsonl"]
    assert (tmp_path / "my rows.jsonl").read_bytes() == ROWS
    assert "GET /data/my%20rows.jsonl?sig=a%2Fb%2B" in web.seen, "a link is sent as it was signed"


def test_a_large_file_arrives_whole_and_its_progress_is_said(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_SECONDS_BETWEEN_LINES", 0.0)
    body = bytes(range(256)) * 100_000
    web.answers["/rows.jsonl"] = content(body)
    lines: list[str] = []
    uri = f"{web.url}/rows.jsonl"
    (file,) = storage.fetch(f"{uri}?token={SECRET}", "dataset", tmp_path, lines.append)
    assert file.read_bytes() == body
    assert any("of 25.6 MB" in line for line in lines), lines
    assert all(uri in line and SECRET not in line for line in lines)


def test_what_a_server_has_compressed_on_the_way_is_not_taken_for_a_compressed_file(web: Web, tmp_path: Path) -> None:
    web.answers["/rows.jsonl.gz"] = content(gzip.compress(ROWS), Content_Encoding="gzip")
    web.answers["/kept.jsonl.gz"] = content(gzip.compress(ROWS))
    assert fetch(f"{web.url}/rows.jsonl.gz", tmp_path) == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_bytes() == ROWS
    assert fetch(f"{web.url}/kept.jsonl.gz", tmp_path) == ["kept.jsonl.gz"]


def test_a_slow_download_may_last_as_long_as_it_goes_on(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(request: Request) -> None:
        request.head(200, Content_Length=8)
        for _ in range(8):
            time.sleep(0.25)
            request.wfile.write(b"x")

    monkeypatch.setattr(connecting, "SECONDS_OF_SILENCE", 1)
    web.answers["/rows.jsonl"] = drip
    assert fetch(f"{web.url}/rows.jsonl", tmp_path) == ["rows.jsonl"]


def _cut_off(request: Request) -> None:
    request.head(200, Content_Length=1000)
    request.wfile.write(b"x" * 100)
    request.close_connection = True


def _cut_off_in_chunks(request: Request) -> None:
    request.head(200, Transfer_Encoding="chunked")
    request.wfile.write(b"5\r\nhello\r\n")
    request.close_connection = True


def _silent(request: Request) -> None:
    time.sleep(1.5)


def _silent_in_the_middle(request: Request) -> None:
    request.head(200, Content_Length=1000)
    request.wfile.write(b"x" * 100)
    request.wfile.flush()
    time.sleep(1.5)


def _hangs_up(request: Request) -> None:
    request.close_connection = True


@pytest.mark.parametrize(
    ("answer", "who", "cause", "said"),
    [
        (status(404), "user", "dataset_missing", "no such file"),
        (status(410), "user", "dataset_missing", "410"),
        (status(401), "user", "dataset_unreadable", "401"),
        (status(403), "user", "dataset_unreadable", "403"),
        (status(302, Location=f"/rows.jsonl?sig={SECRET}"), "user", "dataset_unreadable", "circles"),
        (status(503), "infrastructure", "source_unreachable", "503"),
        (_silent, "infrastructure", "source_unreachable", "did not answer in time"),
        (_silent_in_the_middle, "infrastructure", "source_unreachable", "did not answer in time"),
        (_hangs_up, "infrastructure", "source_unreachable", "cannot be reached"),
        (_cut_off, "infrastructure", "download_cut_off", "ended in the middle"),
        (_cut_off_in_chunks, "infrastructure", "download_cut_off", "ended in the middle"),
    ],
)
def test_a_server_that_does_not_give_the_file_is_told_by_its_cause(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, who: str, cause: str, said: str
) -> None:
    monkeypatch.setattr(connecting, "SECONDS_OF_SILENCE", 0.5)
    web.answers["/rows.jsonl"] = answer
    failure = refused(f"{web.url}/rows.jsonl?X-Amz-Signature={SECRET}", tmp_path)
    assert (failure.failure_class, failure.cause) == (who, cause)
    assert f"{web.url}/rows.jsonl cannot be read" in failure.message
    assert said in failure.message


def test_an_expired_link_is_to_be_made_anew(web: Web, tmp_path: Path) -> None:
    web.answers["*"] = s3_refusal(403, "AccessDenied")
    assert "a new link" in refused(f"{web.url}/rows.jsonl?X-Amz-Signature={SECRET}", tmp_path).cure


def test_a_server_that_is_not_there_may_be_there_for_a_retry(tmp_path: Path) -> None:
    for host in ("127.0.0.1:9", "no-such-host.invalid"):
        failure = refused(f"http://{host}/rows.jsonl?sig={SECRET}", tmp_path)
        assert (failure.failure_class, failure.cause) == ("infrastructure", "source_unreachable")


def test_a_server_whose_certificate_nobody_vouches_for_is_not_trusted(tmp_path: Path) -> None:
    with serve_with_tls({"/rows.jsonl": content(ROWS)}, tmp_path) as url:
        failure = refused(f"{url}/rows.jsonl?sig={SECRET}", tmp_path / "into")
    assert (failure.failure_class, failure.cause) == ("user", "dataset_unreadable")
    assert "SSL_CERT_FILE" in failure.cure


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"https://user:{SECRET}@host/rows.jsonl", "credentials stand in the URI"),
        (f"https://{SECRET}@host/rows.jsonl", "credentials stand in the URI"),
        (f"https://user:a/{SECRET}@host/rows.jsonl", "credentials stand in the URI"),
        (f"s3://AKIA:{SECRET}@a-bucket/rows.jsonl", "credentials stand in the URI"),
        (f"https://host/?file={SECRET}", "names no file"),
        (f"https://host/a/?file={SECRET}", "names no file"),
        (f"https://host/a/%2E%2E?file={SECRET}", "names no file"),
        (f"gopher://host/rows?sig={SECRET}", "fsspec knows no gopher://"),
    ],
)
def test_an_address_that_cannot_be_fetched_is_refused_before_anything_is_asked(
    tmp_path: Path, uri: str, said: str
) -> None:
    failure = refused(uri, tmp_path)
    assert (failure.failure_class, failure.cause) == ("user", "unsupported_uri")
    assert said in failure.message


def test_an_unknown_scheme_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    cure = refused("gopher://host/rows", tmp_path).cure
    assert "https, s3" in cure
    assert "gs," not in cure, "its package is not installed"


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    failure = refused("gs://bucket/rows.jsonl", tmp_path)
    assert (failure.failure_class, failure.cause) == ("user", "package_missing")
    assert "Install gcsfs" in failure.cure


def test_an_object_is_one_file_and_a_prefix_all_files_below_it(s3: S3, tmp_path: Path) -> None:
    for name in ("one.jsonl", "rows/b.jsonl", "rows/a.jsonl", "rows/", "rows/deep/c.jsonl", "rows-of-others/d.jsonl"):
        s3.put(name, name)
    assert fetch(f"{s3.url}/one.jsonl", tmp_path / "one") == ["one.jsonl"]
    below = ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert fetch(f"{s3.url}/rows", tmp_path / "rows") == below
    assert fetch(f"S3://{s3.bucket}/rows/", tmp_path / "again") == below
    assert (tmp_path / "rows" / "deep" / "c.jsonl").read_text() == "rows/deep/c.jsonl"
    assert fetch(f"{s3.url}/rows", tmp_path / "few", wanted=lambda name: "/" not in name) == below[:2]


def test_a_changed_object_is_fetched_anew(s3: S3, tmp_path: Path) -> None:
    for text in ("old", "newer"):
        fetch(s3.put("rows/a.jsonl", text), tmp_path)
        assert (tmp_path / "a.jsonl").read_text() == text


def test_an_object_larger_than_a_part_arrives_whole(s3: S3, tmp_path: Path) -> None:
    body = bytes(range(251)) * 480_000
    fetch(s3.put("rows.jsonl", body), tmp_path)
    assert (tmp_path / "rows.jsonl").read_bytes() == body


def test_who_may_read_but_not_list_gets_an_object(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.put("rows.jsonl", ROWS)
    _use(s3.user("s3:GetObject"), monkeypatch)
    assert fetch(uri, tmp_path) == ["rows.jsonl"]
    failure = refused(f"{s3.url}/none", tmp_path / "none")
    assert failure.cause == "dataset_unreadable", "without the right to list nobody knows that it is missing"


def test_a_public_bucket_is_read_without_credentials(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.put("rows.jsonl", ROWS)
    s3.client("s3").put_object_acl(Bucket=s3.bucket, Key="rows.jsonl", ACL="public-read")
    _without_credentials(s3, monkeypatch)
    assert "FSSPEC_S3_ANON=true" in refused(uri, tmp_path / "refused").cure
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    monkeypatch.setattr(fsspec.config, "conf", {})
    # fsspec reads the environment once, when it is imported.
    fsspec.config.set_conf_env(fsspec.config.conf)
    assert fetch(uri, tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["rows/../../a.jsonl", "rows//a.jsonl"])
def test_a_name_that_would_leave_the_directory_is_refused(s3: S3, tmp_path: Path, name: str) -> None:
    s3.put(name, ROWS)
    assert "is no name for a file" in refused(f"{s3.url}/rows", tmp_path / "into").message


def _use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def _without_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


def _with_an_unknown_key(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.user("s3:*")


def _with_a_wrong_key(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.user("s3:*")["AWS_ACCESS_KEY_ID"])


def _without_rights(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(s3.user("s3:PutObject"), monkeypatch)


def _unreachable(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def _with_credentials_in_the_endpoint(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")


@pytest.mark.parametrize(
    ("spoil", "who", "cause", "said"),
    [
        (_without_credentials, "user", "dataset_unreadable", "no credentials in the environment"),
        (_with_an_unknown_key, "user", "dataset_unreadable", "does not take these credentials (InvalidAccessKeyId)"),
        (_with_a_wrong_key, "user", "dataset_unreadable", "does not take these credentials (SignatureDoesNotMatch)"),
        (_without_rights, "user", "dataset_unreadable", "refuses it (AccessDenied)"),
        (_with_credentials_in_the_endpoint, "infrastructure", "source_unreachable", "HTTPClientError"),
        (_unreachable, "infrastructure", "source_unreachable", "cannot be reached"),
    ],
)
def test_a_store_that_gives_nothing_is_told_by_its_cause(
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[S3, pytest.MonkeyPatch], None],
    who: str,
    cause: str,
    said: str,
) -> None:
    uri = s3.put("rows/a.jsonl", ROWS)
    spoil(s3, monkeypatch)
    failure = refused(uri, tmp_path)
    assert (failure.failure_class, failure.cause) == (who, cause)
    assert said in failure.message
    assert uri in failure.message


@pytest.mark.parametrize(
    ("answer", "who", "said"),
    [
        (s3_refusal(400, "ExpiredToken"), "user", "the credentials have expired"),
        (s3_refusal(403, "RequestTimeTooSkewed"), "user", "clock"),
        (s3_refusal(400, "AuthorizationHeaderMalformed"), "user", "another region"),
        (status(403), "user", "refuses it (403)"),
        (s3_refusal(503, "SlowDown"), "infrastructure", "503"),
    ],
)
def test_what_a_store_says_of_credentials_is_passed_on(
    s3: S3, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, who: str, said: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    web.answers["*"] = answer
    failure = refused(f"{s3.url}/rows.jsonl", tmp_path)
    assert failure.failure_class == who
    assert said in failure.message


def test_a_missing_object_and_a_missing_bucket_are_told_apart(s3: S3, tmp_path: Path) -> None:
    missing = {
        f"{s3.url}/rows": "no such object",
        "s3://another-bucket/rows": "no such bucket",
        "s3://a*bucket/rows": "no name of a bucket",
    }
    for uri, said in missing.items():
        failure = refused(uri, tmp_path)
        assert (failure.failure_class, failure.cause) == ("user", "dataset_missing"), uri
        assert said in failure.message


def test_what_does_not_fit_on_the_disk_is_not_begun(
    s3: S3, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.answers["/rows.jsonl"] = content(ROWS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3))
    for uri in (s3.put("rows.jsonl", ROWS), f"{web.url}/rows.jsonl"):
        failure = refused(uri, tmp_path)
        assert (failure.failure_class, failure.cause) == ("resources", "disk_full")
        assert f"has {len(ROWS)} bytes, and" in failure.message
    assert not list(tmp_path.rglob("rows.jsonl"))
