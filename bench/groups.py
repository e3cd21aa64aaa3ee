"""Groups of masks, counted: the tokens that a forward yields and the rows that it takes, by block length and groups.

    python -m bench groups

The engine decodes the questions with every number of groups, with the draft adapter and without. The reference then
does it with groups at the ends of draft trees, which are not served. Nothing is timed, so a busy machine is fine.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.ends import Counts, Shape, decode
from bench.engines import engines
from bench.prompts import read
from vllm_nld.evaluate.spread import table
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.provenance import describe, provenance

BLOCKS = (8, 16, 32)
GROUPS = (1, 2, 4, 5, 6, 8)  # besides all of them
LONGEST = max(BLOCKS)
FEW = 48  # questions that the reference answers, which takes long; they are of all kinds
TREES = {0: (0, 1, 2, 3, 4, 5), 31: (0, 1, 2, 4), 64: (0, 1, 2, 4)}  # groups by nodes; 0 nodes: a chain
SHARE, ROWS = 0.9, 0.2  # of the full form's tokens per forward, and of its rows: what groups are meant to reach
CLIENTS = 8
TITLES = {"auto": "With the draft adapter in the masks' rows", "off": "Without the adapter"}
REFERENCE = "trees"
PARTS = (*TITLES, REFERENCE)

Prompt = tuple[list[int], int]  # token ids, and output tokens at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts (default: all)")
    parser.add_argument("--limit", type=int, help="only this many questions (quick: 8)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Count, print the report and return the sums of every setting."""
    prompts = questions(options.model)[: options.limit or (8 if options.quick else None)]
    result = {
        "provenance": provenance(),
        "questions": len(prompts),
        "served": {name: engine(options.model, name, prompts) for name in TITLES if name in options.only},
        "trees": trees(options.model, prompts[:FEW]) if REFERENCE in options.only else [],
    }
    print(report(result))
    return result


def questions(model: Path) -> list[Prompt]:
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs

    register_configs()  # the tokenizer's loader also reads config.json
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = read(tokenizer, None)
    return [(tokenizer(row.prompt, add_special_tokens=False)["input_ids"], row.max_tokens) for row in rows]


# The engine


def engine(model: Path, adapter: str, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Sums over the answers, by block length and groups."""
    asked = [(size, groups) for size in BLOCKS for groups in (*GROUPS, size) if groups <= size]
    with engines() as start:
        child = start(f"adapter {adapter}", serve, model, adapter)
        return [child.ask(prompts, *one) for one in tqdm(dict.fromkeys(asked), desc=f"adapter {adapter}")]


def serve(model: Path, adapter: str, pipe: Connection) -> None:
    """The child: load the engine and answer questions."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    llm = LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=2 * LONGEST * (LONGEST + 1),
        max_num_seqs=CLIENTS,
        max_num_batched_tokens=CLIENTS * LONGEST * (LONGEST + 1),
        per_request_spec_decode_metrics="summary",
        additional_config={"nld": {"mode": "quadratic", "draft_lora": adapter}},
    )
    pipe.send("ready")
    while True:
        try:
            pipe.send(count(llm, *pipe.recv()))
        except EOFError:
            return


def count(llm: Any, prompts: Sequence[Prompt], size: int, groups: int) -> dict[str, Any]:
    """Sums over the answers to all prompts."""
    from vllm import SamplingParams

    asked = {"nld_block_length": size, "nld_groups": groups}
    params = [SamplingParams(temperature=0, max_tokens=most, detokenize=False, extra_args=asked) for _, most in prompts]
    given: list[Any] = [{"prompt_token_ids": ids} for ids, _ in prompts]
    answers = [output.outputs[0] for output in llm.generate(given, params, use_tqdm=False)]
    figures = [answer.spec_decode_metrics for answer in answers if answer.spec_decode_metrics is not None]
    rounds = sum(sum(one.histogram) for one in figures)
    accepted = sum(drafts * steps for one in figures for drafts, steps in enumerate(one.histogram))
    return {
        "block_length": size,
        "groups": groups,
        "answers": len(answers),
        "tokens": sum(len(answer.token_ids) for answer in answers),
        "rounds": rounds,
        "accepted": accepted,
        "passes": sum(one.forwards for one in figures) - rounds,
    }


# The reference, with trees


def trees(model: Path, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Sums over the answers, by nodes and groups."""
    from vllm_nld.reference import ReferenceModel
    from vllm_nld.reference.generation import Output

    reference, found = ReferenceModel.from_pretrained(model), []
    shapes = [Shape(LONGEST, nodes, groups) for nodes, numbers in TREES.items() for groups in numbers]
    for shape in tqdm(shapes, desc="trees with groups"):
        counts, tokens = Counts(), 0
        for ids, most in prompts:
            output = Output(most, tuple(reference.config.eos_token_ids))
            decode(reference, ids, shape, output, counts)
            tokens += len(output.tokens)
        found.append(asdict(shape) | asdict(counts) | {"answers": len(prompts), "total": tokens, "rows": shape.rows})
    return found


# The report


def per_forward(row: dict[str, Any]) -> float:
    """Output tokens per forward, as NFE counts them: the prefill, a round's, and draft passes."""
    return float(row.get("total", row["tokens"]) / (row["answers"] + row["rounds"] + row["passes"]))


def rows_per_round(row: dict[str, Any], rows: int) -> float:
    """The rows of a verifying forward, and of draft passes."""
    return float(rows + row["block_length"] * row["passes"] / row["rounds"])


def report(result: dict[str, Any]) -> str:
    """Tables, with what to read in them."""
    shown = result["served"]
    parts = [
        f"{result['questions']} questions of nano's held-out prompts, greedy, float32 (`python -m bench groups`; only "
        f"counts, nothing is timed). {describe(result['provenance'])}",
        "In the engine. TPF: output tokens per forward, where a prompt counts as one forward, as in the reference, "
        "although its last token has a step of its own; steps: the same with that step. Rows: of a round, draft passes "
        "included. In brackets: the share of the full form's, which has a group for each token of a block. Hits: the "
        "share of blocks, first ones included, that a group drafted. AL: tokens of a round.",
        *(f"{title}:\n\n{served(shown[name])}" for name, title in TITLES.items() if name in shown),
    ]
    if "auto" in shown:
        parts.append(reached(shown["auto"]))
    if rows := result["trees"]:
        parts.append(
            f"In the reference, with the adapter: groups at the likeliest ends of a draft tree, blocks of {LONGEST}, "
            f"the first {rows[0]['answers']} questions. Hits: the share of rounds which a group continued, of "
            "those that were not the last; in brackets, what the drafts' probabilities let expect."
        )
        parts.append(with_trees(rows))
    return "\n\n".join(parts)


def served(rows: Sequence[dict[str, Any]]) -> str:
    """One line per block length and number of groups."""
    full = {row["block_length"]: row for row in rows if row["groups"] == row["block_length"]}
    lines = []
    for row in rows:
        best = full[row["block_length"]]
        width = rows_per_round(row, served_rows(row))
        lines.append(
            [
                str(row["block_length"]),
                "all" if row is best else str(row["groups"]),
                f"{per_forward(row):.2f} ({per_forward(row) / per_forward(best):.0%})",
                f"{row['tokens'] / (2 * row['answers'] + row['rounds'] + row['passes']):.2f}",
                f"{width:.0f} ({width / served_rows(best):.0%})",
                f"{1 - row['passes'] / row['rounds']:.1%}",
                f"{1 + row['accepted'] / row['rounds']:.2f}",
            ]
        )
    return table(["block", "groups", "TPF", "steps", "rows", "hits", "AL"], lines)


def served_rows(row: dict[str, Any]) -> int:
    """Rows of a verifying forward."""
    return int(row["block_length"] * (1 + row["groups"]))


def reached(rows: Sequence[dict[str, Any]]) -> str:
    """Which settings reach the aim."""
    full = {row["block_length"]: row for row in rows if row["groups"] == row["block_length"]}
    good = [
        f"{row['groups']} in blocks of {row['block_length']}"
        for row in rows
        if per_forward(row) >= SHARE * per_forward(full[row["block_length"]])
        and rows_per_round(row, served_rows(row)) <= ROWS * served_rows(full[row["block_length"]])
    ]
    return (
        f"At least {SHARE:.0%} of the full form's tokens per forward at no more than {ROWS:.0%} of its rows, with the "
        f"adapter: {', '.join(good) or 'none'}."
    )


def with_trees(rows: Sequence[dict[str, Any]]) -> str:
    """One line per tree and number of groups."""
    lines = []
    for row in rows:
        again = row["rounds"] - row["answers"]  # rounds that something had to follow
        lines.append(
            [
                f"tree of {row['nodes']}" if row["nodes"] else "chain",
                str(row["groups"]) if row["groups"] else "a draft pass instead",
                f"{rows_per_round(row, row['rows']):.0f}",
                f"{row['tokens'] / row['rounds']:.2f}",
                f"{per_forward(row):.2f}",
                f"{row['hits'] / again:.0%} ({row['expected'] / again:.0%})" if row["groups"] else "–",
            ]
        )
    return table(["drafts", "groups", "rows", "AL", "TPF", "hits"], lines)
