"""Stands in for `vllm serve` where only its processes matter: server, engine and worker live and die as vLLM's do.

The worker's death ends the engine, the engine's death fails the requests and then ends the server; but nothing ends
when its parent is killed. `--drafts FILE` holds the number of drafts that its metrics call accepted in each block.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

TOKENS, SECONDS = 20, 0.01  # of an answer, and per token
LIFE = 300  # seconds: should a test fail to end a process
DEAD = '{"error": {"message": "EngineCore encountered an issue.", "code": 500}}'


def child(role: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, __file__, role])


def engine() -> None:
    signal.alarm(LIFE)
    worker = child("worker")
    sys.exit(worker.wait() or 1)


class Server:
    def __init__(self, drafts: Path | None) -> None:
        self.drafts = drafts
        self.dead = False
        self.blocks = self.accepted = 0
        self.engine = child("engine")
        threading.Thread(target=self.end_with_engine, daemon=True).start()

    def end_with_engine(self) -> None:
        self.engine.wait()
        self.dead = True
        time.sleep(0.3)  # requests get their errors
        os._exit(1)

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(self.events(), media_type="text/event-stream")
        return JSONResponse({"usage": {"completion_tokens": 1}}, 500 if self.dead else 200)

    async def events(self) -> AsyncIterator[str]:
        for _ in range(TOKENS):
            await asyncio.sleep(SECONDS)
            if self.dead:
                yield f"data: {DEAD}\n\n"
                break
            yield 'data: {"choices": [{"text": "1"}]}\n\n'
        else:
            self.blocks += 10
            self.accepted += 10 * int(self.drafts.read_text()) if self.drafts else 0
        yield "data: [DONE]\n\n"

    async def metrics(self, request: Request) -> Response:
        lines = [
            f'nld:blocks_committed_total{{mode="linear"}} {self.blocks}.0',
            f'nld:draft_tokens_total{{mode="linear"}} {31 * self.blocks}.0',
            f'nld:accepted_draft_tokens_total{{mode="linear"}} {self.accepted}.0',
        ]
        return PlainTextResponse("\n".join(lines))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "stub"}]})

    async def health(self, request: Request) -> Response:
        return Response(status_code=503 if self.dead else 200)


def serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--drafts", type=Path)
    options, _ = parser.parse_known_args()
    signal.alarm(LIFE)
    server = Server(options.drafts)
    routes = [
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/metrics", server.metrics),
        Route("/health", server.health),
    ]
    uvicorn.run(Starlette(routes=routes), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    roles = {"engine": engine, "worker": lambda: time.sleep(LIFE)}
    roles.get(sys.argv[1], serve)()
