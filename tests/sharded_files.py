"""Folders of models in several files, as Hugging Face lays them out."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

LAYERS = 4


def state(seed=0):
    """Return a state_dict of some layers and an embedding."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"embed.weight": (10, 4)}
    for layer in range(LAYERS):
        sizes |= {f"layers.{layer}.weight": (4, 4), f"layers.{layer}.bias": (4,)}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    """Write an index."""
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}, indent=2), "utf-8")
    return path


def write_sharded(folder, tensors, *, parts=3, write=save_file, suffix=".safetensors", stem="model"):
    """Write tensors into several files and an index; return the name of the file of each."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for part in range(parts):
        mine = dict(list(tensors.items())[part::parts])
        name = f"{stem}-{part + 1:05}-of-{parts:05}{suffix}"
        write(mine, folder / name)
        weight_map |= dict.fromkeys(mine, name)
    # The index is sorted by name, as Hugging Face writes it.
    weight_map = dict(sorted(weight_map.items()))
    write_index(folder, weight_map, f"{stem}{suffix}.index.json")
    return weight_map
