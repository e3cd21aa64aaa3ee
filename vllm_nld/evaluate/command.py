"""`vllm-nld evaluate`: every mode answers the same prompts; one report says which mode to use.

    vllm-nld evaluate "$(vllm-nld nano path)" --prompts nano
    vllm-nld evaluate http://localhost:8000 --prompts prompts.jsonl --modes ar linear diffusion,threshold=0.8

Interrupted, the same command goes on where it was. Exit status: 0 with a report, 2 if the command can't be
carried out, 3 if the server fails.
"""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_nld.evaluate import options as shared
from vllm_nld.evaluate.asking import Unreachable, refusal
from vllm_nld.evaluate.differences import most
from vllm_nld.evaluate.figures import Figures, figures, frame, turns
from vllm_nld.evaluate.prompts import OWN_SETS
from vllm_nld.evaluate.report import Subject, write
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.run import Run
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.target import Target, opened
from vllm_nld.evaluate.variant import BASELINE, Variant, unique
from vllm_nld.tools.server import ServerError

FILE = "answers.jsonl"
SHOWN = 10  # pairs of answers side by side
ONCE = "variants"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld evaluate`."""
    parser.add_argument("target", metavar="MODEL_OR_URL", help="a checkpoint to serve, or the URL of a running server")
    parser.add_argument(
        "--modes",
        nargs="+",
        metavar="MODE",
        help="modes, also with fields: diffusion,threshold=0.8 (default: all that the server offers)",
    )
    parser.add_argument(
        "--baseline", default=BASELINE, metavar="MODE", help="what all are compared with (default: %(default)s)"
    )
    shared.add_arguments(parser, out="runs/evaluate")


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the report, print its summary."""
    with reporting():
        asked = variants_of(options.modes or [], options.baseline) if options.modes else []
        rows, problems = shared.rows_of(options)
        for problem in problems:
            print(f"{options.prompts}, {problem}{' (left out)' if problem.fatal else ''}", file=sys.stderr)
        store = open_store(options, [options.target], rows)
        variants, server = ask(options, rows, asked, store)
        found = figures_of(rows, variants, store, options)
        subject = Subject(
            model=store_name(options.target),
            prompts=f"{options.prompts}'s held-out set" if options.prompts in OWN_SETS else Path(options.prompts).name,
            rows=len(rows),
            concurrency=options.concurrency,
            baseline=variants[0].name,
            server=server,
            gpus=options.gpus,
            price=options.price,
            currency=options.currency,
            problems=tuple(map(str, problems)),
        )
        hidden = options.no_texts or options.digests
        pairs = None if hidden else most(rows, variants, store, variants[0].name, SHOWN)
        files = write(options.out, subject, found, variants, pairs)
        print_summary(files, found)
        return 0


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Turn expected errors into one line and an exit status; SIGTERM ends the command like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (shared.Usage, ValueError) as error:
        print(f"vllm-nld: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Unreachable, ServerError) as error:
        print(f"vllm-nld: {error}\nAnswers so far are kept: the same command goes on where it was.", file=sys.stderr)
        raise SystemExit(3) from None
    except KeyboardInterrupt:
        print("\nInterrupted. Answers so far are kept: the same command goes on where it was.", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(*_: Any) -> None:
    """What SIGTERM does."""
    raise KeyboardInterrupt


def store_name(target: str) -> str:
    """A URL, or a checkpoint's name: its folder's, or for nano/checkpoint the folder's above."""
    if "://" in target:
        return target
    folder = Path(target).resolve()
    return folder.parent.name if folder.name == "checkpoint" else folder.name


def variants_of(modes: Sequence[str], baseline: str) -> list[Variant]:
    """The variants, the baseline first. Raises ValueError for an unknown one."""
    return unique([Variant.parse(baseline), *map(Variant.parse, modes)])


def open_store(options: argparse.Namespace, targets: list[str], rows: list[Row]) -> Store:
    """The stored answers. Raises Usage if the folder holds those of something else."""
    try:
        return Store(options.out / FILE, shared.fingerprint(options, targets, rows), options.fresh, keep=True)
    except ValueError as error:
        raise shared.Usage(f"{error}. Choose another --out, or discard them with --fresh") from None


def ask(options: argparse.Namespace, rows: list[Row], asked: list[Variant], store: Store) -> tuple[list[Variant], str]:
    """Everything that the store lacks; the variants that were asked, and a sentence about the server."""
    known = store.get(("server",))
    variants = asked or [Variant.parse(text) for text in store.get((ONCE,)) or ()]
    if variants and known is not None and not run_of(options, rows, store, Target("", "")).missing(rows, variants):
        return variants, known
    start: dict[str, Any] = {"flags": shlex.split(options.flags), "log": options.out / "server.log"}
    start["tools"] = any("tools" in row.options for row in rows)
    with opened(options.target, asked, model=options.model, **start) as target:
        store.put(("server",), target.build)
        variants = offered(target, asked or defaults(target, options.baseline))
        store.put((ONCE,), [spelled(variant) for variant in variants])
        take(options, rows, variants, store, target)
    return variants, target.build


def spelled(variant: Variant) -> str:
    """As the command line names it."""
    return ",".join([variant.mode or "default", *(f"{name}={value:g}" for name, value in variant.fields.items())])


def defaults(target: Target, baseline: str) -> list[Variant]:
    """All modes that the server offers, or what it does by itself."""
    return variants_of(target.modes, baseline) if target.modes else [Variant(None)]


def offered(target: Target, variants: list[Variant]) -> list[Variant]:
    """Those in which the server decodes; a line for each that it refuses. Raises ServerError if that is the first."""
    kept = []
    for variant in variants:
        reason = refusal(variant.url or target.url, variant.model or target.model, variant)
        if not reason:
            kept.append(variant)
        elif variant is variants[0]:
            raise ServerError(f"{target.url} refuses {variant.name}, with which all others are compared: {reason}")
        else:
            print(f"{target.url} refuses {variant.name}, which is left out: {reason}", file=sys.stderr)
    return kept


def run_of(options: argparse.Namespace, rows: list[Row], store: Store, target: Target, bar: Any = None) -> Run:
    return Run(
        store,
        target.url,
        target.model,
        concurrency=options.concurrency,
        scorer=None if bar is None else shared.scorer_of(options, rows),
        seed=options.seed,
        defaults=shared.defaults_of(options),
        digests=options.digests,
        timeout=options.timeout,
        progress=(lambda answers: None) if bar is None else bar.update,
    )


def take(options: argparse.Namespace, rows: list[Row], variants: list[Variant], store: Store, target: Target) -> None:
    """Ask, with a progress bar."""
    from tqdm import tqdm

    with tqdm(unit="answer", desc="asking") as bar:
        running = run_of(options, rows, store, target, bar)
        total = len(rows) * len(variants)
        bar.total, bar.n, bar.initial = total, *(2 * [total - running.missing(rows, variants)])
        bar.refresh()
        running.ask(rows, variants)


def figures_of(rows: list[Row], variants: list[Variant], store: Store, options: argparse.Namespace) -> Figures:
    """The figures of everything that is stored for these rows and variants."""
    return figures(
        frame(rows, variants, store), turns(store, variants, rows), variants[0].name, options.gpus, options.price
    )


def print_summary(files: list[Path], found: Figures) -> None:
    """The report's first paragraphs, and where it is."""
    text = next(file for file in files if file.suffix == ".md").read_text(encoding="utf-8")
    body = text.split("\n\n", 1)[1]
    print(body[: body.index("\n## ")].strip())
    print("\nReport: " + ", ".join(str(file) for file in files if file.suffix in (".md", ".html", ".json")))
