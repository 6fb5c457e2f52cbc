"""A proxy before the API server that lets requests and answers come to harm.

It speaks TLS with a certificate of its own authority and passes tokens on. Whoever shows a certificate instead is not
known behind it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from tests.cluster.bed.certificates import Authority
from tests.faults.plan import Fault, Kind, Plan

PAGE = "5"
"""Objects in one page of a list, however many were asked for: else a short list has no second page."""

_HOP = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}
_REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 410: "Expired"}
_STATUS = {Fault.BUSY: 429, Fault.BROKEN: 500, Fault.AWAY: 503, Fault.EXPIRED: 410}


class FaultProxy:
    """A running proxy, from entering the context to leaving it, in a thread of its own.

    :param server: address of the API server.
    :param authority: file with the certificate by which that one is known.
    :param plan: which faults.
    :param folder: for certificates; made here.
    """

    def __init__(self, server: str, authority: Path, plan: Plan, folder: Path) -> None:
        self.authority = Authority(folder)
        self.url = ""
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.clean = False
        """Whether all is passed on as it is."""
        self._server, self._server_authority, self._plan = server, authority, plan
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._late: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self) -> None:
        secure = self._server.startswith("https:")
        trust = ssl.create_default_context(cafile=str(self._server_authority)) if secure else False
        # As many connections as there are requests: what waits for one in here is a fault that nobody has drawn.
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._client = aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout)
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.authority.issue("proxy"))
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await asyncio.gather(*self._late)
        await self._client.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind = _kind(request)
        fault, after = (None, 0.0) if self.clean else self._plan.draw(kind)
        self.requests[kind.value] += 1
        if fault:
            self.faults[fault.value] += 1
        body = await request.read()
        try:
            if fault is Fault.DROPPED:
                return _abort(request)
            if fault in _STATUS and kind is not Kind.WATCH:
                return _refuse(_STATUS[fault], body)
            if fault is Fault.LATE:
                return await self._late_answer(request, body, after)
            if kind is Kind.WATCH:
                return await self._watch(request, body, fault, after)
            return await self._whole(request, body, fault, after)
        except (aiohttp.ClientError, OSError):
            return _abort(request)  # the API server is away: nobody listens there

    def _passed_on(self, request: web.Request, body: bytes) -> Any:
        query = dict(request.query)
        if "limit" in query:
            query["limit"] = PAGE
        headers = CIMultiDict({name: value for name, value in request.headers.items() if name.lower() not in _HOP})
        url = self._server + request.rel_url.raw_path
        return self._client.request(request.method, url, params=query, headers=headers, data=body or None)

    async def _whole(self, request: web.Request, body: bytes, fault: Fault | None, after: float) -> web.StreamResponse:
        async with self._passed_on(request, body) as answer:
            content = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        if fault is Fault.SLOW:
            await asyncio.sleep(after)
        if fault is Fault.LOST:
            return _abort(request)
        if fault is Fault.TRIMMED:
            content = content[: len(content) // 2]
        if fault is not Fault.HALVED:
            return web.Response(status=answer.status, body=content, headers=kept)
        half = web.StreamResponse(status=answer.status, headers={**kept, "Content-Length": str(len(content))})
        await half.prepare(request)
        await half.write(content[: len(content) // 2])
        return _abort(request, half)

    async def _late_answer(self, request: web.Request, body: bytes, after: float) -> web.StreamResponse:
        """Hold a request back, and let it arrive whether or not the one who sent it still lives."""

        async def arrive() -> web.StreamResponse | None:
            await asyncio.sleep(after)
            try:
                return await self._whole(request, body, None, 0)
            except (aiohttp.ClientError, OSError):
                return None

        task = asyncio.create_task(arrive())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return await asyncio.shield(task) or _abort(request)

    async def _watch(self, request: web.Request, body: bytes, fault: Fault | None, after: float) -> web.StreamResponse:
        if fault in (Fault.BUSY, Fault.AWAY):
            return _refuse(_STATUS[fault], body)
        async with self._passed_on(request, body) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            async for piece in _broken(answer, fault, after):
                await stream.write(piece)
        if fault is Fault.CUT:
            return _abort(request, stream)
        await stream.write_eof()
        return stream


async def _broken(answer: aiohttp.ClientResponse, fault: Fault | None, after: float) -> AsyncIterator[bytes]:
    """Yield the bytes of a watch, as far as a fault lets them through."""
    loop = asyncio.get_running_loop()
    end = loop.time() + after if fault in (Fault.CUT, Fault.ENDED, Fault.EXPIRED) else None
    while True:
        try:
            # One more line is waited for, as long again, so that there is one to be cut.
            left = None if end is None else max(end - loop.time(), 0) + after
            chunk = await asyncio.wait_for(answer.content.readany(), left)
        except asyncio.TimeoutError:
            chunk = b""
        if fault is Fault.SLOW:
            await asyncio.sleep(after / 4)
        if not chunk or (end and loop.time() >= end):
            if fault is Fault.EXPIRED:
                yield json.dumps({"type": "ERROR", "object": _status(410, "too old resource version")}).encode() + b"\n"
            else:
                yield chunk[: len(chunk) * 2 // 3]
            return
        yield chunk


def _kind(request: web.Request) -> Kind:
    if "watch" in request.query:
        return Kind.WATCH
    if "continue" in request.query:
        return Kind.PAGE
    return {"POST": Kind.CREATE, "GET": Kind.READ}.get(request.method, Kind.CHANGE)


def _abort(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": _REASONS[code], "message": message}


def _refuse(code: int, body: bytes) -> web.Response:
    """Refuse as an API server does, which quotes what it was sent; a 503 is a load balancer's, in its own words."""
    if code == 503:
        return web.Response(status=503, text="<html><body>upstream connect error</body></html>")
    message = f"it has failed with: {body.decode(errors='replace')}"
    headers = {"Retry-After": "2"} if code == 429 else {}
    return web.json_response(_status(code, message), status=code, headers=headers)
