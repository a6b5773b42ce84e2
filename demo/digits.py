"""Train a small network on handwritten digits, and look at its parameters on the way.

Run it with ``make demo``. It trains on scikit-learn's digits (1,797 real 8x8 scans, shipped with the package), and
shows the structure, selections, checks, the init plan, a tie, a training run that is killed in the middle and ends
with the same bits as one that is not, the accuracy on digits held out, the saved file, and a fresh clone whose
outputs equal the trained network's bit for bit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import torchkeep as tk

EPOCHS = 30
BATCH = 64
WANTED_ACCURACY = 0.95
EVERY = 25
RULES = {
    "**.bias": tk.init.zeros(),
    "@Linear & **.weight": tk.init.kaiming_normal(nonlinearity="relu"),
    "@LayerNorm & **.weight": tk.init.ones(),
    "score.weight": tk.init.xavier_uniform(),
}

console = Console(highlight=False)


@tk.block
class DigitNet(nn.Module):
    """Centre the image, embed it, refine it twice with one shared layer, and score the ten digits.

    Shape: ``(batch, 64) -> (batch, 10)``.
    """

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.centre = tk.nn.Centering()
        self.embed = nn.Linear(64, width)
        self.refine = tk.nn.Repeat(tk.nn.Residual(tk.nn.MLP([width, width, width], norm="layer")), 2, shared=True)
        self.score = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Score images; shape ``(batch, 64) -> (batch, 10)``."""
        return self.score(self.refine(self.embed(self.centre(images))))


class NoisyDigits(Dataset[tuple[Tensor, Tensor]]):
    """Digits with noise that is drawn anew each time one is loaded, in the process that loads it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, shape ``(64,)``, and its label."""
        return self.images[index] + 0.1 * torch.randn(64), self.labels[index]


def section(title: str) -> None:
    """Print a heading."""
    console.print()
    console.rule(f"[bold]{title}", align="left")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, held-out images (floats in 0..1, shape ``(n, 64)``) and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=0)
    train, test, train_labels, test_labels = map(torch.as_tensor, parts)
    return train.float(), test.float(), train_labels.long(), test_labels.long()


def look(net: DigitNet, images: Tensor) -> None:
    """Show the structure, the parameters, and what a few selectors find."""
    section("The structure, with the shapes that one batch takes through it")
    print(tk.tree(net, images[:BATCH]))

    section("Every parameter")
    print(tk.params(net))

    section("A few selections")
    for expression in ("**.bias", "@Linear & [ndim>=2]", "refine.** - **.bias", ":tied", "@LayerNorm"):
        console.print(expression, style="cyan", markup=False)
        for name in tk.params(net).select(expression).names():
            console.print("   ", name)


def prove(images: Tensor) -> None:
    """Check that the network behaves before it is trained."""
    section("The checks that a layer must pass")
    report = tk.check(DigitNet, images[:8])
    print(report)
    report.raise_for_failures()


def initialise(net: DigitNet) -> None:
    """Give every parameter a value by rule, and show the plan that was applied."""
    section("The init plan, applied")
    print(tk.initialize(net, RULES, seed=0))


def show_ties(net: DigitNet) -> None:
    """Show that the refining layer is one layer in two places."""
    section("Ties: one layer in two places")
    for group in tk.ties(net):
        console.print(f"{group.owner}  =  {', '.join(group.aliases)}  ({group.kind})")
    owner, alias = tk.ties(net)[0].owner, tk.ties(net)[0].aliases[0]
    console.print("the same object under both names:", tk.params(net)[owner] is tk.params(net)[alias])


def train(folder: Path, *, workers: int, tell: bool = False) -> DigitNet:
    """Train with AdamW, biases and norms without weight decay; the run is kept in a store, and goes on from it."""
    images, _, labels, _ = digits()
    torch.manual_seed(0)
    net = DigitNet()
    tk.initialize(net, RULES, seed=0)
    optimizer = torch.optim.AdamW(
        tk.optimizer_groups(net, {"**": {"weight_decay": 1e-2}, "**.bias | @LayerNorm": {"weight_decay": 0.0}}),
        lr=2e-3,
    )
    loader = DataLoader(
        NoisyDigits(images, labels), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    with tk.CheckpointStore(folder) as store:
        run = tk.Run(store, tk.TrainingState(model=net, optimizer=optimizer), every=EVERY)
        for batch, wanted in run.batches(loader, steps=EPOCHS * len(loader)):
            loss = F.cross_entropy(net(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.record(loss=loss)
            if tell:
                print(run.step + 1, run.durable, run.resumed_from, flush=True)
    return net


def start_child(folder: Path, kill_at: int | None = None) -> None:
    """Train in a child process, which loads with two workers; kill it at a step, if one is given."""
    command = [sys.executable, __file__, "train", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603 - it is this script
        assert child.stdout is not None
        for line in child.stdout:
            step, durable, resumed_from = line.split()
            if step == str(kill_at):
                child.kill()
    start = "from the start" if resumed_from == "None" else f"on from step {resumed_from}"
    end = (
        f"was killed (SIGKILL) after step {step}, with step {durable} saved"
        if child.returncode
        else "came to its end"
    )
    console.print(f"a child process trained {start}, and {end}")
    if child.returncode and kill_at is None:
        raise SystemExit("the child process failed")


def survive(folder: Path) -> DigitNet:
    """Train undisturbed, and again in child processes of which the first is killed; compare every bit."""
    section("Training, undisturbed")
    net = train(folder / "undisturbed", workers=0)
    print(tk.CheckpointStore(folder / "undisturbed").latest())

    section("Training again, killed in the middle at a random moment, and started again")
    start_child(folder / "killed", kill_at=random.randrange(100, 500))  # noqa: S311 - any moment will do
    start_child(folder / "killed")
    one, other = (
        tk.params(f"{folder / name}@latest", "{model,optimizer}.**") for name in ("undisturbed", "killed")
    )
    equal = one.names() == other.names() and all(torch.equal(one[name], other[name]) for name in one.names())
    console.print(f"{len(one.names())} tensors of model and optimizer equal bit for bit:", f"[bold]{equal}")
    if not equal:
        raise SystemExit("the killed run ended with other bits than the undisturbed one")
    return net


def accuracy(net: DigitNet, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose digit the network names."""
    with torch.no_grad():
        return (net.eval()(images).argmax(dim=1) == labels).double().mean().item()


def keep(net: DigitNet, images: Tensor, folder: Path) -> None:
    """Save the network, load it into a fresh clone, and compare their outputs bit for bit."""
    section("The saved file")
    path = folder / "digits.safetensors"
    print(tk.save(net, path))
    print(tk.params(path).select("embed.* | score.*"))

    section("A fresh clone")
    clone = DigitNet()
    print(tk.load_into(clone, path))
    with torch.no_grad():
        equal = torch.equal(clone.eval()(images), net.eval()(images))
    console.print("outputs equal bit for bit:", f"[bold]{equal}")
    if not equal:
        raise SystemExit("the clone's outputs differ from the trained network's")


def main() -> None:
    """Run the demo from end to end."""
    torch.manual_seed(0)
    train_images, test_images, _, test_labels = digits()
    net = DigitNet()
    look(net, train_images)
    prove(train_images)
    initialise(net)
    show_ties(net)
    with tempfile.TemporaryDirectory() as folder:
        net = survive(Path(folder))
        reached = accuracy(net, test_images, test_labels)
        section("Accuracy on held-out digits")
        console.print(f"[bold]{reached:.1%}[/] of {len(test_labels)} digits that training never saw")
        if reached < WANTED_ACCURACY:
            raise SystemExit(f"expected {WANTED_ACCURACY:.0%} or better")
        keep(net, test_images, Path(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    if sys.argv[1:2] == ["train"]:
        train(Path(sys.argv[2]), workers=2, tell=True)
    else:
        main()
