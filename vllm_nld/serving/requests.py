"""Checks the `nld_*` fields of an incoming request against what the server offers, and makes them one record.

    modes = ServerModes.of(vllm_config)
    modes.read({"nld_mode": "diffusion", "nld_threshold": 0.8})      # Decoding, or ValueError naming field and range
    modes.canonical(params.extra_args)                               # extra_args with the record, for later stages

Over HTTP the fields are in `vllm_xargs`, offline in `SamplingParams.extra_args`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vllm_nld.serving.aliases import KNOWN, MODE, WHERE, is_own, own_fields
from vllm_nld.serving.decoding import RECORD, Decoding
from vllm_nld.serving.modes import AUTO, DEFAULT, FIELDS, MODES
from vllm_nld.serving.settings import FIELD as SETTINGS
from vllm_nld.serving.settings import MOST_NODES, Settings, check_verifier
from vllm_nld.serving.speculation import block_length, drafts_for_itself
from vllm_nld.serving.trees import obstacle


@dataclass(frozen=True, slots=True)
class ServerModes:
    """What a server offers: its default mode, the modes that requests may choose, the longest block, default values.

    modes: empty if the server speculates with another drafter, so that requests cannot choose.
    probabilistic: the server samples drafts and keeps their logits, which works with a single draft pass only.
    tree_nodes, most_nodes: nodes of a draft tree by default, and at most. no_trees: why requests cannot ask for one.
    groups: groups of masks by default, and at most; 0: no mode has any.
    """

    mode: str
    modes: tuple[str, ...]
    block_length: int = 1
    threshold: float = 0.9
    draft_threshold: float = 0.0
    max_denoise_steps: int | None = None
    probabilistic: bool = False
    tree_nodes: int = 0
    most_nodes: int = 0
    no_trees: str | None = None
    groups: int = 0

    @classmethod
    def of(cls, vllm_config: Any) -> Self:
        """What a configured server offers."""
        settings, speculative = Settings.of(vllm_config), vllm_config.speculative_config
        if speculative is None:
            return cls("ar", ("ar",))
        if not drafts_for_itself(vllm_config):
            return cls("ar", ())
        length = block_length(vllm_config)
        return cls(
            settings.mode or DEFAULT,
            settings.modes,
            length,
            settings.threshold,
            settings.draft_threshold,
            settings.max_denoise_steps,
            speculative.draft_sample_method == "probabilistic",
            settings.tree_nodes,
            min(speculative.num_speculative_tokens, MOST_NODES),
            obstacle(vllm_config),
            min(settings.groups or length, length) if settings.has_groups else 0,
        )

    @property
    def rows(self) -> int:
        """The rows of a request's step by default: the anchor's and one for each draft, a tree's nodes included."""
        return 1 + (self.tree_nodes or self.block_length - 1)

    @property
    def default(self) -> Decoding:
        """Decoding for requests that set no nld_* field."""
        return self._decoding(self.mode, {})

    def canonical(self, extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A request's extra arguments with its fields replaced by the record. Raises ValueError for a bad field."""
        decoding = self.read(extra)
        if not self.modes:
            return dict(extra) if extra else None
        theirs = {name: value for name, value in (extra or {}).items() if not is_own(name)}
        return theirs | {RECORD: decoding.record()}

    def read(self, extra: Mapping[str, Any] | None) -> Decoding:
        """How a request decodes. Raises ValueError, naming field, value and range."""
        extra = extra or {}
        if RECORD in extra:
            return self._known(extra[RECORD])
        asked = own_fields(extra)
        if not asked or (asked == {MODE: AUTO} and AUTO not in self.modes):
            return self.default
        if not self.modes:
            raise ValueError(
                f"{WHERE}.{next(iter(asked))} is not possible here: the server speculates with another drafter, "
                "chosen by its --speculative-config"
            )
        name = asked.pop(MODE, self.mode)
        if not isinstance(name, str) or name not in MODES:
            raise ValueError(f"{WHERE}.nld_mode must be one of {', '.join(MODES)}, not {name!r}")
        return self._decoding(self.mode if name == AUTO and AUTO not in self.modes else name, asked)

    def _known(self, record: Any) -> Decoding:
        """A record that an earlier stage made. Raises ValueError if this server cannot have made it."""
        try:
            decoding = Decoding(**record)
        except TypeError:
            raise ValueError(f"{WHERE}.{RECORD} is unknown; known are {', '.join(KNOWN)}") from None
        fits = decoding.block_length <= self.block_length and decoding.tree_nodes <= self.most_nodes
        fits &= decoding.groups <= self.groups
        if decoding.mode not in (self.modes or (self.mode,)) or not fits:
            raise ValueError(f"{WHERE}.{RECORD} was made for another server: set the nld_ fields instead")
        return decoding

    def _decoding(self, name: str, asked: Mapping[str, Any]) -> Decoding:
        """The checked fields of the request, with the server's values for those that it does not set."""
        if self.modes and name not in self.modes:
            hint = f": its masks need room that {SETTINGS}.groups reserves" if MODES[name].grouped else ""
            raise ValueError(f"{WHERE}.nld_mode {name!r} is not served here, only {', '.join(self.modes)}{hint}")
        mode = MODES[name]
        for field in asked:
            if field not in mode.fields:
                users = [other.name for other in MODES.values() if field in other.fields]
                raise ValueError(
                    f"{WHERE}.{field} has no use in mode {name!r}, only in {' and '.join(users)}: "
                    "remove it, or set nld_mode"
                )
        check_verifier(f"{WHERE}.nld_verifier_mix", asked.get("nld_verifier_mix", 1))
        values = {FIELDS[field]: self._value(field, asked) for field in mode.fields if field in FIELDS}
        if mode.grouped and "nld_groups" not in asked:
            values["groups"] = min(values["groups"], values["block_length"])
        decoding = Decoding(name, **(values | self._one_way(values, asked)))
        if self.probabilistic and not mode.takes_blocks and decoding.threshold > 0:
            raise ValueError(
                f"{WHERE}.nld_draft_threshold must be 0, not {decoding.threshold}: the server keeps draft logits, "
                "which works with a single draft pass only"
            )
        return decoding

    def _one_way(self, values: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """A tree or a threshold, not both: the one that the request asks for goes before the server's default."""
        if not (values.get("tree_nodes") and values.get("threshold")):
            return {}
        if "nld_tree_nodes" not in asked:
            return {"tree_nodes": 0}
        if "nld_draft_threshold" not in asked:
            return {"threshold": 0.0}
        raise ValueError(
            f"{WHERE}.nld_tree_nodes {values['tree_nodes']} contradicts nld_draft_threshold {values['threshold']}: a "
            "tree is drafted in one pass, so set one of them to 0"
        )

    def _value(self, field: str, asked: Mapping[str, Any]) -> Any:
        default = getattr(self, field.removeprefix("nld_"))
        if field not in asked:
            return default
        if field == "nld_block_length":
            return integer(field, asked[field], 2, self.block_length)
        if field == "nld_tree_nodes":
            nodes = integer(field, asked[field], 0, self.most_nodes)
            if nodes and self.no_trees:
                raise ValueError(f"{WHERE}.{field} must be 0, not {nodes}, on this server: {self.no_trees}")
            return nodes
        if field == "nld_groups":
            length = self._value("nld_block_length", asked)
            return integer(field, asked[field], 1, min(default, length))
        if field == "nld_max_denoise_steps":
            return integer(field, asked[field], 1, default or self.block_length - 1)
        return fraction(field, asked[field])


def integer(name: str, value: Any, least: int, most: int) -> int:
    """The value, if it is an integer in [least, most]. Bools and integral floats are refused."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{WHERE}.{name} must be an integer in [{least}, {most}], not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{WHERE}.{name} must lie in [{least}, {most}], not {value}")
    return value


def fraction(name: str, value: Any) -> float:
    """The value, if it is a number in [0, 1]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{WHERE}.{name} must be a number in [0, 1], not {value!r}")
    if not 0 <= value <= 1:  # NaN is not either
        raise ValueError(f"{WHERE}.{name} must lie in [0, 1], not {value}")
    return float(value)


def check_combination(params: Any, extra: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError for sampling parameters that the request's mode cannot honour.

    extra: the request's extra arguments with its record; None: those of `params`.
    """
    decoding = Decoding.of(params) if extra is None else Decoding.load(extra)
    if decoding is None:
        return
    for name, value in decoding.policy.refused.items():
        if (getattr(params, name) or value) != value:
            raise ValueError(
                f"{name} has no effect in mode {decoding.mode!r}, which takes tokens as drafted: leave it out, "
                "or use nld_mode 'linear' or 'ar'"
            )
