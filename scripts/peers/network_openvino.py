"""The network with OpenVINO from Python, compiled for the one input size."""

import argparse

import numpy as np
import openvino
from bundle import network_file
from serve import serve


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["f32", "default"], required=True)
    args = parser.parse_args()
    image = np.load(args.input)[None]
    core = openvino.Core()
    model = core.read_model(network_file(args.bundle))
    model.reshape(image.shape)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": args.threads}
    if args.precision == "f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run():
        request.infer({0: image}, share_inputs=True, share_outputs=True)

    def check():
        run()
        return request.get_output_tensor(0).data

    computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    version = openvino.__version__.split("-")[0]
    serve(f"openvino {version}, computes in {computes_in}", run, check)


if __name__ == "__main__":
    main()
