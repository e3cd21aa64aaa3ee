"""A closed loop: clients that each ask the next question as soon as they have an answer.

alternate(["a", "b", "c"], turn=1)                  # ["c", "b", "a"]
answers = await closed_loop([(8, 100)], ask)        # 100 questions, 8 at a time
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

Name = TypeVar("Name")
Stage = tuple[int, int]  # clients, and the number of questions that they send


async def closed_loop(stages: Sequence[Stage], ask: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Ask question 0, 1, 2, ..., each as soon as fewer requests run than its stage has clients; the answers.

    An exception of `ask` ends the loop.
    """
    tasks: list[asyncio.Task[Any]] = []
    running: set[asyncio.Task[Any]] = set()
    for clients, count in stages:
        for _ in range(count):
            while len(running) >= clients:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what `ask` raised
            task = asyncio.ensure_future(ask(len(tasks)))
            tasks.append(task)
            running.add(task)
    return await asyncio.gather(*tasks)


def alternate(names: Sequence[Name], turn: int) -> list[Name]:
    """The order of a turn in which all take part: it rotates, and each order is played forwards, then backwards."""
    first = turn // 2 % len(names)
    order = [*names[first:], *names[:first]]
    return order[::-1] if turn % 2 else order
