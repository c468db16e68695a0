"""``python -m methods METHOD --data ...``: train one. ``evaluate``: what has it learned? ``demo``: see one learn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from methods.ablations import Ablations, ablations
from methods.byol import BYOL
from methods.clip import CLIP
from methods.config import Config
from methods.curves import Curves, curves
from methods.demo import Demo, demo
from methods.dino import DINO
from methods.dinov2 import DINOv2
from methods.moco import MoCo
from methods.mocov3 import MoCoV3
from methods.processes import rank
from methods.recipes import RECIPES
from methods.report import Evaluate, evaluate
from methods.siglip import SigLIP
from methods.simclr import SimCLR
from methods.simsiam import SimSiam
from methods.supcon import SupCon
from methods.t_simcne import TSimCNE
from methods.train import train

METHODS = {
    method.__name__.lower(): method
    for method in (SimCLR, MoCo, MoCoV3, BYOL, SimSiam, DINO, DINOv2, SupCon, CLIP, SigLIP, TSimCNE)
}
OTHERS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "evaluate": (Evaluate, partial(evaluate, methods=METHODS)),
    "ablations": (Ablations, ablations),
    "curves": (Curves, curves),
    "demo": (Demo, demo),
}


def usage() -> str:
    lines = ["usage: python -m methods METHOD --data DATA [--epochs N] [...]", "", "methods:"]
    lines += [f"  {name:9} {method.Config.__doc__}" for name, method in METHODS.items()]
    lines += ["", "others:", *(f"  {name:9} {settings.__doc__}" for name, (settings, _) in OTHERS.items())]
    lines += ["", "recipes (--recipe NAME):"]
    for name, methods in RECIPES.items():
        lines.append(f"  {name}: {', '.join(methods)}")
    return "\n".join([*lines, "", "python -m methods METHOD [--recipe NAME] --help lists every setting."])


def parse(name: str, arguments: list[str]) -> Config:
    """The settings of a method: its defaults, then a recipe's, then the flags."""
    settings = METHODS[name].Config
    defaults = {"data": _tyro().MISSING, **recipe(_recipe_named(arguments), name)}
    return _tyro().cli(settings, args=arguments, default=settings(**defaults), prog=f"python -m methods {name}")


def _tyro() -> ModuleType:
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the command line needs tyro: pip install 'ssl_kernels[train]'") from error
    return tyro


def recipe(name: str | None, method: str) -> dict[str, Any]:
    if name is None:
        return {}
    known = [recipe for recipe, methods in RECIPES.items() if method in methods]
    if name not in known:
        raise ValueError(f"recipe: expected for {method} {', '.join(known) or 'none at all'}, got {name!r}")
    return {"recipe": name, **RECIPES[name][method]}


def _recipe_named(arguments: list[str]) -> str | None:
    for k, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            return argument.partition("=")[2]
        if argument == "--recipe" and k + 1 < len(arguments):
            return arguments[k + 1]
    return None


def run(name: str, arguments: list[str]) -> None:
    if name in OTHERS:
        settings, start = OTHERS[name]
        start(_tyro().cli(settings, args=arguments, prog=f"python -m methods {name}"))
        return
    results = train(METHODS[name], parse(name, arguments))
    if rank() == 0:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in results.items()))


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    if name not in METHODS | OTHERS:
        known = ", ".join(METHODS | OTHERS)
        sys.exit(f"error: method: expected {known}, got {name!r} (python -m methods --help)")
    try:
        run(name, rest)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if "--debug" in rest:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped" if name in OTHERS else "stopped; --resume goes on from the last checkpoint")


if __name__ == "__main__":
    main(sys.argv[1:])
