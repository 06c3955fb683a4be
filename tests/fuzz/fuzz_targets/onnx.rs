#![no_main]

sepal_fuzz::target!("onnx");
