"""`vllm serve` with the tiny vision-language model and an OpenAI client: images arrive, and bad ones do no harm."""

import base64
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.pictures import animation, encoded, picture
from tests.serving.test_server import UNI, connect
from tests.spec_worker.conftest import write_agreeable_checkpoint
from tests.tiny import VLM
from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.prompts import read
from vllm_nld.evaluate.run import ANSWER, Run
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant
from vllm_nld.nano.export import save_tokenizer
from vllm_nld.nano_vlm.export import CONFIG, build_tokenizer
from vllm_nld.reference import generate
from vllm_nld.reference.vlm import ReferenceVLM
from vllm_nld.tools.server import Server

pytestmark = pytest.mark.server

FLAGS = ["--served-model-name", "vlm", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", *UNI]
FLAGS += ["--additional-config", json.dumps({"nld": {"mode": "linear", "block_length": 8}})]
FLAGS += ["--limit-mm-per-prompt", '{"image": 3}', "--allowed-media-domains", "127.0.0.1"]
FLAGS += ["--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})]
FLAGS += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
RED, NOISE = Image.new("RGB", (30, 20), "red"), picture(40, 33)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With nano-vlm's tokenizer, which can write any text."""
    path = write_agreeable_checkpoint(tmp_path_factory.mktemp("vlm"), **VLM | {"vocab_size": CONFIG["vocab_size"]})
    save_tokenizer(build_tokenizer(), path)
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(checkpoint, FLAGS, log=tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return connect(server)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ReferenceVLM:
    return ReferenceVLM.from_pretrained(checkpoint)


def url(data: bytes | Image.Image, kind: str = "image/png") -> str:
    """A data URL of an image, or of a file's contents."""
    contents = data if isinstance(data, bytes) else encoded(data)
    return f"data:{kind};base64,{base64.b64encode(contents).decode()}"


def content(*parts: str | Image.Image) -> list[dict[str, Any]]:
    """Texts, images and image URLs as parts of a message."""
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str) and ":" not in part:
            found.append({"type": "text", "text": part})
        else:
            found.append({"type": "image_url", "image_url": {"url": part if isinstance(part, str) else url(part)}})
    return found


def ask(client: openai.OpenAI, parts: list[dict[str, Any]], **options: Any) -> Any:
    extra = {"return_token_ids": True} | options.pop("extra_body", {})
    return client.chat.completions.create(
        model="vlm",
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        extra_body=extra,
        **{"max_tokens": 16} | options,
    )


def exact(model: ReferenceVLM, expanded: list[int], images: list[Image.Image], **options: Any) -> list[int]:
    """What the reference answers to a prompt that a server has expanded."""
    prompt = [token for token in expanded if token not in (19, 20, 21)]
    with model.shown(prompt, images) as tokens:
        assert tokens == expanded, "the server must expand prompts as the reference does"
        return generate(model, tokens, **{"mode": "ar", "max_new_tokens": 16, "block_length": 8} | options).tokens


PROMPTS: dict[str, tuple[str | Image.Image, ...]] = {
    "an image": (RED, "t50 t51"),
    "an image after a text": ("t50 t51", NOISE),
    "three of different sizes": (RED, "t60", NOISE, "t61", picture(9, 70)),
    "a text": ("t50 t51",),
}


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("mode", ["ar", "linear", "diffusion"])
def test_answers_equal_the_reference(
    parts: tuple[str | Image.Image, ...], mode: str, client: openai.OpenAI, model: ReferenceVLM
) -> None:
    answer = ask(client, content(*parts), extra_body={"vllm_xargs": {"nld_mode": mode}})
    images = [part for part in parts if not isinstance(part, str)]
    options = {"mode": "diffusion", "threshold": 0.9} if mode == "diffusion" else {}
    assert answer.choices[0].token_ids == exact(model, answer.prompt_token_ids, images, **options)
    assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)


def test_streams(client: openai.OpenAI) -> None:
    parts = content(NOISE, "t70", RED)
    whole = ask(client, parts)
    pieces = list(ask(client, parts, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content


def test_tool_call_about_an_image(client: openai.OpenAI) -> None:
    """The grammar holds while the model drafts, and the image is in the prompt."""
    color = {"type": "string", "enum": ["red", "blue"]}
    parameters = {"type": "object", "properties": {"color": color}, "required": ["color"]}
    function = {"name": "paint", "strict": True, "parameters": parameters | {"additionalProperties": False}}
    answer = ask(
        client,
        content(RED, "Which color?"),
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "paint"}},
        max_tokens=200,
    )

    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "paint" and json.loads(call.function.arguments)["color"] in color["enum"]
    assert answer.prompt_token_ids.count(19) == 12, "an image of 30 x 20 pixels has 4 x 3 cells"


def test_urls(client: openai.OpenAI) -> None:
    """Images from the web, if their domain is allowed; the same image makes the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(NOISE))

        def log_message(self, *_: Any) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{web.server_port}/noise.png"
        fetched, sent = (ask(client, content(part, "t70")).choices[0].token_ids for part in (address, NOISE))
        assert fetched == sent
        with pytest.raises(openai.BadRequestError, match="allowed domains"):
            ask(client, content(address.replace("127.0.0.1", "localhost"), "t70"))
    finally:
        web.shutdown()
        web.server_close()


def bomb(side: int) -> bytes:
    """A PNG whose header promises more pixels than follow."""
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def without_pixels() -> bytes:
    return encoded(Image.new("L", (8, 8)), "PPM").replace(b"8 8", b"0 8")


BAD: dict[str, tuple[str, str]] = {
    "truncated": (url(encoded(NOISE)[:200]), "."),
    "not an image": (url(b"<html>"), "."),
    "empty": (url(b""), "."),
    "no base64": ("data:image/png;base64,!!!", "."),
    "no data": ("data:image/png", "."),
    "no pixels": (url(without_pixels()), "."),
    "100 megapixels": (url(bomb(10_000)), "10000x10000 .* exceed the maximum"),
    "a gigapixel": (url(bomb(32_000)), "the image cannot be read: .*decompression bomb"),
    "animated": (url(animation(3)), "3 frames"),
    "CMYK": (url(encoded(Image.new("CMYK", (8, 8)), "JPEG")), "mode 'CMYK'"),
    "text by its type": (url(encoded(RED), "text/html"), "media type 'text/html'"),
    "a file": ("file:///etc/hostname", "allowed-local-media-path"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images(name: str, client: openai.OpenAI) -> None:
    """HTTP 400, and the next request is answered."""
    address, message = BAD[name]
    with pytest.raises(openai.BadRequestError, match=f"(?s){message}"):
        ask(client, content(address, "t50"))
    assert ask(client, content(RED, "t50")).choices[0].token_ids


def test_numbers_of_images_are_checked(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"At most 3 image\(s\)"):
        ask(client, content(*[RED] * 4))
    with pytest.raises(openai.BadRequestError, match=r"2 <\|image_start\|> for 1 images"):
        ask(client, content(RED, "t50 <|image_start|> t51"))
    with pytest.raises(openai.BadRequestError, match="mm_processor_kwargs"):
        ask(client, content(picture(8, 8, seed=9), "t50"), extra_body={"mm_processor_kwargs": {"size": 3}})


def test_an_evaluation_shows_each_row_its_images(server: Server, client: openai.OpenAI, tmp_path: Path) -> None:
    """Files beside the prompt file and data URLs, one or several; in every mode the answers of a plain client."""
    (tmp_path / "noise.png").write_bytes(encoded(NOISE))
    shown: dict[str, tuple[str | Image.Image, ...]] = {
        "none": ("t50 t51",),
        "file": (NOISE, "t50 t51"),
        "two": (NOISE, RED, "t50 t51"),
    }
    images = {"none": [], "file": ["noise.png"], "two": ["noise.png", url(RED)]}
    rows = [{"id": name, "prompt": "t50 t51", "images": images[name], "max_tokens": 16} for name in shown]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, problems = read(tmp_path / "rows.jsonl")
    assert not problems
    run, variants = (
        Run(Store(tmp_path / "answers.jsonl", {}), server.url, "vlm"),
        [*map(Variant.parse, ("ar", "linear"))],
    )
    run.ask(asked, variants)
    for variant in variants:
        for name, parts in shown.items():
            answer = Answer.load(run.store.get((ANSWER, variant.name, name)))
            expected = ask(client, content(*parts), extra_body=variant.body)
            assert answer.error is None and answer.text == expected.choices[0].message.content, (variant.name, name)
            assert answer.prompt_tokens == expected.usage.prompt_tokens
    counts = [Answer.load(run.store.get((ANSWER, "ar", name))).prompt_tokens for name in shown]
    assert counts == sorted(set(counts)), "each image has tokens of its own"
