"""A detector: two heads, a dict of outputs, a collate function and a metric of its own.

Digits lie on a canvas, one to three of them. For each of its sixteen cells the network says what has its centre there
and where it ends. What a candidate is worth is the F1 of its boxes, so that is what the search maximises.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, l1_loss, softplus
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

import autoprune
from autoprune import Measurement

SIZE, CELL, NOTHING = 32, 8, 10  # pixels of the canvas and of a cell; the class of an empty cell
Found = tuple[Tensor, Tensor, Tensor]  # of all objects in a batch: which image, which digit, which box


class Detector(nn.Module):
    """Scores and boxes (left, top, right, bottom) per cell."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48, 48)
        layers = [
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())
            for inputs, outputs, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False)
        ]
        self.body = nn.Sequential(*layers)
        self.scores, self.sides = nn.Conv2d(48, NOTHING + 1, 1), nn.Conv2d(48, 4, 1)
        middles = torch.arange(CELL / 2, SIZE, CELL)
        self.register_buffer("centres", torch.cartesian_prod(middles, middles).flip(1).view(len(middles), -1, 2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores (images, classes, rows, columns), boxes (images, rows, columns, 4)."""
        features = self.body(images)
        sides = CELL * softplus(self.sides(features)).permute(0, 2, 3, 1)
        boxes = torch.cat([self.centres - sides[..., :2], self.centres + sides[..., 2:]], -1)
        return {"scores": self.scores(features), "boxes": boxes}


def canvases(count: int, digits: Tensor, names: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, each with the digits on it and their boxes: at most one in a quarter, large or small."""
    drawn = {size: interpolate(digits, size) for size in (8, 12)}
    made = []
    for _ in range(count):
        image, numbers, boxes = torch.zeros(1, SIZE, SIZE), [], []
        for quarter in torch.randperm(4)[: torch.randint(1, 4, ())].tolist():
            number, size = int(torch.randint(len(digits), ())), 8 + 4 * int(torch.randint(2, ()))
            left, top = (SIZE // 2 * side + int(torch.randint(17 - size, ())) for side in divmod(quarter, 2))
            image[:, top : top + size, left : left + size] = drawn[size][number]
            numbers.append(names[number])
            boxes.append([left, top, left + size, top + size])
        made.append((image, torch.stack(numbers), torch.tensor(boxes, dtype=torch.float32)))
    return made


def collate(samples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Found]:
    """Images on a pile; their objects, which are not equally many, in one row with the number of the image."""
    images, names, boxes = zip(*samples, strict=True)
    return torch.stack(images), (
        torch.repeat_interleave(torch.tensor([len(own) for own in names])), torch.cat(names), torch.cat(boxes)
    )  # fmt: skip


def loss(answer: dict[str, Tensor], found: Found) -> Tensor:
    """What each cell is, and how far the boxes of the cells with an object are off."""
    image, names, boxes = found
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / CELL).long().unbind(1)
    wanted = torch.full_like(answer["scores"][:, 0], NOTHING, dtype=torch.long)
    wanted[image, row, column] = names
    return cross_entropy(answer["scores"], wanted) + l1_loss(answer["boxes"][image, row, column], boxes) / CELL


def f1_on(loader: DataLoader, model: nn.Module) -> dict[str, float]:
    """The harmonic mean of precision and recall; a hit is the right digit in a box that overlaps by half."""
    hits = boxes = 0
    with torch.no_grad():
        for images, (image, names, truth) in loader:
            answer = model(images)
            said = answer["scores"].argmax(1)
            cells = (said != NOTHING).nonzero().unbind(1)
            right = (cells[0][:, None] == image) & (said[cells][:, None] == names)
            hits += int((right & (box_iou(answer["boxes"][cells], truth) >= 0.5)).any(0).sum())
            boxes += len(said[cells]) + len(names)
    return {"f1": 2 * hits / boxes}


def f1(m: Measurement) -> float:
    """The reward: ``metrics`` are what the ``evaluate`` of a search returned."""
    return m.metrics["f1"]


torch.manual_seed(0)
pictures, classes = (torch.tensor(part) for part in load_digits(return_X_y=True))
pictures = pictures.float().view(-1, 1, 8, 8) / 16
train, validation, test = (  # no digit is in two of them
    DataLoader(canvases(count, pictures[part], classes[part]), 32, shuffle=count == 2000, collate_fn=collate)
    for count, part in ((2000, slice(1200)), (300, slice(1200, 1500)), (300, slice(1500, None)))
)
model = Detector()
optimizer = torch.optim.Adam(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, epochs=10, steps_per_epoch=len(train))
for _ in range(10):
    for images, found in train:
        optimizer.zero_grad()
        loss(model(images), found).backward()
        optimizer.step()
        schedule.step()
model.eval()


def evaluate(candidate: nn.Module) -> dict[str, float]:
    """What the search asks of every candidate."""
    return f1_on(validation, candidate)


run = autoprune.search(
    model, next(iter(validation))[0][:1], train, validation,
    evaluate=evaluate, reward=f1, budget="macs=50%", trials=20,
)  # fmt: skip
for name, row in run.summary["rows"].items():
    print(f"{name:8} F1 {row['metrics']['f1']:.3f} with {row['fractions']['macs']:.0%} of the multiply-adds")
print(f"on test images: dense {f1_on(test, model)['f1']:.3f}, found {f1_on(test, run.model)['f1']:.3f}")
