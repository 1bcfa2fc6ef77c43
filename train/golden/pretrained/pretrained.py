"""Files of weights as PyTorch writes them, and features of torchvision's networks, for the tests.

    python pretrained.py

Needs torch and torchvision (made with 2.11.0 and 0.26.0, on the CPU). Writes beside this script:

- state-dict.pth       the number types and layouts that occur, saved with torch.save
- checkpoint.pth       a state dictionary inside a training script's dictionary
- legacy.pth           the format before PyTorch 1.6
- code.pth             a pickle that calls a function of the operating system (os.getcwd)
- features.safetensors features of the networks with the weights and the image of `fill`

The networks' weights follow from their names by a formula, so that no weights need to be kept.
"""

import collections
import json
import os
import pathlib
import struct

import numpy as np
import torch
import torchvision

HERE = pathlib.Path(__file__).parent


def fill(name, shape):
    """Numbers in [0, 1) that follow from the name: splitmix64 of its FNV-1a hash and the place."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = z + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)).reshape(shape)


def weight(name, shape):
    u = fill(name, shape)
    if name.endswith("running_var"):
        return u + np.float32(0.5)
    if len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        return (2 * u - 1) * np.float32((6 / fan_in) ** 0.5)
    if name.endswith(".weight"):
        return u * np.float32(0.5) + np.float32(0.5)
    return (2 * u - 1) * np.float32(0.2)


def load(network):
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.dtype == torch.float32:
            state[name] = torch.from_numpy(weight(name, tuple(tensor.shape)))
    network.load_state_dict(state)
    return network.eval()


def features():
    image = torch.from_numpy(4 * fill("image", (1, 3, 32, 64)) - 2)
    found = {}
    models = torchvision.models
    for name, make in [("resnet18", models.resnet18), ("resnet34", models.resnet34)]:
        network = load(make())
        x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
        found[f"{name}.layer2"] = x = network.layer2(network.layer1(x))
        found[f"{name}.layer3"] = network.layer3(x)
    network = load(models.mobilenet_v2())
    x = image
    for index, block in enumerate(network.features[:14]):
        x = block(x)
        if index in (6, 13):
            found[f"mobilenet_v2.features.{index}"] = x
    for stride, dilate in [(8, [False, True, True]), (16, [False, False, True])]:
        network = load(models.resnet50(replace_stride_with_dilation=dilate))
        x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
        x = network.layer4(network.layer3(network.layer2(network.layer1(x))))
        # The first channels, to keep the file small.
        found[f"resnet50.layer4.stride{stride}"] = x[:, :64]
    return found


def save_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().numpy().astype("<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Code:
    """Unpickles by calling a function."""

    def __reduce__(self):
        return os.getcwd, ()


def main():
    # A real module, so that the dictionary carries its metadata and a batch counter.
    module = torch.nn.Sequential(collections.OrderedDict(
        conv=torch.nn.Conv2d(2, 3, 1, bias=False), bn=torch.nn.BatchNorm2d(3)))
    with torch.no_grad():
        module.conv.weight.copy_(torch.arange(6.0).view(3, 2, 1, 1))
        module.bn.running_var.copy_(torch.tensor([0.5, 1.5, 2.5]))
    state = module.state_dict()
    storage = torch.arange(12.0)
    state["half"] = torch.tensor([1.0, -0.5, 65504.0], dtype=torch.float16)
    state["bfloat16"] = torch.tensor([1.0, -0.5, 2.0**100], dtype=torch.bfloat16)
    state["double"] = torch.tensor([[1.0, 1e-3]], dtype=torch.float64)
    state["transposed"] = storage.view(3, 4).t()
    state["part"] = storage[4:8]
    state["parameter"] = torch.nn.Parameter(torch.tensor([7.0]))
    state["scalar"] = torch.tensor(3.0)
    state["empty"] = torch.zeros(0, 3)
    torch.save(state, HERE / "state-dict.pth")
    torch.save(state, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "loss": 0.5, "state_dict": state}, HERE / "checkpoint.pth")
    torch.save({"weight": Code()}, HERE / "code.pth")
    with torch.no_grad():
        save_safetensors(HERE / "features.safetensors", features())


main()
