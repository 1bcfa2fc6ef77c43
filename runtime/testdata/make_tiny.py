#!/usr/bin/env python3
"""Writes tiny.onnx, the smallest network that has the shape of a real embedder.

One 8x8 convolution with stride 8 to 32 channels and an L2 normalisation over the
channels, spelled ReduceL2, Clip, Div as the exporter spells it. Height and width are
dynamic. The weights are fixed (seed 0), so tests may rely on them.

Beside it tiny-64.onnx, which is the same for an input of 64x64 pixels and fails in mid-run at any
other size, as a network exported for one size does.

Needs: onnx, numpy.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIM = 32
STRIDE = 8


def main() -> None:
    rng = np.random.default_rng(0)
    # Averaging colour filters plus a little texture: different colours, different directions.
    colour = rng.normal(size=(DIM, 3, 1, 1)) / (STRIDE * STRIDE)
    texture = rng.normal(size=(DIM, 3, STRIDE, STRIDE)) * 0.02 / (STRIDE * STRIDE)
    weight = (colour + texture).astype(np.float32)
    bias = (rng.normal(size=DIM) * 0.1).astype(np.float32)
    write("tiny.onnx", weight, bias)
    # Nothing is added, but only to a grid of this size.
    write("tiny-64.onnx", weight, bias, np.zeros((1, DIM, 64 // STRIDE, 64 // STRIDE), np.float32))


def write(name: str, weight: np.ndarray, bias: np.ndarray, grid: np.ndarray | None = None) -> None:
    add = [] if grid is None else [helper.make_node("Add", ["convolved", "grid"], ["features"], name="add")]
    graph = helper.make_graph(
        nodes=[
            helper.make_node(
                "Conv", ["image", "weight", "bias"], ["convolved" if add else "features"], name="conv",
                kernel_shape=[STRIDE, STRIDE], strides=[STRIDE, STRIDE],
            ),
            *add,
            helper.make_node("ReduceL2", ["features"], ["norm"], name="norm", axes=[1], keepdims=1),
            helper.make_node("Clip", ["norm", "tiny"], ["safe_norm"], name="clip"),
            helper.make_node("Div", ["features", "safe_norm"], ["embedding"], name="divide"),
        ],
        name="tiny",
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])],
        outputs=[helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, DIM, "rows", "columns"])],
        initializer=[
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.float32(1e-12), "tiny"),
            *([] if grid is None else [numpy_helper.from_array(grid, "grid")]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="conceptseg-testdata")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, Path(__file__).with_name(name))


if __name__ == "__main__":
    main()
