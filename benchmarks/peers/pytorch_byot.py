"""BYOT's ResNet-18 for CIFAR in plain PyTorch, for `train_step.py --peer`.

Written from the paper (arXiv 1905.08094) and its public reproduction's structure, in
PyTorch's own layers and layout (channels first), eager, as such code is run: three
bottleneck exits, the label loss of each, soft targets and hints from the end.
"""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512)
ALPHA, TEMPERATURE, HINT_WEIGHT = 0.1, 3.0, 1e-6


def conv_bn(before, after, size, stride=1, padding=0):
    """Return a convolution without bias and its batch normalisation."""
    convolution = nn.Conv2d(before, after, size, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


class Block(nn.Module):
    """A basic block: two 3×3 convolutions and a shortcut."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(before, after, 3, stride, 1),
            nn.ReLU(inplace=True),
            *conv_bn(after, after, 3, 1, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(*conv_bn(before, after, 1, stride))

    def forward(self, x):
        """Return the block's output."""
        return functional.relu(self.residual(x) + self.shortcut(x), inplace=True)


def bottleneck(before, after, size):
    """Return a bottleneck exit, which shrinks the image by a factor."""
    middle = after // 4
    return nn.Sequential(
        *conv_bn(before, middle, 1),
        nn.ReLU(inplace=True),
        *conv_bn(middle, middle, size, size),
        nn.ReLU(inplace=True),
        *conv_bn(middle, after, 1),
        nn.ReLU(inplace=True),
    )


class ResNet18(nn.Module):
    """ResNet-18 with an exit at the end of each stage.

    Args:
        classes: Number of classes.
        width_multiplier: Factor on the widths.
    """

    def __init__(self, classes=100, width_multiplier=1.0):
        super().__init__()
        widths = [round(width * width_multiplier) for width in WIDTHS]
        self.stem = nn.Sequential(
            *conv_bn(3, widths[0], 3, 1, 1), nn.ReLU(inplace=True)
        )
        self.stages, self.branches = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for number, width in enumerate(widths):
            first = Block(before, width, 1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, Block(width, width, 1)))
            before = width
        for width, size in zip(widths[:-1], (8, 4, 2), strict=True):
            self.branches.append(bottleneck(width, widths[-1], size))
        self.branches.append(nn.Identity())
        self.classifiers = nn.ModuleList(nn.Linear(widths[-1], classes) for _ in widths)

    def forward(self, x):
        """Return the features and the logits of every exit, shallow to deep."""
        x, features = self.stem(x), []
        for stage, branch in zip(self.stages, self.branches, strict=True):
            x = stage(x)
            pooled = functional.adaptive_avg_pool2d(branch(x), 1)
            features.append(torch.flatten(pooled, 1))
        pairs = zip(self.classifiers, features, strict=True)
        return features, [classifier(feature) for classifier, feature in pairs]


def loss(features, logits, labels):
    """Return the sum over all exits of BYOT's terms, hints summed over the batch."""
    soft_targets = functional.softmax(logits[-1].detach() / TEMPERATURE, dim=1)
    total = (1 - ALPHA) * functional.cross_entropy(logits[-1], labels)
    for feature, each in zip(features[:-1], logits[:-1], strict=True):
        predicted = functional.log_softmax(each / TEMPERATURE, dim=1)
        divergence = functional.kl_div(predicted, soft_targets, reduction="batchmean")
        hint = torch.sum((feature - features[-1].detach()) ** 2)
        total = total + (1 - ALPHA) * functional.cross_entropy(each, labels)
        total = total + ALPHA * TEMPERATURE**2 * divergence + HINT_WEIGHT * hint
    return total


class Trainer:
    """The network with its optimizer.

    Args:
        classes: Number of classes.
        width_multiplier: Factor on the widths.
    """

    def __init__(self, classes=100, width_multiplier=1.0):
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = ResNet18(classes, width_multiplier).to(self.device)
        # As the wrapper's in the benchmark, which has no weight decay.
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.1, momentum=0.9
        )

    def step(self, images, labels):
        """Train on a batch, images channels first; return loss and accuracies."""
        features, logits = self.network(images)
        value = loss(features, logits, labels)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        hits = [(each.argmax(1) == labels).float().mean() for each in logits]
        # Read once, as its code prints them after each step.
        return torch.stack([value.detach(), *hits]).tolist()

    def place(self, images, labels):
        """Return channels-last images and labels as tensors, channels first."""
        images = torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()
        labels = torch.as_tensor(labels, dtype=torch.int64)
        return images.to(self.device), labels.to(self.device)
