"""Requests to an API server: plain JSON in and out, through one client that stays open.

No models: to make and unmake them costs more CPU than all else. Each request has a time limit of ours, since that of
the provider's client is 60 s for everything, watches included.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.cluster.asked import Asked
from airflow_provider_finetune.cluster.credentials import opened
from airflow_provider_finetune.cluster.refusals import Refused, cut_off, refusal, refused, starting, unreachable

if TYPE_CHECKING:
    from aiohttp import ClientResponse

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 60.0
"""A create passes up to five admission checks, each of which may take 10 s."""

_LONGEST_PAUSE = 30.0

_READY_SECONDS = 5.0


@dataclass(eq=False)
class _Open:
    """A client with the credentials of one moment; ``users``: requests that are under way."""

    stack: AsyncExitStack
    api: Any
    users: int = 0
    retired: bool = False

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Any]:
        """Keep it open meanwhile, also when another client takes its place."""
        self.users += 1
        try:
            yield self.api
        finally:
            self.users -= 1
            if self.retired and not self.users:
                await self.stack.aclose()

    async def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self.retired = True
        if not self.users:
            await self.stack.aclose()


@dataclass
class ClusterClient:
    """Requests to the API server of a connection; one event loop, any number of requests at a time.

    * ``conn_id``: the connection
    * ``pauses``: seconds before each further attempt of a request that fails for a passing cause
    * ``extras``: the connection's settings, known once it is open
    """

    conn_id: str
    pauses: Sequence[float] = (1.0, 3.0)
    extras: Mapping[str, Any] = field(default_factory=dict, init=False)
    _client: _Open | None = field(default=None, init=False)
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def open(self) -> None:
        """Read the connection and its credentials; no request is made.

        :raises Refused: there is no such connection, or nothing to be used in it.
        """
        if self._client is None:
            self._client = await self._opened()

    async def close(self) -> None:
        """Give the connections back; what is under way ends by itself."""
        client, self._client = self._client, None
        if client:
            await client.retire()

    async def request(
        self,
        asked: Asked,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: float = REQUEST_SECONDS,
    ) -> dict[str, Any]:
        """Return the JSON of an answer.

        :param asked: the request in words, for errors.
        :param method: HTTP method.
        :param path: path below the server's address, quoted.
        :param query: parameters after it.
        :param body: JSON; that of a ``PATCH`` is a merge patch, and with ``fieldManager`` the whole object to be.
        :param timeout: seconds for the whole of it.
        :raises Refused: it is refused, or there is no answer; the attempts of a passing cause are used up.
        """
        pauses, has_started = iter(self.pauses), False
        while True:
            try:
                async with self.answer(asked, method, path, query=query, body=body, timeout=timeout) as answer:
                    return await _json(asked, answer)
            except Refused as error:
                told = error
                # Who asks once has a patience of his own.
                if error.cause == "forbidden" and self.pauses and not has_started:
                    has_started = await self._has_started(asked)
                    if has_started:
                        continue  # perhaps since it has refused
                    told = refused(asked, starting(error.failure), status=error.status)
                pause = next(pauses, None)
                if pause is None or not told.passing:
                    raise told from error.__cause__
                pause = max(pause * random.uniform(0.5, 1.5), told.retry_after or 0)
                await asyncio.sleep(min(pause, _LONGEST_PAUSE))

    @asynccontextmanager
    async def answer(
        self,
        asked: Asked,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: float = REQUEST_SECONDS,
        silence: float | None = None,
    ) -> AsyncIterator[ClientResponse]:
        """Give a successful answer whose body has still to be read; what is not read by the end is dropped.

        :param asked: as in :meth:`request`.
        :param method: as in :meth:`request`.
        :param path: as in :meth:`request`.
        :param query: as in :meth:`request`.
        :param body: as in :meth:`request`.
        :param timeout: seconds until the body has been read.
        :param silence: seconds in which nothing comes, after which the connection counts as broken.
        :yields: the answer.
        :raises Refused: it is refused, or the server does not answer or stops doing so.
        :raises RuntimeError: the client is not open.
        """
        import aiohttp

        client = self._client
        if client is None:
            raise RuntimeError("The client is used before it is open, or after")
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS, sock_read=silence)
        content = _content_type(method, query or {})
        for first in (True, False):
            async with client.used() as api:
                try:
                    response = await api.call_api(
                        path,
                        method,
                        query_params=list((query or {}).items()),
                        header_params={"Accept": "application/json", "Content-Type": content},
                        body=body,
                        auth_settings=["BearerToken"],
                        _preload_content=False,
                        _request_timeout=limits,
                    )
                    try:
                        # A token that has run out is renewed by reading the connection, its files and programs again.
                        if response.status != 401 or not first:
                            await _raise_for_status(asked, response)
                            yield response
                            return
                    finally:
                        response.close()
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                    raise unreachable(asked, api.configuration.host, error) from error
            client = await self._renewed(client)

    async def _has_started(self, asked: Asked) -> bool:
        """Return whether the server has read who may do what.

        Before, it refuses everything to everybody, then all but its paths of this kind, which say so. They are
        everybody's to read, unless somebody has taken that right away.
        """
        try:
            async with self.answer(asked, "GET", "/readyz", timeout=_READY_SECONDS):
                return True
        except Refused as error:
            return not (error.passing or error.status == 403)

    async def _renewed(self, stale: _Open) -> _Open:
        async with self._renewing:
            if self._client is stale:
                self._client = await self._opened()
                await stale.retire()
        if self._client is None:
            raise RuntimeError("The client was closed while a request was under way")
        return self._client

    async def _opened(self) -> _Open:
        stack, api, self.extras = await opened(self.conn_id)
        return _Open(stack, api)


def _content_type(method: str, query: Mapping[str, str]) -> str:
    if method != "PATCH":
        return "application/json"
    # JSON is YAML.
    return "application/apply-patch+yaml" if "fieldManager" in query else "application/merge-patch+json"


async def _raise_for_status(asked: Asked, response: ClientResponse) -> None:
    if response.status < 300:
        return
    body = await response.read()
    _document(asked, response, body)
    after = response.headers.get("Retry-After", "")
    # Not chained to anything: the body may hold what was sent.
    text = body.decode(errors="replace")
    raise refusal(asked, response.status, text, float(after) if after.isdigit() else None)


async def _json(asked: Asked, response: ClientResponse) -> dict[str, Any]:
    document = _document(asked, response, await response.read())
    if not isinstance(document, dict):
        raise refusal(asked, 200, "")
    return document


def _document(asked: Asked, response: ClientResponse, body: bytes) -> Any:
    """Return the JSON of an answer, ``None`` where it is something else, e.g. a page of a proxy.

    :param asked: the request.
    :param response: its answer.
    :param body: what has come of it.
    :raises Refused: it is to be JSON and breaks off, so that it says nothing, neither yes nor no.
    """
    try:
        return json.loads(body)
    except ValueError:
        if response.content_type == "application/json":
            raise refused(asked, cut_off(asked)) from None
    return None
