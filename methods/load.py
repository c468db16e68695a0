"""A trained method from its checkpoint alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from methods.checkpoint import load_checkpoint
from methods.config import Config
from methods.encoders import build_encoder
from methods.tokenizer import restored


def load_method(path: Path, methods: Mapping[str, type[nn.Module]]) -> tuple[nn.Module, Config, dict[str, Any]]:
    """The method with its weights, its settings, and the checkpoint it came from.

    Args:
        path: a checkpoint, or the folder of a run.
        methods: by the names that stand in checkpoints.

    Raises:
        ValueError, FileNotFoundError: no checkpoint there, half of one, or one of other methods, settings or shapes.
    """
    path = path / "checkpoint.pt" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: expected a checkpoint or the folder of a run, nothing at {path}")
    state = load_checkpoint(path)
    missing = {"method", "config", "shape", "model"} - state.keys()
    if missing:
        raise ValueError(f"checkpoint: expected {', '.join(sorted(missing))} in {path}, which another version wrote")
    if state["method"] not in methods:
        raise ValueError(f"checkpoint: expected one of {', '.join(methods)} in {path}, got {state['method']}")
    method_class = methods[state["method"]]
    config = _settings(method_class.Config, state["config"], path)
    try:
        method = _build(method_class, config, state)
        method.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:  # torch lists every tensor that does not fit
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint: the weights in {path} do not fit its settings: {reason}") from error
    return method.eval(), config, state


def _settings(kind: type[Config], values: Mapping[str, Any], path: Path) -> Config:
    """Tuples and paths as they were before they became JSON."""
    known = {field.name: field for field in fields(kind)}
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if required - values.keys():
        raise ValueError(f"checkpoint: expected the settings {', '.join(sorted(required))} in {path}, got none")
    settings = {}
    for name, field in known.items():
        if name in values:
            value = values[name]
            settings[name] = tuple(value) if isinstance(field.default, tuple) else value
    if settings.get("out") is not None:
        settings["out"] = Path(settings["out"])
    return kind(**settings)


def _build(method_class: type[nn.Module], config: Config, state: dict[str, Any]) -> nn.Module:
    channels, size, _ = state["shape"]
    encoder = build_encoder(
        config.encoder,
        size,
        torch.zeros(channels),  # both come with the weights
        torch.ones(channels),
        channels_last=config.channels_last,
        width=config.width,
        patch_size=config.patch_size,
    )
    parts = {}
    if "captions" in getattr(method_class, "needs", ()):
        parts["tokenizer"] = restored(state["model"]["text_encoder._extra_state"])
    return method_class(encoder, config, **parts)
