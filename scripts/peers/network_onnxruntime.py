"""The network with onnxruntime from Python."""

import argparse

import numpy as np
import onnxruntime
from bundle import network_file
from serve import serve


def session(folder, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        network_file(folder), options, providers=["CPUExecutionProvider"]
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    network = session(args.bundle, args.threads)
    feed = {network.get_inputs()[0].name: np.load(args.input)[None]}

    def run():
        return network.run(None, feed)[0]

    serve(f"onnxruntime {onnxruntime.__version__}", run, run)


if __name__ == "__main__":
    main()
