"""Who computes attention: the backends, what each can do, and the choice of one.

``auto`` takes the platform's own kernel where it can do what the model asks for, and
XLA otherwise, saying why. The platform is that of the mesh's devices, never that of
this process: programs are also compiled for machines that are not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import TransformerConfig


@dataclass(frozen=True)
class Backend:
    """A backend by name, and what the user should hear of its choice, once.

    ``block``: the most tokens of queries, and of keys, that splash has in hand.
    ``interpret`` runs a kernel by XLA, slowly, where its hardware is not: for tests.
    """

    name: str = "xla"
    notice: str = field(default="", compare=False)
    block: int = 512
    interpret: bool = False


DENSE = Backend()
"""XLA with a dense bias: does all there is, and is the reference of the others."""


@dataclass(frozen=True)
class Ability:
    """What a backend can do; ``docs/attention.md`` is its table.

    ``platforms``: where it runs (none: everywhere). ``head_multiple`` and ``head_most``
    bound the size of a head. ``packing_since``: the compute capability of GPUs from
    which on rows may hold several segments. ``window``: layers that see so far and no
    further, ``any`` of them, ``causal`` ones only, or ``none``. ``extra``: a bias of
    each head and distance (T5). ``relative``: content against position (DeBERTa).
    ``cap``: of the scores. ``dropout``: of the weights. ``context``: tokens of a row on
    several devices, without gathering them.
    """

    platforms: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    head_multiple: int = 1
    head_most: int | None = None
    packing_since: float = 0.0
    window: str = "any"
    extra: bool = False
    relative: bool = False
    cap: bool = True
    dropout: bool = False
    context: bool = False


ABILITIES: Mapping[str, Ability] = {
    "xla": Ability(extra=True, relative=True, dropout=True),
    "splash": Ability(platforms=("tpu",)),
    "cudnn": Ability(
        platforms=("gpu",),
        dtypes=("bfloat16",),
        head_multiple=8,
        head_most=128,
        packing_since=9.0,
        window="causal",
        cap=False,
    ),
    # Not fp32: its products would be those of TF32.
    "triton": Ability(
        platforms=("gpu",),
        dtypes=("bfloat16",),
        head_most=128,
        window="none",
        cap=False,
    ),
    "ring": Ability(dropout=True, context=True),
}
PREFERRED: Mapping[str, Sequence[str]] = {
    "tpu": ("splash",),
    "gpu": ("cudnn", "triton"),
}
"""What ``auto`` tries on each platform, best first, before XLA."""


@dataclass(frozen=True)
class Need:
    """What a model on a mesh asks of its attention, as plain facts.

    ``platform`` is that of the mesh's devices, and ``capability`` the compute
    capability of GPUs; ``split`` says that a row's tokens lie on several of them,
    ``packing`` that rows may hold several segments, or padding before one. ``reaches``
    are those of all kinds of layers.
    """

    platform: str
    dtype: str
    head_size: int
    causal: bool
    reaches: tuple[int | None, ...] = (None,)
    packing: bool = True
    split: bool = False
    extra: bool = False
    relative: bool = False
    cap: bool = False
    dropout: bool = False
    capability: float = 0.0

    @classmethod
    def of(
        cls,
        config: TransformerConfig,
        *,
        platform: str,
        dtype: str,
        split: bool,
        packing: bool = True,
        capability: float = 0.0,
    ) -> Need:
        """What an architecture needs."""
        return cls(
            platform=platform,
            dtype=dtype,
            head_size=config.head_size,
            causal=config.causal,
            reaches=tuple(kind.reach for kind in config.kinds),
            packing=packing,
            split=split,
            extra=config.buckets is not None,
            relative=config.disentangled is not None,
            cap=config.score_cap is not None,
            dropout=config.dropout.weights > 0,
            capability=capability,
        )


def compute_capability(device: Any) -> float:
    """That of an NVIDIA GPU, here or planned for; 0 of everything else."""
    found = re.fullmatch(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))
    return float(found[0]) if found else 0.0


def sizes_of_heads(ability: Ability) -> str:
    """Of which sizes a backend has heads, in words."""
    multiple, most = ability.head_multiple, ability.head_most
    words = [] if multiple == 1 else [f"multiples of {multiple}"]
    words += [] if most is None else [f"up to {most}"]
    return " ".join(words) or "any"


def lacks(name: str, need: Need) -> str | None:
    """What a backend cannot do of what is needed, as the end of a sentence."""
    ability = ABILITIES[name]
    most = ability.head_most
    fits = need.head_size % ability.head_multiple == 0
    bounded = any(reach is not None for reach in need.reaches)
    window = ability.window == "any" or (ability.window == "causal" and need.causal)
    wanted: list[tuple[bool, str]] = [
        (
            not ability.platforms or need.platform in ability.platforms,
            f"runs on {' and '.join(ability.platforms)} alone, not {need.platform}",
        ),
        (
            need.dtype in ability.dtypes,
            f"computes in {' or '.join(ability.dtypes)}, not {need.dtype}"
            " (config.train.precision)",
        ),
        (
            fits and (most is None or need.head_size <= most),
            f"has heads {sizes_of_heads(ability)}, not {need.head_size}",
        ),
        (
            not need.packing or need.capability >= ability.packing_since,
            f"has no segments before GPUs of compute capability"
            f" {ability.packing_since}, not {need.capability}"
            " (config.data.packing=false needs none)",
        ),
        (
            window or not bounded,
            "has no layers of a bounded reach"
            f"{' but causal ones' * (ability.window == 'causal')}",
        ),
        (ability.extra or not need.extra, "has no bias by relative position"),
        (ability.relative or not need.relative, "has no disentangled attention"),
        (ability.cap or not need.cap, "has no cap of the scores"),
        (
            ability.dropout or not need.dropout,
            "has no dropout of attention's weights (config.model.dropout=0 needs none)",
        ),
        (
            ability.context or not need.split or name == "xla",
            "needs whole rows, which the rule of sequence splits",
        ),
    ]
    return next((problem for able, problem in wanted if not able), None)


def choose(name: str, need: Need, block: int = 512) -> Backend:
    """The backend that a user named, or for ``auto`` the best that can do it.

    ``block`` is that of ``Backend``.

    Raises:
      UserError: the one that was named cannot.
    """
    if name != "auto":
        if problem := lacks(name, need):
            raise UserError(
                f"config.model.attention: {name} {problem}; take auto, which finds one"
                " that can, or xla, which always can"
            )
        return Backend(name, block=block)
    tried = ("ring",) if need.split else PREFERRED.get(need.platform, ())
    problems = []
    for each in tried:
        if each not in ABILITIES:
            continue
        problem = lacks(each, need)
        if problem is None:
            return Backend(each, block=block)
        problems.append(f"{each} {problem}")
    notice = f"attention by XLA: {'; '.join(problems)}" if problems else ""
    if problems and need.split:
        notice += "; devices gather the keys and values of whole rows"
    return Backend(notice=notice)
