"""The vocabulary of the nano tasks: everyday words, so that prompts read like small office requests.

Each kind of field knows how to draw a value, so that a record makes sense (`city` is a city, `age` a number).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


NAMES = words(
    "Alice Anna Arthur Bella Boris Carla Carlos Chloe Clara Daniel David Diana Elena Emma Erik Eva Felix Fiona Frank "
    "George Grace Hanna Hugo Ida Igor Ines Ivan Jack Jana Julia Karl Kate Laura Leo Lily Lucas Luna Maria Mark Martin "
    "Maya Mia Mila Nina Noah Nora Olga Oliver Oscar Paul Peter Petra Rita Robert Rosa Sara Simon Sofia Tara Theo Tom "
    "Vera Victor Wanda Yara Zoe"
)
CITIES = words(
    "Athens Berlin Bern Boston Cairo Dallas Delhi Denver Dublin Geneva Hanoi Kyoto Lagos Lima Lisbon London Lyon "
    "Madrid Miami Milan Munich Nairobi Oslo Paris Prague Quito Riga Rome Seoul Tokyo Turin Vienna Warsaw Zurich"
)
COLORS = words("red blue green black white yellow orange purple brown pink gray silver gold")
FRUITS = words(
    "apple banana cherry grape lemon mango melon olive peach pear plum carrot potato tomato onion bread butter"
)
ANIMALS = words("bear bird cat cow dog duck fox frog goat horse lion mouse owl rabbit sheep tiger whale wolf")
THINGS = words(
    "bag ball book bottle box chair clock cup desk door key lamp map mirror phone ring rope table ticket wheel"
)
PLACES = words(
    "bridge castle farm forest garden harbor house island market museum park river school station tower village"
)
ADJECTIVES = words(
    "big bright calm clever cold dark fast happy heavy loud new old quick quiet sad small strong tall warm young"
)
VERBS = words("finds follows hears helps likes meets needs opens sees takes wants watches")
STATUSES = words("active closed draft failed new open paid pending ready sent")
TEAMS = words("sales legal design support finance research security data web mobile")
ENTITIES = words(
    "Account Book Camera Car Client Course Customer Device Employee Event Game Hotel Invoice Movie Order Patient "
    "Player Product Project Report Room Server Student Task Teacher Ticket Trip User Vehicle"
)


@dataclass(frozen=True)
class Field:
    """One column of a record: its name, its Python type and how to draw a value as it is written in the prompt."""

    name: str
    kind: str  # "str", "int", "float" or "bool"
    draw: Callable[[random.Random], str]


def choice(words: list[str]) -> Callable[[random.Random], str]:
    """Draw one of the words."""
    return lambda rng: rng.choice(words)


def whole(low: int, high: int) -> Callable[[random.Random], str]:
    """Draw a whole number, both ends included."""
    return lambda rng: str(rng.randint(low, high))


def decimal(low: int, high: int) -> Callable[[random.Random], str]:
    """Draw a number with one decimal."""
    return lambda rng: f"{rng.randint(low, high)}.{rng.randint(0, 9)}"


FIELDS = (
    Field("name", "str", choice(NAMES)),
    Field("owner", "str", choice(NAMES)),
    Field("manager", "str", choice(NAMES)),
    Field("author", "str", choice(NAMES)),
    Field("city", "str", choice(CITIES)),
    Field("origin", "str", choice(CITIES)),
    Field("address", "str", choice(CITIES)),
    Field("color", "str", choice(COLORS)),
    Field("status", "str", choice(STATUSES)),
    Field("team", "str", choice(TEAMS)),
    Field("item", "str", choice(THINGS)),
    Field("fruit", "str", choice(FRUITS)),
    Field("pet", "str", choice(ANIMALS)),
    Field("age", "int", whole(18, 80)),
    Field("year", "int", whole(1970, 2025)),
    Field("count", "int", whole(1, 99)),
    Field("size", "int", whole(1, 60)),
    Field("level", "int", whole(1, 9)),
    Field("code", "int", whole(100, 999)),
    Field("price", "float", decimal(1, 99)),
    Field("weight", "float", decimal(1, 99)),
    Field("score", "float", decimal(0, 9)),
    Field("rate", "float", decimal(0, 9)),
    Field("active", "bool", choice(["true", "false"])),
    Field("paid", "bool", choice(["true", "false"])),
)


def pick_fields(rng: random.Random, low: int, high: int) -> list[Field]:
    """Between `low` and `high` different fields in random order."""
    return rng.sample(FIELDS, rng.randint(low, high))


def listed(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
