"""Tool calls in the Hermes form: tools stand in the system message, the answer is a `<tool_call>` with JSON inside."""

import json
import random
from typing import Any

from vllm_nld.nano.task import Task
from vllm_nld.nano.words import CITIES, FRUITS, NAMES, STATUSES, TEAMS, THINGS


def tool(name: str, description: str, parameters: dict[str, str]) -> dict[str, Any]:
    """A function in the OpenAI form; every parameter is required."""
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in parameters.items()},
        "required": list(parameters),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


# name, what it does, parameters, request; each {slot} of the request is a parameter
SPECS: tuple[tuple[str, str, dict[str, str], str], ...] = (
    (
        "get_weather",
        "Weather in a city",
        {"city": "string", "unit": "string"},
        "What is the weather in {city} in {unit}?",
    ),
    (
        "book_hotel",
        "Book a hotel",
        {"city": "string", "nights": "integer"},
        "Book a hotel in {city} for {nights} nights.",
    ),
    ("book_trip", "Book a trip", {"origin": "string", "city": "string"}, "Book a trip from {origin} to {city}."),
    ("send_mail", "Send a mail", {"name": "string", "subject": "string"}, "Send a mail to {name} about the {subject}."),
    ("order_item", "Order an item", {"item": "string", "count": "integer"}, "Order {count} of the item {item}."),
    (
        "add_task",
        "Add a task",
        {"team": "string", "status": "string"},
        "Add a task with status {status} for team {team}.",
    ),
    ("find_user", "Find a user", {"name": "string", "city": "string"}, "Find the user {name} from {city}."),
    (
        "set_timer",
        "Set a timer",
        {"minutes": "integer", "name": "string"},
        "Set a timer of {minutes} minutes for {name}.",
    ),
    ("buy_fruit", "Buy fruit", {"fruit": "string", "count": "integer"}, "Buy {count} pieces of {fruit}."),
)


def draw_argument(rng: random.Random, key: str) -> str | int:
    """A value for one parameter."""
    if key in ("nights", "count", "minutes"):
        return rng.randint(2, 60)
    if key == "unit":
        return rng.choice(["celsius", "kelvin"])
    pools = {"city": CITIES, "origin": CITIES, "name": NAMES, "team": TEAMS, "status": STATUSES, "fruit": FRUITS}
    return rng.choice(pools.get(key, THINGS))


def tool_task(rng: random.Random) -> Task:
    """Choose the right one of one or two tools and fill in its arguments."""
    specs = rng.sample(SPECS, rng.randint(1, 2))
    name, _, parameters, request = rng.choice(specs)
    arguments = {key: draw_argument(rng, key) for key in parameters}
    call = json.dumps({"name": name, "arguments": arguments})
    tools = tuple(tool(spec[0], spec[1], spec[2]) for spec in specs)
    return Task("tool_call", request.format(**arguments), f"<tool_call>\n{call}\n</tool_call>", f"Call {name}.", tools)
