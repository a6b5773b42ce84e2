"""A typed user of the public API: mypy checks it in strict mode, nobody runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torchkeep as tk

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


def version() -> str:
    """Return the version, which is a string to a type checker too."""
    return tk.__version__


def looking(net: nn.Module, state: dict[str, Tensor]) -> tuple[Tensor, list[str], float | None]:
    """Look at parameters: tables, rows, statistics, set operations."""
    table: tk.ParameterTable = tk.params(net, "encoder.**")
    chosen = (table.select("**.bias") | table.select(tk.select(":frozen"))) - tk.params(net, ":buffer")
    names = [row.name for row in chosen.freeze() if row.shape is not None and row.numel > 1]
    mean = tk.params("net.safetensors").stats()["encoder.0.weight"].mean
    return tk.params(state)["encoder.0.weight"], names, mean


def grouping(net: nn.Module) -> list[str]:
    """Make optimizer groups of a mapping and of pairs."""
    groups = tk.optimizer_groups(net, {"**": {"lr": 0.1}, "**.bias": {}})
    groups += tk.optimizer_groups(net, [("**", {"lr": 0.1}), (tk.select("**.bias"), {"weight_decay": 0.0})])
    return [name for group in groups for name, _ in group["params"]]


def tying(net: nn.Module, optimizer: Optimizer) -> tuple[str, ...]:
    """Tie, keep ties, and come off the meta device."""
    group: tk.TieGroup = tk.tie(net, "embed.weight", "head.weight")
    with tk.keeping_ties(net, optimizer):
        tk.materialize(net.to("meta"), "cpu").eval()
    owners = [tie.owner for tie in tk.ties(net)]
    return (group.owner, *group.aliases, *owners)


@tk.block
class Block:
    """A decorated class is still itself to a type checker."""

    size: int = 3


@tk.block(name="acme.Named")
class Named(Block):
    """So is one that was given a name."""


def recipes(net: nn.Module) -> nn.Module:
    """Write a recipe down, read it, build it."""
    written: tk.Recipe = tk.recipe(net)
    again = tk.Recipe.from_json(written.to_json())
    return tk.build(again.to_dict(), registry={"acme.Other": Named}) if Named.size else tk.build("recipe.json")


def filing(net: nn.Module) -> tuple[str, int]:
    """Save, plan, load."""
    saved: tk.SaveReport = tk.save(net, "net.safetensors")
    plan: tk.LoadPlan = tk.plan_load(net, "net.safetensors", rename={"module.": ""})
    report: tk.LoadReport = tk.load_into(net, "net.safetensors", select="**.weight", missing="ignore")
    tk.load_model("net.safetensors").eval()
    return str(report), saved.nbytes + len(plan.matched)


def checkpoints(net: nn.Module, checkpoint: tk.Checkpoint) -> list[str]:
    """Take a checkpoint wherever a file is taken, by name and as an object."""
    tk.load_into(net, checkpoint, cast=True)
    tk.plan_load(net, "runs/digits@1200", rename={"generator.": ""})
    tk.load(checkpoint, select="optimizer.**", device="cpu")
    tk.load_model(checkpoint, registry=None).eval()
    bias: Tensor = checkpoint["model.0.bias"]
    kept = (checkpoint.step, checkpoint.metrics["loss"], checkpoint.location, bias.norm())
    return [*checkpoint, *tk.params(checkpoint).names(), *tk.params("runs/digits@best").names(), str(kept)]


def running(net: nn.Module, optimizer: Optimizer, loader: list[Tensor]) -> tuple[int | None, str]:
    """Keep a run."""
    keep = tk.Retention(last=3, every=100, best=("loss", "min"))
    with tk.CheckpointStore("runs/digits", retention=keep) as store:
        state = tk.TrainingState(model=net, optimizer=optimizer)
        run = tk.Run(store, state, every="10min", on_failure="warn", overlap=False)
        for batch in run.batches(loader, steps=2000):
            run.record(loss=batch.mean())
        pending: tk.PendingSave = store.save(run.step, state, metrics={"loss": 0.1}, overlap=False)
        saved: tk.Checkpoint = pending.result(timeout=60)
        best = store.best()
        store.verify(saved.step)
        return store.restore(state, "best"), "" if best is None else best.location


def initialising(net: nn.Module) -> tk.InitPlan:
    """Plan and apply rules."""
    rules = {"**.weight": tk.init.normal(0, 0.02), "**.bias": tk.init.zeros()}
    plan: tk.InitPlan = tk.init.plan(net, rules, seed=1)
    plan.apply("cpu")
    return tk.initialize(net, [(tk.select("**"), tk.init.keep())])


def proving(net: nn.Module, x: Tensor) -> list[str]:
    """Check a layer."""
    report: tk.CheckReport = tk.check(net, x, declare=tk.Declare(batch_dim=0, stop_gradient="scale"))
    report.raise_for_failures()
    return [result.name for result in (*report.failed, *report.warned)]
