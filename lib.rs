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
//! Infer, anywhere: [`infer::Inference`] shows how, with memory that is a constant of the program;
//! [`micro::Micro`] does it on small cores. Train one block without a heap: [`train::Session`], or one
//! sample at a time [`micro::Tuning`].
//!
//! # A tour
//! A [`net::Net`] is data: layers in a row, cut into blocks. Whatever is done with it is planned first,
//! by arithmetic on shapes, and the plan says how many bytes it takes:
//! ```
//! use sepal::infer::Inference;
//! use sepal::layer::{Conv2d, Dense, Layer, MaxPool, RELU};
//! use sepal::net::{Input, Net, Normalisation};
//! use sepal::shape::Shape;
//!
//! const NET: Net<'static> = Net {
//!     input: Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE },
//!     layers: &[
//!         Layer::Conv2d(Conv2d::new(6, 5)), RELU, Layer::MaxPool(MaxPool::new(2)),
//!         Layer::Dense(Dense::new(10)),
//!     ],
//!     blocks: &[3, 4],
//!     features: 1,
//! };
//! const PLAN: Inference<'static> = match Inference::micro(NET, 1, false) {
//!     Ok(plan) => plan,
//!     Err(_) => panic!("the layers do not fit each other"),
//! };
//! const _: () = assert!(PLAN.bytes() <= 8 * 1024, "the board is smaller");
//! ```
//! A [`backend::Backend`] computes what was planned, in memory that it is lent or owns: the reference
//! anywhere, `cpu` on all cores, `cuda` on a GPU, [`micro`] on a microcontroller. A [`stage::Stage`] says
//! which layers are trained together, towards what; a [`strategy`] is a list of stages, decided by how the
//! ones before went. How well a block separates its classes is one number:
//! ```
//! use sepal::neighbour::{Pair, Rows, nearest_pair};
//!
//! let rows = Rows { data: &[0.0f32, 0.1, 1.0, 1.1], dim: 1, labels: &[0, 0, 1, 1] };
//! let mut pairs = [Pair::NONE; 4];
//! nearest_pair(rows, rows, 0, Some(0), &mut pairs);
//! assert_eq!(sepal::si::si(&pairs).value(), Some(1.0)); // the nearest of each has its label
//! ```
//! What was learnt is a model file ([`mod@format`]) or a delta to one in flash (`flash`), and
//! [`net::Weights::Patched`] runs both together.
//!
//! Pages for a task each, in the repository's `docs/tasks`: train on your own images, fine-tune on a
//! Cortex-M, from PyTorch to a device, write a layer, write a backend.
//!
//! # The rooms
//! * [`layer`]: what nets are made of, each with `forward` and a hand-derived `backward`;
//!   [`net`]: layers in a row, cut into blocks, with their weights.
//! * [`neighbour`]: the nearest sample with the same label and the nearest with another, the one
//!   primitive behind [`si`] and [`loss`].
//! * [`reservoir`]: a bounded, class-balanced store of the samples that a sensor gives;
//!   [`prototypes`]: new classes from a few samples, and "none of these".
//! * [`stage`], [`strategy`], [`train`]: what is trained together, in which order, step by step.
//! * [`micro`]: inference and fine-tuning on small cores, in f32 and in bytes.
//! * [`arena`], [`plan`], [`backend`]: memory lent by the caller, cut by a plan that is
//!   arithmetic on shapes, computed on by a backend. [`mod@reference`] is the specification.
//! * [`mod@format`]: the model file, read in place; `flash`: what a device learnt, kept in flash.
//!
//! # Features
//! | feature | what it adds | what it costs |
//! |---|---|---|
//! | `cpu` (default) | the CPU backend on all cores, `cpu` | std, rayon, matrixmultiply, ndarray |
//! | `cuda` | the backend on an NVIDIA GPU, `cuda`; builds without CUDA, asks for a driver when it runs | std, cudarc |
//! | `models` (default) | architectures, recipes, data sets, the host's trainer, `models` | std, csv, flate2, half, serde, sysinfo, tempfile, 1.3 MB of images |
//! | `ndarray` (default) | fit and predict on arrays, `models::estimator` | ndarray, which `cpu` has |
//! | `tracing` | a run as spans and events, `models::traced` | tracing |
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

// Code of pages is tested.
#[cfg(all(doctest, feature = "cpu", feature = "models"))]
mod pages {
    #[doc = include_str!("README.md")]
    struct Readme;
    #[doc = include_str!("docs/tasks/train-on-your-images.md")]
    struct TrainOnYourImages;
    #[doc = include_str!("docs/tasks/fine-tune-on-a-cortex-m.md")]
    struct FineTuneOnACortexM;
    #[doc = include_str!("docs/tasks/write-a-layer.md")]
    struct WriteALayer;
    #[doc = include_str!("docs/tasks/pytorch-to-a-device.md")]
    struct PytorchToADevice;
}
