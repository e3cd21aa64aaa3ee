"""`vllm-nld probe`: does a server answer a one-token request? For start-up probes of containers.

A server can be healthy and still unable to decode; /health alone does not tell. Reads VLLM_API_KEY as `vllm serve`
does.
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
    """GET, or POST of a JSON body. Raises OSError for anything but a 200."""
    headers = {"content-type": "application/json"}
    if key := os.environ.get("VLLM_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
        return json.load(answer)


def ask(url: str, timeout: float) -> None:
    """Ask the first served model for one token. Raises OSError or ValueError where it does not come."""
    model = call(f"{url}/v1/models", timeout=timeout)["data"][0]["id"]
    answer = call(f"{url}/v1/completions", {"model": model, "prompt": "1", "max_tokens": 1}, timeout)
    if answer["usage"]["completion_tokens"] != 1:
        raise ValueError(f"{model} answered {answer['usage']['completion_tokens']} tokens instead of one")


def refusal(url: str, timeout: float) -> str:
    """Why the server at `url` does not decode; empty where it does."""
    try:
        ask(url, timeout)
    except (OSError, ValueError) as error:
        return str(error) or repr(error)
    return ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld probe`."""
    parser.add_argument("url", nargs="?", default=URL, help="where the server listens (%(default)s)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds for each of the two requests (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where the server does not answer."""
    if reason := refusal(args.url, args.timeout):
        print(f"{args.url} does not decode: {reason}", file=sys.stderr)
        return 1
    print(f"{args.url} decodes")
    return 0
