//! Architectures as const data, and, with `std`, data sets, augmentation and samplers.
//!
//! | feature | what it adds | what it costs |
//! |---|---|---|
//! | `std` (default) | `data`: IDX, CIFAR, CSV and NPY files, augmentation, class-balanced batches; the host's trainer and its caches | csv, flate2, half, serde, sysinfo, tempfile |
//! | `bundled` (default) | 3,000 images of Fashion-MNIST inside the program | 1.3 MB of program |
//! | `ndarray` | `estimator`: fit and predict on arrays | ndarray |
//! | `images` | folders of PNG and JPEG images | image |
//! | `onnx` | nets from and for other libraries, as ONNX | prost |
//! | `safetensors` | the same as safetensors with PyTorch's names | safetensors |
//! | `tracing` | `traced`: a run as spans and events | tracing |
//! | `clap` | names of architectures and strategies as options of a command line | clap |
//! | `download` | fetching the official data sets | ureq with rustls, tar, md-5, sha2 |
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

pub mod alexnet;
#[cfg(feature = "std")]
pub mod architecture;
pub mod autoencoder;
#[cfg(feature = "std")]
pub mod cache;
#[cfg(feature = "std")]
pub mod data;
pub mod dense;
pub mod ds_cnn;
#[cfg(feature = "ndarray")]
pub mod estimator;
#[cfg(feature = "std")]
pub mod export;
#[cfg(feature = "std")]
pub mod features;
#[cfg(feature = "std")]
pub mod file;
#[cfg(feature = "std")]
pub mod fit;
pub mod gesture;
#[cfg(feature = "std")]
pub mod goodness;
#[cfg(any(feature = "onnx", feature = "safetensors"))]
pub mod imported;
#[cfg(feature = "std")]
pub mod learning;
pub mod lenet;
#[cfg(feature = "std")]
pub mod measure;
pub mod mobilenet;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "std")]
mod pca;
pub mod recipe;
pub mod resnet;
#[cfg(feature = "safetensors")]
pub mod safetensors;
pub mod simcnn;
#[cfg(feature = "std")]
pub mod steer;
mod table;
#[cfg(feature = "tracing")]
pub mod traced;
pub mod vdcnn;
pub mod vgg;
pub mod width;
