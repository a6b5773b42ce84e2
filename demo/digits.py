"""Train a small network on handwritten digits, and look at its parameters on the way.

Run it with ``make demo``. It trains on scikit-learn's digits (1,797 real 8x8 scans, shipped with the package), and
shows the structure, selections, checks, the init plan, a tie, the accuracy on digits held out, the saved
file, and a fresh clone whose outputs equal the trained network's bit for bit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import torchkeep as tk

EPOCHS = 30
BATCH = 64
WANTED_ACCURACY = 0.95

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
    rules = {
        "**.bias": tk.init.zeros(),
        "@Linear & **.weight": tk.init.kaiming_normal(nonlinearity="relu"),
        "@LayerNorm & **.weight": tk.init.ones(),
        "score.weight": tk.init.xavier_uniform(),
    }
    print(tk.initialize(net, rules, seed=0))


def show_ties(net: DigitNet) -> None:
    """Show that the refining layer is one layer in two places."""
    section("Ties: one layer in two places")
    for group in tk.ties(net):
        console.print(f"{group.owner}  =  {', '.join(group.aliases)}  ({group.kind})")
    owner, alias = tk.ties(net)[0].owner, tk.ties(net)[0].aliases[0]
    console.print("the same object under both names:", tk.params(net)[owner] is tk.params(net)[alias])


def train(net: DigitNet, images: Tensor, labels: Tensor) -> None:
    """Train with AdamW; biases and norms without weight decay."""
    section("Training")
    groups = tk.optimizer_groups(
        net, {"**": {"weight_decay": 1e-2}, "**.bias | @LayerNorm": {"weight_decay": 0.0}}
    )
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    shuffle = torch.Generator().manual_seed(0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console) as progress:
        task = progress.add_task("epochs", total=EPOCHS, loss=float("nan"))
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images), generator=shuffle).split(BATCH):
                loss = F.cross_entropy(net(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            progress.update(task, advance=1, loss=loss.item())


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
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    train_images, test_images, train_labels, test_labels = digits()
    net = DigitNet()
    look(net, train_images)
    prove(train_images)
    initialise(net)
    show_ties(net)
    train(net, train_images, train_labels)
    reached = accuracy(net, test_images, test_labels)
    section("Accuracy on held-out digits")
    console.print(f"[bold]{reached:.1%}[/] of {len(test_labels)} digits that training never saw")
    if reached < WANTED_ACCURACY:
        raise SystemExit(f"expected {WANTED_ACCURACY:.0%} or better")
    with tempfile.TemporaryDirectory() as folder:
        keep(net, test_images, Path(folder))


if __name__ == "__main__":
    main()
