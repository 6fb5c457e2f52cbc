"""What the libraries behind fsspec raise, read without a word of theirs: their texts hold URLs with rights in them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from airflow_provider_finetune.runner.failures import RunFailed, is_disk_full

Kind = Literal["missing", "refused", "unreachable", "cut_off", "unsupported"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fault:
    """Why a remote place did not do as asked: ``why`` ends a sentence; ``cure`` may be empty."""

    kind: Kind
    why: str
    cure: str = ""


_ENVIRONMENT = "hand them over in secrets: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3"
_NEW = "Make new credentials, or a new link where the link itself carries the right, that hold as long as the training"
_RIGHTS = "Give the credentials the right to read and list there, and where a result goes to write and delete"
_EXPIRED = Fault("refused", "the credentials have expired", _NEW)
_REGION = Fault("refused", "the bucket lies in another region", "Set AWS_DEFAULT_REGION to the region of the bucket")
_CLOCK = Fault("refused", "the clock of this machine is wrong", "Set the clock of the machine that trains")
_NO_CREDENTIALS = Fault(
    "refused",
    "there are no credentials in the environment",
    f"If the place is not public, {_ENVIRONMENT}. A public bucket is read with FSSPEC_S3_ANON=true in the environment",
)

_TLS = Fault(
    "refused",
    "the TLS connection to it cannot be trusted",
    "Put the certificate of its authority into SSL_CERT_FILE (AWS_CA_BUNDLE for s3), or mend the server's",
)
_HOST_KEY = Fault(
    "refused",
    "its host key is not one that this machine knows it by",
    "Put the key of that server into ~/.ssh/known_hosts where the training runs",
)
_SSH_USER = Fault(
    "refused",
    "it lets nobody in with the private keys of this machine",
    "Put a key without a passphrase into ~/.ssh where the training runs, and name its user: sftp://<user>@<host>/<path>",
)
_TYPES = (
    ("HostKey", _HOST_KEY),
    (r"\bAuthenticationException\b", _SSH_USER),
    ("Credential", _NO_CREDENTIALS),
    ("Certificate|SSL", _TLS),
    ("Payload|IncompleteRead|ResponseStreaming", Fault("cut_off", "the connection ended in the middle")),
    ("Timeout", Fault("unreachable", "it did not answer in time")),
    ("TooManyRedirects", Fault("refused", "the server redirects in circles", "Check the address")),
    ("Connect|Proxy|gaierror", Fault("unreachable", "it cannot be reached")),
    ("FileNotFoundError", Fault("missing", "there is no such file", "Check the address")),
    ("PermissionError", Fault("refused", "there is no right to it", _RIGHTS)),
    ("ParamValidation", Fault("missing", "that is no name of a bucket and an object", "Check the address")),
    ("NotImplementedError", Fault("unsupported", "this kind of place cannot do it")),
)
"""Names of exceptions and of those that they are made from; the first that fits counts."""

_S3_CODES = {
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"), _EXPIRED),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301"), _REGION),
    "RequestTimeTooSkewed": _CLOCK,
    "NoSuchBucket": Fault("missing", "there is no such bucket", "Create the bucket, or check its name"),
}
_UNKNOWN_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity")


def guarded(call: Callable[[], _T], failure: Callable[[Fault], RunFailed]) -> _T:
    """Return what ``call`` returns, or raise what ``failure`` makes of the fault, without the library's exception.

    :param call: speaks to a remote place.
    :param failure: says what it means for the run.
    :raises RunFailed: the remote place did not do as asked.
    :raises OSError: the disk of this machine is full.
    """
    try:
        return call()
    except RunFailed:
        raise
    except Exception as error:
        full = any(is_disk_full(link) for link in _chain(error))
        fault = read(error)
    # Outside of the handler, else the library's exception would be the context of ours and stand in every traceback.
    if full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise failure(fault)


def read(error: Exception) -> Fault:
    """Say what an exception of s3fs, botocore, aiohttp or another library behind fsspec means.

    The libraries are not imported: an exception is known by its type's name, status and code.

    :param error: its causes are looked through as well.
    """
    links = list(_chain(error))
    for link in links:
        if (fault := _by_code(link) or _by_status(getattr(link, "status", None)) or _by_type(link)) is not None:
            return fault
    return Fault("unreachable", f"the access to it ends with {type(error).__name__}")


def _by_code(error: BaseException) -> Fault | None:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _S3_CODES:
        return _S3_CODES[code]
    if code in _UNKNOWN_CREDENTIALS:
        why = f"the store does not take these credentials ({code})"
        return Fault("refused", why, "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL")
    fault = _by_status(status if isinstance(status, int) else int(code) if code.isdecimal() else None)
    if fault and fault.kind == "refused" and re.fullmatch(r"[A-Za-z]+", code):
        return Fault("refused", f"the store refuses it ({code})", _RIGHTS)
    return fault


def _by_status(status: Any) -> Fault | None:
    if not isinstance(status, int) or status < 400:
        return None
    if status in (404, 410):
        return Fault("missing", f"the server answers {status}", "Check the address")
    if status == 407:
        return Fault("unreachable", "the proxy asks for credentials (407)", "Set HTTPS_PROXY with those of the proxy")
    if status == 429 or status >= 500:
        return Fault("unreachable", f"the server answers {status}")
    if status in (400, 401, 403):
        return Fault(
            "refused", f"the server refuses it ({status})", f"Check that the credentials or the link hold. {_NEW}"
        )
    return Fault("refused", f"the server answers {status}", "Check the address")


def _by_type(error: BaseException) -> Fault | None:
    if isinstance(error, (FileNotFoundError, PermissionError)) and error.__cause__ is not None:
        # s3fs has made it from a refusal that says more.
        return None
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return next((fault for pattern, fault in _TYPES if re.search(pattern, names)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
