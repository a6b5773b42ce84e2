"""Blocks that the tests of recipes share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn

import torchkeep as tk


@tk.block(name="tests.Mode")
class Mode(Enum):
    SUM = "sum"
    MEAN = "mean"


@tk.block(name="tests.Config")
@dataclass(frozen=True)
class Config:
    width: int = 4
    rates: tuple[float, ...] = (0.1, 0.2)
    mode: Mode = Mode.SUM


@tk.block
class Plain(nn.Module):
    """A block of plain arguments of every kind of parameter."""

    def __init__(self, size, /, width=4, *extra, scale=1.0, tags=(), **options):
        super().__init__()
        self.linear = nn.Linear(size, width)
        self.size, self.extra, self.scale, self.tags, self.options = size, extra, scale, tags, options

    def forward(self, x):
        return self.linear(x) * self.scale


@tk.block
class Around(nn.Module):
    """A block around a module that is given to it."""

    def __init__(self, inner: nn.Module, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(inner, act())

    def forward(self, x):
        return x + self.body(x)


@tk.block
class Many(nn.Module):
    """A block of a list of modules, and of a dict of them."""

    def __init__(self, modules, named=None):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.named = nn.ModuleDict(named or {})


@tk.block
class Copies(nn.Module):
    """A block that copies the module that it is given."""

    def __init__(self, pattern: nn.Module, count: int) -> None:
        super().__init__()
        import copy

        self.layers = nn.ModuleList(copy.deepcopy(pattern) for _ in range(count))


@tk.block
class Tied(nn.Module):
    """A block whose constructor ties."""

    def __init__(self, words: int = 7, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.zeros(3), persistent=False)


@tk.block
class Configured(nn.Module):
    """A block with a dataclass for its arguments."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, config.width)


@tk.block
class Anything(nn.Module):
    """A block that takes anything, and keeps it."""

    def __init__(self, value=None):
        super().__init__()
        self.value = value


class Unregistered(nn.Module):
    """No block."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


class UnregisteredChild(Plain):
    """A subclass of a block, itself none."""
