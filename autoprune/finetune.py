"""Train a pruned network to the end: cosine learning rate with warm-up, distillation, moving average, resume.

The network that is kept is the best one on validation images that were not trained on; the test set is looked at once,
at the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from autoprune import checkpoint, masks
from autoprune.augment import AUGMENTS
from autoprune.distillation import divergence
from autoprune.errors import UserError
from autoprune.exporters import scheme_file
from autoprune.forward import call, evaluating, logits, to
from autoprune.precision import FULL, check, passes
from autoprune.pruned import SCHEME, load_pruned, save_pruned
from autoprune.run import SUMMARY, write_json
from autoprune.slicing import named_tensors

if TYPE_CHECKING:
    from autoprune.data import Splits

BEST = "best.safetensors"

Batches = Sequence[tuple[Any, Any]]
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, linear warm-up, then a cosine down to zero.

    ``warmup`` is the share of all steps that the learning rate takes to rise to ``lr``. ``distill`` is the weight of
    the divergence KL(teacher || student) beside the cross-entropy, whose weight is 1 - ``distill`` (Hinton et al.
    2015, at ``temperature``, times its square). ``ema`` is the decay per step of a moving average of the weights,
    which is then what is judged and kept. ``augment`` is what becomes of images: "none", "flip" (mirrored half of the
    time) or "crop" (also shifted by up to an eighth of their size). ``precision`` is what forward passes compute in,
    "float32" or "bfloat16" (:mod:`autoprune.precision`); weights and their steps stay in single precision.
    """

    epochs: int = 10
    lr: float = 0.02
    batch: int = 128
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0
    ema: float | None = None
    augment: str = "none"
    seed: int = 0
    precision: str = FULL

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise UserError(
                f"epochs = {self.epochs}, batch = {self.batch}: at least 1 epoch and batches of 2 are needed"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"lr = {self.lr}: a learning rate is a positive number")
        for name, below in (("warmup", 1.0), ("momentum", 1.0), ("label_smoothing", 1.0), ("distill", 1.0 + 1e-12)):
            if not 0 <= getattr(self, name) < below:
                raise UserError(f"{name} = {getattr(self, name)}: a number from 0 to 1 is needed")
        if self.temperature <= 0 or self.weight_decay < 0:
            raise UserError(
                f"temperature = {self.temperature}, weight_decay = {self.weight_decay}: not negative, please"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema = {self.ema}: a decay per step lies between 0 and 1, such as 0.999")
        if self.augment not in AUGMENTS:
            raise UserError(f"augment {self.augment!r} is unknown: use one of {', '.join(AUGMENTS)}")
        if check(self.precision) == "float16":
            raise UserError("precision float16 loses small gradients in training: use bfloat16")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step, of so many."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor, int], float]


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe, for all parameters."""
    return torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Method:
    """How a training descends, where that is not the usual way.

    ``step(model, optimizer, inputs, labels, epoch)`` makes one step and returns its loss (None: the cross-entropy of
    the recipe, perhaps beside a teacher's divergence). ``optimizer(model, recipe)`` must leave the learning rate to the
    recipe. ``used(model)`` is a context in which the network is as it is judged and kept, such as masked. ``keep`` says
    which epoch comes back: the "best" on validation images, or the "last", which needs none. ``facts`` (JSON-ready)
    tell two methods apart: a folder with a training by another one is refused.
    """

    step: Step | None = None
    optimizer: Callable[[nn.Module, Recipe], torch.optim.Optimizer] = sgd
    used: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
    keep: Literal["best", "last"] = "best"
    facts: Mapping[str, Any] = field(default_factory=dict)


def finetune(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    folder: Path | str,
    recipe: Recipe = Recipe(),
    *,
    teacher: nn.Module | None = None,
    method: Method = Method(),
    tell: Tell = lambda facts: None,
) -> list[dict[str, float]]:
    """Train ``model`` in place; it comes back, in evaluation mode, as its best epoch left it.

    ``train`` and ``validation`` are (input, class numbers) batches that share no image; training images are held in
    memory and dealt anew every epoch. Epochs are written to ``folder`` as they end: called again with the same
    recipe, a training that was stopped goes on, to the same weights. ``tell`` hears a record per epoch (epoch, lr,
    loss, validation_loss, validation_accuracy), which are also returned. Other ways to descend, and to keep the last
    epoch instead, are a :class:`Method`.
    """
    _check(recipe, method, train, validation, teacher)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    images = torch.cat([inputs for inputs, _ in train])
    labels = torch.cat([classes for _, classes in train])
    if len(images) < 2:
        raise UserError("fine-tuning needs at least two training images")
    per_epoch = len(images) // min(recipe.batch, len(images))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = method.optimizer(model, recipe)
    step = method.step or descent(recipe, teacher)
    average = copy.deepcopy(model).eval() if recipe.ema is not None else None
    networks = {"model": model} if average is None else {"model": model, "average": average}
    judged = networks.get("average", model)
    told = {**asdict(recipe), **method.facts}
    progress = checkpoint.resume(folder, told, networks, optimizer)
    while progress.epoch < recipe.epochs:
        model.train()
        total = rate = 0.0
        for number, (inputs, classes) in enumerate(_dealt(images, labels, recipe, progress.epoch, device)):
            rate = recipe.rate(progress.epoch * per_epoch + number, recipe.epochs * per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total += step(model, optimizer, inputs, classes, progress.epoch)
            if average is not None:
                _follow(average, model, recipe.ema or 0.0)
        facts = {"epoch": progress.epoch + 1, "lr": rate, "loss": total / per_epoch}
        if not math.isfinite(total):
            raise UserError(f"epoch {progress.epoch + 1} diverged (loss {total}): lower lr = {recipe.lr}")
        with method.used(judged):
            if len(validation):
                facts["validation_loss"], facts["validation_accuracy"] = judge(judged, validation)
            progress.history.append(facts)
            progress.epoch += 1
            if method.keep == "last" or progress.best < 0 or _better(progress):
                progress.best = progress.epoch - 1
                checkpoint.write(folder / BEST, checkpoint.tensors(judged))
        checkpoint.save(folder, told, progress, networks, optimizer)
        tell(facts)
    checkpoint.place(model, load_file(folder / BEST))
    model.eval()
    return progress.history


def _check(recipe: Recipe, method: Method, train: Batches, validation: Batches, teacher: nn.Module | None) -> None:
    if recipe.distill and teacher is None:
        raise UserError(f"distill = {recipe.distill} needs a teacher: the dense network")
    if not len(train) or not (len(validation) or method.keep == "last"):
        raise UserError("fine-tuning needs training and validation batches: one of them is empty")
    if method.step is not None and recipe.precision != FULL:
        raise UserError(f"precision {recipe.precision}: this training makes steps of its own, which are in {FULL}")


def _dealt(
    images: Tensor, labels: Tensor, recipe: Recipe, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's batches; the epoch and the recipe decide their order, and what dropout draws between them."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    size = min(recipe.batch, len(images))
    order = torch.randperm(len(images), generator=generator)[: len(images) // size * size]
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        for chosen in order.split(size):
            yield AUGMENTS[recipe.augment](images[chosen], generator).to(device), labels[chosen].to(device)


def _better(progress: checkpoint.Progress) -> bool:
    accuracies = [facts["validation_accuracy"] for facts in progress.history]
    return accuracies[-1] > accuracies[progress.best]


def descent(recipe: Recipe, teacher: nn.Module | None) -> Step:
    """The usual step: down the cross-entropy, and toward the teacher's answers where the recipe asks for it."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, epoch: int) -> float:
        with passes(recipe.precision, inputs.device):
            answer = logits(call(model, inputs)).float()
        loss = functional.cross_entropy(answer, labels, label_smoothing=recipe.label_smoothing)
        if recipe.distill and teacher is not None:
            with torch.no_grad(), evaluating(teacher), passes(recipe.precision, inputs.device):
                target = logits(call(teacher, inputs)).float()
            loss = (1 - recipe.distill) * loss + recipe.distill * divergence(answer, target, recipe.temperature)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.item()

    return step


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Weights move by 1 - decay; what no gradient moves (running statistics, counters) is taken over."""
    for (_, mean), (_, new) in zip(named_tensors(average), named_tensors(model), strict=True):
        if isinstance(new, nn.Parameter) and new.is_floating_point():
            mean.lerp_(new, 1 - decay)
        else:
            mean.copy_(new)


def judge(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on (input, class numbers) batches."""
    device = next(model.parameters()).device
    loss = correct = count = 0.0
    with torch.inference_mode(), evaluating(model):
        for inputs, labels in batches:
            answer = logits(call(model, to(inputs, device))).float()
            classes = labels.to(device)
            loss += float(functional.cross_entropy(answer, classes, reduction="sum"))
            correct += float((answer.argmax(1) == classes).sum())
            count += len(classes)
    return loss / count, correct / count


def holding(stays: masks.Masks) -> Method:
    """The usual way, on which single weights outside the masks stay zero."""

    def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        descent = sgd(model, recipe)
        descent.register_step_post_hook(lambda *_: masks.impose(model, stays))
        return descent

    return Method(optimizer=optimizer, facts={"weights_held": sum(int(mask.sum()) for mask in stays.values())})


def finish(
    dense: nn.Module, source: Path, splits: Splits, folder: Path, recipe: Recipe, tell: Tell = lambda facts: None
) -> dict[str, Any]:
    """Train the pruned network in ``source`` with the data it was searched with, and save it in ``folder``.

    ``dense`` is the network it came from, and the teacher. The answer is JSON-ready: ``rows`` compare the dense
    network, the pruned one and the trained one, ``best`` is the epoch that was kept; both are the folder's summary.
    Test images are looked at once per row. Where the scheme removed single weights they stay zero.
    """
    if splits.train is None:
        raise UserError(f"data {splits.name!r} has no training part: fine-tuning needs images to train on")
    device = next(dense.parameters()).device
    pruned = load_pruned(lambda: dense, source).to(device)
    rows = {"dense": _row(dense, splits), "found": _row(pruned, splits)}
    scheme = source / SCHEME
    text = scheme.read_text(encoding="utf-8") if scheme.is_file() else None
    sparse = [] if text is None else scheme_file.tensors(scheme_file.parse(scheme))
    history = finetune(
        pruned, list(splits.train()), splits.validation, folder, recipe, teacher=dense, tell=tell,
        method=holding(masks.present(pruned, sparse)) if sparse else Method(),
    )  # fmt: skip
    rows["finetuned"] = _row(pruned, splits)
    save_pruned(pruned, folder, text)
    best = max(range(len(history)), key=lambda at: history[at]["validation_accuracy"]) + 1
    write_json(folder / SUMMARY, {"rows": rows, "best": best})
    return {"folder": str(folder), "rows": rows, "best": best, "history": history}


def _row(model: nn.Module, splits: Splits) -> dict[str, float]:
    loss, accuracy = judge(model, splits.validation)
    row = {"accuracy": accuracy, "loss": loss}
    if splits.test is not None:
        row["test_loss"], row["test_accuracy"] = judge(model, list(splits.test()))
    return row
