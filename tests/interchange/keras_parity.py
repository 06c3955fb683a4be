#!/usr/bin/env python3
"""The nets of MLPerf Tiny in Keras, converted and run by ONNX Runtime, beside Keras.

    pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0 onnx==1.23.2 onnxruntime==1.32.0
    python tests/interchange/keras_parity.py CONVERT FOLDER

CONVERT is the program, FOLDER holds the files of one net at a time. For each net: its parameters as Keras
counts them, and the largest difference to what Keras gives, beside the largest output. Weights are random,
those of norms too.
"""
import subprocess
import sys
from pathlib import Path

import numpy
import onnxruntime
import tensorflow
import tf2onnx
from tensorflow.keras import Input, Model, layers


def normed(layer, x):
    """A layer with batch norm and ReLU."""
    return layers.ReLU()(layers.BatchNormalization()(layer(x)))


def separable(x, filters, stride):
    """A depthwise convolution and one of 1x1."""
    x = normed(layers.DepthwiseConv2D(3, strides=stride, padding="same"), x)
    return normed(layers.Conv2D(filters, 1, padding="same"), x)


def ds_cnn():
    """Keyword spotting."""
    x = start = Input((49, 10, 1))
    x = layers.Dropout(0.2)(normed(layers.Conv2D(64, (10, 4), strides=2, padding="same"), x))
    for _ in range(4):
        x = separable(x, 64, 1)
    x = layers.AveragePooling2D((24, 5))(layers.Dropout(0.4)(x))
    return Model(start, layers.Dense(12)(layers.Flatten()(x)))


def mobilenet():
    """Visual wake words."""
    x = start = Input((96, 96, 3))
    x = normed(layers.Conv2D(8, 3, strides=2, padding="same"), x)
    filters = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
    for filters, stride in zip(filters, (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
        x = separable(x, filters, stride)
    x = layers.AveragePooling2D((3, 3))(x)
    return Model(start, layers.Dense(2)(layers.Flatten()(x)))


def autoencoder():
    """Anomaly detection."""
    x = start = Input((640,))
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = normed(layers.Dense(units), x)
    return Model(start, layers.Dense(640)(x))


def main():
    """Prints a table."""
    convert, folder = sys.argv[1], Path(sys.argv[2])
    random = numpy.random.default_rng(1)
    for make in (ds_cnn, mobilenet, autoencoder):
        net = make()
        # All but kernels, which are drawn already: biases, scales, shifts, means, variances.
        for layer in net.layers:
            layer.set_weights([
                w if w.ndim > 1 else random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()
            ])
        x = random.normal(0, 1, (2, *net.input_shape[1:])).astype("float32")
        y = net(x, training=False).numpy()
        # Planes of channels, not channels of places.
        planes = {"inputs_as_nchw": ["x"]} if x.ndim == 4 else {}
        signature = [tensorflow.TensorSpec((None, *net.input_shape[1:]), name="x")]
        function = tensorflow.function(lambda x: net(x, training=False), input_signature=signature)
        given, model, back = (str(folder / f"net.{end}") for end in ("onnx", "sepal", "back.onnx"))
        tf2onnx.convert.from_function(
            function, signature, opset=17, output_path=given, **planes
        )
        for source, out in ((given, model), (model, back)):
            subprocess.run([convert, source, out], check=True, stdout=subprocess.DEVNULL)
        session = onnxruntime.InferenceSession(back, providers=["CPUExecutionProvider"])
        x = numpy.ascontiguousarray(x.transpose(0, 3, 1, 2)) if planes else x
        [found] = session.run(None, {session.get_inputs()[0].name: x})
        off, largest = abs(found - y).max(), abs(y).max()
        print(f"{make.__name__}: {net.count_params()} parameters, off by {off:.1e} of {largest:.2f}")


main()
