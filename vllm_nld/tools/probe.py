"""`vllm-nld probe`: does a server answer a one-token request? For start-up probes of containers.

If a server can't decode, /health may not show it. Reads VLLM_API_KEY, like `vllm serve`.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

URL = "http://127.0.0.1:8000"


def call(url: str, body: Any = None, timeout: float = 10) -> Any:
    """GET, or POST a JSON body. Raises OSError if the status is not 200."""
    headers = {"content-type": "application/json"}
    if key := os.environ.get("VLLM_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
        return json.load(answer)


def ask(url: str, timeout: float) -> None:
    """Ask the first served model for one token. Raises OSError or ValueError if there is none."""
    model = call(f"{url}/v1/models", timeout=timeout)["data"][0]["id"]
    answer = call(f"{url}/v1/completions", {"model": model, "prompt": "1", "max_tokens": 1}, timeout)
    if answer["usage"]["completion_tokens"] != 1:
        raise ValueError(f"{model} returned {answer['usage']['completion_tokens']} tokens instead of one")


def refusal(url: str, timeout: float) -> str:
    """Why the server at `url` does not decode; empty if it does."""
    try:
        ask(url, timeout)
    except (OSError, ValueError) as error:
        return str(error) or repr(error)
    return ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld probe`."""
    parser.add_argument("url", nargs="?", default=URL, help="the server's address (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=10, help="seconds for each of the two requests (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Returns status 1 if the server does not decode."""
    if reason := refusal(args.url, args.timeout):
        print(f"{args.url} does not decode: {reason}", file=sys.stderr)
        return 1
    print(f"{args.url} decodes")
    return 0
