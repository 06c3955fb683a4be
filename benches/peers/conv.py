#!/usr/bin/env python3
"""Times convolutions in other libraries and here, in the same rounds.

usage: conv.py BENCH [ROW ...] [--threads N] [--rounds N] [--set NAME]

BENCH is the program that `cargo bench --bench conv --no-run` names. Every round runs each library
once, so that all meet the same load; times are of the processor, the least of the rounds. For
everybody a pass counts as 2 N K C R S P Q operations. The last columns say how many times faster
ours is than the best of the others, and which that is.
"""

import argparse

import rounds

# N, C, H, W, K, kernel, padding
ROWS = {
    "LeNet-1": (128, 1, 28, 28, 6, (5, 5), (2, 2)),
    "LeNet-2": (128, 6, 14, 14, 16, (5, 5), (0, 0)),
    "VGG-3": (32, 3, 32, 32, 64, (3, 3), (1, 1)),
    "VGG-64": (32, 64, 32, 32, 64, (3, 3), (1, 1)),
    "VGG-128": (32, 128, 16, 16, 128, (3, 3), (1, 1)),
    "VGG-256": (32, 256, 8, 8, 256, (3, 3), (1, 1)),
    "VGG-512": (32, 512, 4, 4, 512, (3, 3), (1, 1)),
    "VGG-512s": (32, 512, 2, 2, 512, (3, 3), (1, 1)),
    "AlexNet-2": (32, 64, 16, 16, 192, (5, 5), (2, 2)),
    "VD-CNN-64": (32, 64, 1, 1024, 64, (1, 3), (0, 1)),
    "VD-CNN-512": (32, 512, 1, 128, 512, (1, 3), (0, 1)),
    "Inception-1x1": (32, 192, 16, 16, 64, (1, 1), (0, 0)),
}
PASSES = ["forward", "data", "weights"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("bench")
parser.add_argument("rows", nargs="*", default=list(ROWS))
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--set", action="append", help="of our instruction sets [default: the best]")
args = parser.parse_args()

rounds.threads(args.threads)

import numpy as np

torch, onnx = rounds.optional("torch"), rounds.optional("onnx")
onnxruntime = rounds.optional("onnxruntime") if onnx else None
openvino = rounds.optional("openvino") if onnx else None
if torch:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)


def model(x, w, y, pad):
    """The convolution as an ONNX model."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[*pad, *pad])
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [helper.make_tensor_value_info("y", kind, list(y))],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def peers(row, which):
    """What the other libraries do for a pass."""
    n, c, h, w, k, kernel, pad = ROWS[row]
    rng = np.random.default_rng(0)
    numbers = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    y = (n, k, h + 2 * pad[0] - kernel[0] + 1, w + 2 * pad[1] - kernel[1] + 1)
    x, weight, dy = numbers(n, c, h, w), numbers(k, c, *kernel), numbers(*y)
    if torch:
        for name, layout in [
            ("torch", torch.contiguous_format),
            ("torch channels-last", torch.channels_last),
        ]:
            tensors = [torch.from_numpy(t).to(memory_format=layout) for t in (x, weight, dy)]
            if which == "forward":
                work = lambda x, w, dy: torch.nn.functional.conv2d(x, w, padding=pad)
            else:
                mask = [which == "data", which == "weights", False]
                work = lambda x, w, dy, mask=mask: torch.ops.aten.convolution_backward(
                    dy, x, w, None, [1, 1], pad, [1, 1], False, [0, 0], 1, mask
                )
            yield name, lambda work=work, tensors=tensors: work(*tensors)
    if which != "forward":
        return
    if torch and torch.backends.mkldnn.is_available():
        blocks = torch.from_numpy(x).to_mkldnn()
        packed = torch.from_numpy(weight).to_mkldnn()
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(packed, pad, [1, 1], [1, 1], 1)
        yield "oneDNN blocked", lambda: torch.nn.functional.conv2d(blocks, packed, padding=pad)
    if onnxruntime:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model(x, weight, y, pad), options, providers=["CPUExecutionProvider"]
        )
        yield "onnxruntime", lambda: session.run(None, {"x": x})
    if openvino:
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": args.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        read = core.read_model(model(x, weight, y, pad))
        request = core.compile_model(read, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        yield "OpenVINO", request.infer


print(f"{args.threads} thread(s), {args.rounds} rounds, GFLOP per CPU-second (least time)")
print("| row | pass | ours | others | ratio | to |")
print("|---|---|---|---|---|---|")
for row in args.rows:
    n, c, h, w, k, kernel, pad = ROWS[row]
    places = (h + 2 * pad[0] - kernel[0] + 1) * (w + 2 * pad[1] - kernel[1] + 1)
    operations = 2 * n * k * c * kernel[0] * kernel[1] * places
    for which in PASSES:
        sets = args.set or ["best"]
        command = [args.bench, "--threads", str(args.threads), "--serve", row, which]
        ours = {name: rounds.Ours(*command, name) for name in sets}
        others = {name: rounds.Peer(work) for name, work in peers(row, which)}
        times = rounds.run(ours | others, args.rounds)
        rate = {name: operations / min(cpu for _, cpu in t) / 1e9 for name, t in times.items()}
        own = " ".join(f"{name} {rate[name]:.1f}" for name in ours)
        listed = ", ".join(f"{name} {rate[name]:.1f}" for name in others)
        best = max(others, key=rate.get, default=None)
        ratios = " ".join(f"{rate[name] / rate[best]:.2f}" for name in ours) if best else ""
        print(f"| {row} | {which} | {own} | {listed} | {ratios} | {best or ''} |", flush=True)
