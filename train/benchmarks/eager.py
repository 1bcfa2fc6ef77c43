"""The training step of ConceptSeg in plain PyTorch, timed.

    python eager.py FILE [--steps N] [--device cpu|cuda]

FILE is what `cargo run --example step_time -- --out FILE` wrote: the recipe, batches, the first
weights and dictionary, and the losses and weights of its first steps. These steps are repeated
here first; where the losses or the weights after them differ, this ends with exit code 1. The
same process then times N further steps and prints one line of JSON as the example does.

Networks (edge-mobilenet-v2 and paper-resnet50 at output stride 8), losses and optimiser are
written as one writes them with PyTorch: modules, masks over the table of similarities, logsumexp,
torch.optim.SGD. Needs torch and safetensors.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

VOID = 65535
# The length of the gradient of a network with random weights amplifies rounding.
TOLERANCES = {
    "total": 1e-4,
    "local": 1e-4,
    "quantization": 1e-4,
    "cooccurrence": 1e-4,
    "gradient norm": 1e-3,
}
# Of the way that all weights went together: they move little, and are rounded each time.
WEIGHT_TOLERANCE = 1e-2


# ---------------------------------------------------------------- networks


class SameConv2d(nn.Conv2d):
    """3x3 with stride 2, padded after the image only, as TensorFlow does at even sizes."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def conv_relu6(conv):
    return nn.Sequential(conv, nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Block of MobileNetV2, its batch normalisations folded into the convolutions."""

    def __init__(self, inputs, outputs, expansion, halve, dilation):
        super().__init__()
        hidden = inputs * expansion
        layers = []
        if expansion != 1:
            layers.append(conv_relu6(nn.Conv2d(inputs, hidden, 1)))
        if halve:
            depthwise = SameConv2d(hidden, hidden, 3, stride=2, groups=hidden)
        else:
            depthwise = nn.Conv2d(
                hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden
            )
        layers += [conv_relu6(depthwise), nn.Conv2d(hidden, outputs, 1)]
        self.conv = nn.Sequential(*layers)
        self.residual = not halve and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class EdgeHead(nn.Module):
    """Projection of two taps of unit length, corrected by 3x3 cells and the image's context."""

    def __init__(self, channels, deepest, width, dim):
        super().__init__()
        self.projection = nn.Conv2d(channels, dim, 1)
        self.local = nn.Conv2d(channels, width, 3, padding=1)
        self.context = nn.Conv2d(deepest, width, 1)
        self.correction = nn.Conv2d(width, dim, 1)

    def forward(self, taps):
        features = torch.cat([F.normalize(tap, dim=1) for tap in taps], 1)
        pooled = F.normalize(taps[-1].mean((2, 3), keepdim=True), dim=1)
        hidden = F.relu(self.local(features) + F.relu(self.context(pooled)))
        return self.projection(features) + self.correction(hidden)


class EdgeMobilenetV2(nn.Module):
    """MobileNetV2 up to block 13 at stride 8, taps of blocks 6 and 13."""

    def __init__(self, settings):
        super().__init__()
        layers = [conv_relu6(SameConv2d(3, 32, 3, stride=2))]
        inputs, dilation = 32, 1
        # Expansion, channels, blocks, stride.
        for expansion, outputs, blocks, stride in [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
        ]:
            for block in range(blocks):
                # The third halving gives way to dilation in the blocks after it.
                dense = block == 0 and outputs == 64
                halve = block == 0 and stride == 2 and not dense
                layers.append(InvertedResidual(inputs, outputs, expansion, halve, dilation))
                inputs = outputs
                if dense:
                    dilation = 2
        self.features = nn.Sequential(*layers)
        self.head = EdgeHead(32 + 96, 96, settings["head_channels"], settings["dim"])

    def forward(self, x):
        middle = self.features[:7](x)
        return self.head([middle, self.features[7:](middle)])

    def early(self):
        return [self.features[0], self.features[1]]


class Bottleneck(nn.Module):
    """Block of ResNet-50; the stride is in the 3x3 convolution."""

    def __init__(self, inputs, width, stride, dilation, shortcut, momentum):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs, momentum=momentum),
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += identity
        return self.relu(x)


class PyramidLevel(nn.Module):
    def __init__(self, channels, bins):
        super().__init__()
        self.bins = bins
        self.conv = nn.Conv2d(channels, 512, 1, bias=False)
        self.bn = nn.BatchNorm2d(512)

    def forward(self, x):
        pooled = F.relu(self.bn(self.conv(F.adaptive_avg_pool2d(x, self.bins))), inplace=True)
        return F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False)


class PspHead(nn.Module):
    """Pyramid pooling over 1, 2, 3 and 6 bins, a 3x3 convolution and the embedding."""

    def __init__(self, channels, dim):
        super().__init__()
        self.psp1 = PyramidLevel(channels, 1)
        self.psp2 = PyramidLevel(channels, 2)
        self.psp3 = PyramidLevel(channels, 3)
        self.psp6 = PyramidLevel(channels, 6)
        self.conv = nn.Conv2d(channels + 4 * 512, 512, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(512)
        self.embedding = nn.Conv2d(512, dim, 1)

    def forward(self, x):
        x = torch.cat([x, self.psp1(x), self.psp2(x), self.psp3(x), self.psp6(x)], 1)
        return self.embedding(F.relu(self.bn(self.conv(x)), inplace=True))


class PaperResnet50(nn.Module):
    """ResNet-50 at stride 8 with the PSP head."""

    def __init__(self, settings):
        super().__init__()
        momentum = settings["backbone_bn_momentum"]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, momentum=momentum)
        inputs, previous = 64, 1
        # Layer, width, blocks, stride, dilation.
        for layer, width, blocks, stride, dilation in [
            (1, 64, 3, 1, 1),
            (2, 128, 4, 2, 1),
            (3, 256, 6, 1, 2),
            (4, 512, 3, 1, 4),
        ]:
            stack = [Bottleneck(inputs, width, stride, previous, True, momentum)]
            inputs = 4 * width
            for _ in range(1, blocks):
                stack.append(Bottleneck(inputs, width, 1, dilation, False, momentum))
            setattr(self, f"layer{layer}", nn.Sequential(*stack))
            previous = dilation
        self.head = PspHead(inputs, settings["dim"])

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.head(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def early(self):
        return [self.conv1, self.bn1, self.layer1]


NETWORKS = {"edge-mobilenet-v2": EdgeMobilenetV2, "paper-resnet50": PaperResnet50}


# ---------------------------------------------------------------- losses


class Objective(nn.Module):
    """L = L_s + lambda_v L_v + lambda_c L_c over pixels, segments, memory and dictionary."""

    def __init__(self, config, codebook):
        super().__init__()
        self.loss = config["loss"]
        self.settings = config["dictionary"]
        self.memory_batches = config["memory_batches"]
        self.dictionary = nn.Parameter(codebook.clone())
        self.usage = torch.full((len(codebook),), 1 / len(codebook), device=codebook.device)
        # (segments, image of each) of the last batches.
        self.memory = []

    def forward(self, embeddings, ids, index, step):
        kappa, beta = self.loss["kappa"], self.loss["beta"]
        size = [side * self.loss["upsample"] for side in embeddings.shape[2:]]
        grid = F.interpolate(embeddings, size=size, mode="bilinear", align_corners=False)
        ids = F.interpolate(ids[:, None].float(), size=size, mode="nearest-exact").long().flatten()
        z = F.normalize(grid.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        image = index.repeat(2).repeat_interleave(size[0] * size[1])
        valid = ids != VOID
        z, ids, image = z[valid], ids[valid], image[valid]

        # A segment is an id of an image, in both of its views.
        keys, of_pixel, area = torch.unique(
            image * (VOID + 1) + ids, return_inverse=True, return_counts=True
        )
        sums = torch.zeros(len(keys), z.shape[1], device=z.device).index_add(0, of_pixel, z)
        segments = F.normalize(sums / area[:, None], dim=1)
        image = keys // (VOID + 1)

        candidates = torch.cat([segments] + [z for z, _ in self.memory])
        images = torch.cat([image] + [image for _, image in self.memory])
        codes = F.normalize(self.dictionary, dim=1)
        concepts = (candidates.detach() @ codes.detach().T).argmax(1)
        own_concepts = concepts[: len(segments)]

        # The memory's segments of a pixel's own image are hidden from it.
        of_batch = torch.arange(len(candidates), device=z.device) < len(segments)
        visible = torch.ones_like(of_batch)[None].expand(len(segments), -1)
        if self.loss["mask_own_image"]:
            visible = of_batch | (images != image[:, None])
        logits = kappa * (z @ candidates.T)
        logits = logits.masked_fill(~visible[of_pixel], float("-inf"))
        own = logits.gather(1, of_pixel[:, None]).squeeze(1)
        all_terms = logits.logsumexp(1)
        local = (all_terms - own).mean()

        chosen = codes[own_concepts]
        quantization = (
            (1 - (segments.detach() * chosen).sum(1))
            + beta * (1 - (segments * chosen.detach()).sum(1))
        ).mean()

        # Positive are all segments of the images that hold the concept of the pixel's segment.
        distinct, image_number = images.unique(return_inverse=True)
        holds = torch.zeros(len(distinct), len(codes), dtype=torch.bool, device=z.device)
        holds[image_number, concepts] = True
        positive = holds[image_number][:, own_concepts].T
        positives = logits.masked_fill(~positive[of_pixel], float("-inf")).logsumexp(1)
        cooccurrence = (all_terms - positives).mean()

        total = local + self.loss["lambda_v"] * quantization
        if step >= self.loss["cooc_start"]:
            total = total + self.loss["lambda_c"] * cooccurrence
        return total, local, quantization, cooccurrence, segments.detach(), image, own_concepts

    @torch.no_grad()
    def after_step(self, segments, image, concepts, optimizer):
        """Unit length, average use, dead entries, memory."""
        count, decay = len(self.dictionary), self.settings["usage_decay"]
        self.dictionary.copy_(F.normalize(self.dictionary, dim=1))
        share = torch.bincount(concepts, minlength=count) / len(concepts)
        self.usage.mul_(decay).add_(share, alpha=1 - decay)
        dead = (self.usage < self.settings["dead_threshold"] / count).nonzero().flatten()
        if len(dead):
            dead = dead[self.usage[dead].argsort()][: len(segments)]
            rows = torch.randperm(len(segments), device=dead.device)[: len(dead)]
            self.dictionary[dead] = segments[rows]
            optimizer.state[self.dictionary]["momentum_buffer"][dead] = 0
            self.usage[dead] = 1 / count
        self.memory.append((segments, image))
        self.memory = self.memory[-self.memory_batches :] if self.memory_batches else []


# ---------------------------------------------------------------- optimiser


def make_optimizer(network, objective, config):
    """SGD whose groups carry their factor on the rate; biases have no decay."""
    settings = config["optimizer"]
    if settings["freeze_early"]:
        for module in network.early():
            module.requires_grad_(False)
    groups = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = name.endswith(".bias")
        factor = settings["head_multiplier"] if name.startswith("head.") else 1.0
        factor *= settings["bias_multiplier"] if bias else 1.0
        decay = 0.0 if bias else settings["weight_decay"]
        groups.setdefault((factor, decay), []).append(parameter)
    groups.setdefault((settings["dictionary_multiplier"], 0.0), []).append(objective.dictionary)
    return torch.optim.SGD(
        [
            {"params": parameters, "factor": factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ],
        lr=settings["lr"],
        momentum=settings["momentum"],
    )


def rate(settings, step):
    left = 1 - step / max(settings["iterations"], 1)
    warm = (step + 1) / settings["warmup"] if step < settings["warmup"] else 1.0
    return settings["lr"] * warm * max(left, 0.0) ** settings["power"]


# ---------------------------------------------------------------- steps


class Run:
    def __init__(self, file, device):
        self.config = json.loads(bytes(file["config"].tolist()))
        unsupported(self.config)
        self.device = device
        network = NETWORKS[self.config["network"]["preset"]](self.config["network"])
        weights = part(file, "before.")
        codebook = weights.pop("dictionary").to(device)
        missing, unexpected = network.load_state_dict(weights, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            sys.exit(f"eager: other variables: {missing} missing, {unexpected} unknown")
        self.network = network.to(device).train()
        self.objective = Objective(self.config, codebook)
        self.optimizer = make_optimizer(self.network, self.objective, self.config)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.batches = []
        while f"images.{len(self.batches)}" in file:
            i = len(self.batches)
            self.batches.append([file[f"{what}.{i}"] for what in ("images", "ids", "index")])
        self.step = 0

    def one(self):
        """One step: its losses with the length of the gradient, and its seconds."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * rate(self.config["optimizer"], self.step)
        batch = self.batches[self.step % len(self.batches)]
        begun = time.perf_counter()
        images, ids, index = (tensor.to(self.device) for tensor in batch)
        embeddings = self.network(images)
        forward_done = time.perf_counter()
        total, *others, segments, image, concepts = self.objective(
            embeddings, ids, index, self.step
        )
        losses = [loss.item() for loss in (total, *others)]
        losses_done = time.perf_counter()
        total.backward()
        gradients = [p.grad for p in self.trained if p.grad is not None]
        losses.append(torch.nn.utils.get_total_norm(gradients).item())
        backward_done = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step(segments, image, concepts, self.optimizer)
        self.step += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        done = time.perf_counter()
        return losses, {
            "forward": forward_done - begun,
            "loss": losses_done - forward_done,
            "backward": backward_done - losses_done,
            "update": done - backward_done,
        }

    def variables(self):
        found = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
        found["dictionary"] = self.objective.dictionary.detach().cpu()
        return found


def part(file, prefix):
    return {name[len(prefix) :]: file[name] for name in file if name.startswith(prefix)}


def unsupported(config):
    """Ends for a recipe that this script does not follow."""
    for section, key, supported in [
        ("network", "preset", tuple(NETWORKS)),
        ("network", "output_stride", (8,)),
        ("loss", "cooc_exclude_self", (False,)),
        ("loss", "vq_reduce", ("segment",)),
        ("optimizer", "accumulate", (1,)),
        ("optimizer", "clip_norm", (0.0,)),
        ("views", "extra", (0,)),
        ("teacher", "momentum", (0.0,)),
    ]:
        if config[section][key] not in supported:
            sys.exit(f"eager: {section}.{key} is {config[section][key]}, not of {supported}")
    if config["precision"] != "fp32":
        sys.exit("eager: precision must be fp32")


def check(run, file):
    """Repeats the steps of the file; the largest relative differences from it."""
    worst = dict.fromkeys(TOLERANCES, 0.0)
    for step, expected in enumerate(file["losses"].tolist()):
        for name, ours, theirs in zip(TOLERANCES, run.one()[0], expected, strict=True):
            # 1 less a cosine has the rounding of the cosine, so small ones are compared with this.
            difference = abs(ours - theirs) / max(abs(theirs), 1e-2)
            worst[name] = max(worst[name], difference)
            if not difference <= TOLERANCES[name]:
                sys.exit(f"eager: {name} of step {step} is {ours}, expected {theirs}")
    before, after, found = part(file, "before."), part(file, "after."), run.variables()
    apart = sum((found[n].double() - after[n].double()).square().sum().item() for n in after)
    moved = sum((before[n].double() - after[n].double()).square().sum().item() for n in after)
    weights = (apart / moved) ** 0.5 if moved > 0 else 0.0
    if not weights <= WEIGHT_TOLERANCE:
        sys.exit(f"eager: the weights are {weights} of their way from the expected ones")
    gradient = worst.pop("gradient norm")
    return {"losses": max(worst.values()), "gradient": gradient, "weights": weights}


def main():
    parser = argparse.ArgumentParser(description="The training step in plain PyTorch, timed.")
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    file = load_file(args.file)
    run = Run(file, torch.device(args.device))
    differences = check(run, file)
    seconds = [run.one()[1] for _ in range(args.steps)]
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "differences": differences,
                "seconds": {
                    phase: [step[phase] for step in seconds]
                    for phase in ("forward", "loss", "backward", "update")
                },
            }
        )
    )


if __name__ == "__main__":
    main()
