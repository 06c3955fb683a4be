//! Forward, layer-wise learning of convolutional networks on the device itself.
//!
//! A network learns here from its first block to its last, each block alone, the ones before it
//! frozen. A block learns to raise the **Separation Index** (SI): the share of samples whose
//! nearest neighbour has their own label, which is the accuracy of leave-one-out nearest-neighbour
//! classification. No error travels back through the network, so only one block's weights,
//! gradients and activations are in memory; the frozen rest is read where it is stored, in flash.
//! The classifier is trained last, by cross-entropy. The method is that of Karimi, Kalhor and
//! Sadeghi Tabrizi, "Forward layer-wise learning of convolutional neural networks through
//! separation index maximizing", Scientific Reports (2024).
//!
//! # A first look
//! Train, on the host:
//! ```
//! use sepal::models::{cache::Budget, data, features::Features, fit::Fit, lenet::LENET, recipe};
//!
//! let mut images = data::bundled().train.head(512)?;
//! let mut test = data::bundled().test.head(128)?;
//! let mut fit = Fit::new(LENET, 0)?;
//! fit.run(&sepal::cpu::OnCpu::default(), &recipe::forward_si(2, 4), &mut images, &Budget::default(), &mut ())?;
//! let logits = Features::new(&sepal::cpu::OnCpu::default(), &fit.model(), &mut test, LENET.layers.len())?;
//! assert!(logits.accuracy() > 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! Infer, anywhere: [`infer::Inference`] shows how, with memory that is a constant of the program.
//! Train one block without a heap: [`train::Session`].
//!
//! # The rooms
//! * [`layer`]: what nets are made of, each with `forward` and a hand-derived `backward`;
//!   [`net`]: layers in a row, cut into blocks, with their weights.
//! * [`neighbour`]: the nearest sample with the same label and the nearest with another, the one
//!   primitive behind [`si`] and [`loss`].
//! * [`reservoir`]: a bounded, class-balanced store of the samples that a sensor gives;
//!   [`prototypes`]: new classes from a few samples, and "none of these".
//! * [`stage`], [`strategy`], [`train`]: what is trained together, in which order, step by step.
//! * [`arena`], [`plan`], [`backend`]: memory lent by the caller, cut by a plan that is
//!   arithmetic on shapes, computed on by a backend. [`mod@reference`] is the specification.
//! * [`mod@format`]: the model file, read in place; `flash`: what a device learnt, kept in flash.
//!
//! # Features
//! | feature | what it adds | what it costs |
//! |---|---|---|
//! | `cpu` (default) | the CPU backend on all cores, `cpu` | std, rayon, matrixmultiply, ndarray |
//! | `cuda` | the backend on an NVIDIA GPU, `cuda`; builds without CUDA, asks for a driver when it runs | std, cudarc |
//! | `models` (default) | architectures, recipes, data sets, the host's trainer, `models` | std, csv, flate2, half, sysinfo, tempfile, 1.3 MB of images |
//! | `flash` | updated weights kept in flash, safe against power loss | embedded-storage |
//! | `f16` | weights stored and rows searched in half precision | half |
//! | `onnx` | nets from and for other libraries, as ONNX, `models::onnx` | prost |
//! | `safetensors` | the same as weights with PyTorch's names, `models::safetensors` | safetensors |
//! | `download` | fetching the official data sets | ureq with rustls, tar, md-5, sha2 |
//!
//! Without default features the crate is `no_std` and never allocates. The minimum supported Rust
//! version is 1.95; it is raised only in a minor release.
#![no_std]
#![forbid(unsafe_code)]

#[doc(inline)]
pub use sepal_core::*;

/// The CPU backend.
#[cfg(feature = "cpu")]
#[doc(inline)]
pub use sepal_cpu as cpu;

/// The CUDA backend.
#[cfg(feature = "cuda")]
#[doc(inline)]
pub use sepal_cuda as cuda;

/// Architectures, recipes, data sets and the host's trainer.
#[cfg(feature = "models")]
#[doc(inline)]
pub use sepal_models as models;

#[cfg(all(doctest, feature = "cpu", feature = "models"))]
#[doc = include_str!("README.md")]
struct Readme;
