"""Sends one variant of a case and reads the response, or leaves in the middle."""

import asyncio
import json
from typing import Any

import httpx

from tests.fuzz.case import Case, Response, Variant
from tests.fuzz.endpoints import ENDPOINTS
from vllm_nld.serving.modes import MODES

TIMEOUT = 180.0  # seconds; a server that has not answered by then hangs


class Client:
    """An HTTP client for one server."""

    def __init__(self, url: str) -> None:
        # The server closes a connection after an exception. A request that is sent on it meanwhile is not at fault.
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits)

    async def close(self) -> None:
        await self.http.aclose()

    async def send(self, case: Case, variant: Variant) -> Response | None:
        """The response; None if the client left before it came."""
        try:
            if not case.abort:
                return await self._send(case, variant)
            async with asyncio.timeout(case.abort):
                await self._send(case, variant)
        except TimeoutError:
            return None
        except httpx.HTTPError as error:
            return Response(0, error=f"no answer: {error!r}")
        return None

    async def _send(self, case: Case, variant: Variant) -> Response:
        endpoint = ENDPOINTS[case.endpoint]
        content = json.dumps(endpoint.request(case, variant))  # NaN and infinity included
        call = self.http.build_request("POST", endpoint.path, content=content, headers=JSON)
        answer = await self.http.send(call, stream=True)
        try:
            if answer.status_code != 200:
                return Response(answer.status_code, error=(await answer.aread()).decode())
            if not variant.stream:
                return endpoint.whole(json.loads(await answer.aread()))
            events = [event async for event in server_events(answer)]
        finally:
            await answer.aclose()
        if failed := [event for event in events if "error" in event or event.get("type") == "error"]:
            code = failed[0]["error"].get("code", 500)  # /v1/messages gives none
            return Response(code, error=f"an error in the stream: {json.dumps(failed[0])}", late=True)
        return endpoint.events(events)

    async def healthy(self) -> bool:
        return (await self.http.get("/health")).status_code == 200

    async def running(self) -> float:
        """Requests that the server still works on."""
        gauges = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        return sum([value for name, value in await self.metrics() if name.startswith(gauges)])

    async def ended(self) -> dict[str, float]:
        """For each mode, how many requests have ended."""
        counts = {mode: f'nld:request_latency_seconds_count{{engine="0",mode="{mode}"' for mode in MODES}
        metrics = await self.metrics()
        return {mode: sum(v for name, v in metrics if name.startswith(count)) for mode, count in counts.items()}

    async def metrics(self) -> list[tuple[str, float]]:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return [(name, float(value)) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")]


JSON = {"content-type": "application/json"}


async def server_events(answer: httpx.Response) -> Any:
    """The JSON objects of a stream of server-sent events."""
    async for line in answer.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def command(case: Case, variant: Variant) -> str:
    """A shell command that sends this request to $URL."""
    endpoint = ENDPOINTS[case.endpoint]
    body = json.dumps(endpoint.request(case, variant), ensure_ascii=False).replace("'", "'\\''")
    return f"curl -sN $URL{endpoint.path} -H 'content-type: application/json' -d '{body}'"
