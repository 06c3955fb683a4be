//! Nets from and for other libraries, as ONNX.
//!
//! [`read`] takes a graph that is a chain of the [`OPERATORS`], with constants for weights, and
//! gives layers; [`write()`] gives such a graph. What a file does with an operator that no layer does
//! is refused by the node's name, everything at once.
//!
//! ```
//! use sepal_core::reference::OnReference;
//! use sepal_models::{data, features::Features, fit::Fit, lenet::LENET5, onnx};
//!
//! # #[cfg(feature = "bundled")] {
//! let (fit, images) = (Fit::new(LENET5, 0)?, data::bundled().test.head(16)?);
//! let back = onnx::read(&onnx::write(&fit.model())?)?;
//! assert_eq!(back.model().net, LENET5);
//! let logits = |model| Features::new(&OnReference, model, &mut &images, LENET5.layers.len());
//! assert_eq!(logits(&back.model())?, logits(&fit.model())?);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod export;
mod import;
mod node;
mod proto;
mod tensor;
#[cfg(test)]
mod tests;

use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;

pub use export::write;
pub use import::{read, read_shaped};

/// Operators that are layers, or that layers take up.
pub const OPERATORS: &[&str] = &[
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Conv",
    "Div",
    "Dropout",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "LogSoftmax",
    "MatMul",
    "MaxPool",
    "Mul",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Softmax",
    "SpaceToDepth",
    "Squeeze",
    "Sub",
    "Tanh",
    "Unsqueeze",
];

/// Operators on constants alone, which are computed when a file is read; some of [`OPERATORS`]
/// may have constants too.
pub const FOLDED: &[&str] = &["Cast", "Concat", "Constant", "Gather", "Shape", "Transpose"];

/// The versions of the operator set that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;

/// The most bytes of a message.
const MESSAGE_MAX: usize = i32::MAX as usize;

/// A node that no layer stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Its name; that of its first output where it has none.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// What is not supported.
    pub reason: String,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} `{}`: {}", self.operator, self.node, self.reason)
    }
}

/// Why bytes are no net, or a net no bytes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnnxError {
    /// No message of ONNX, or a part that is missing.
    Message {
        /// What is wrong.
        reason: String,
    },
    /// The operator set is of another version than those that are known.
    Version {
        /// Its version.
        found: i64,
    },
    /// The graph's inputs or outputs.
    Graph {
        /// What is wrong.
        reason: String,
    },
    /// A value that a node reads or gives.
    Value {
        /// The node.
        node: String,
        /// The value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tensor that contradicts itself, or is not one of finite numbers.
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// Nodes that no layer stands for: all of them.
    Unsupported(Vec<Unsupported>),
    /// More weights than a file of this size should have: many nodes read the same.
    Weights {
        /// The node that reads too many.
        node: String,
        /// The most numbers of all nodes together.
        limit: usize,
    },
    /// Layers that no operator of ONNX is written for: all of them, by number and name.
    Layers(Vec<(usize, &'static str)>),
    /// More bytes than a message can have.
    Large {
        /// How many.
        bytes: usize,
    },
    /// Weights of a layer that are missing.
    Missing {
        /// The layer.
        layer: usize,
    },
    /// The net is none.
    Plan(PlanError),
    /// A sample shape that contradicts the file.
    Shape {
        /// What was asked for.
        asked: Shape,
        /// What the file says; empty where a size is left open.
        found: String,
    },
}

impl std::fmt::Display for OnnxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Message { reason } => write!(f, "no ONNX model: {reason}"),
            Self::Version { found } => {
                let (first, last) = (OPSETS.start(), OPSETS.end());
                write!(f, "operator set {found}, expected {first} to {last}")
            }
            Self::Graph { reason } => f.write_str(reason),
            Self::Value { node, value, reason } => {
                write!(f, "node `{node}`, value `{value}`: {reason}")
            }
            Self::Tensor { tensor, reason } => write!(f, "tensor `{tensor}`: {reason}"),
            Self::Unsupported(all) => {
                write!(f, "{} of the nodes are not supported:", all.len())?;
                all.iter().try_for_each(|one| write!(f, "\n  {one}"))
            }
            Self::Weights { node, limit } => {
                write!(f, "node `{node}`: more than {limit} weights in all, too many for the file")
            }
            Self::Layers(all) => {
                write!(f, "{} of the layers are not written as ONNX:", all.len())?;
                all.iter().try_for_each(|(layer, name)| write!(f, "\n  layer {layer}, {name}"))
            }
            Self::Large { bytes } => {
                write!(f, "a model of {bytes} bytes, expected at most {MESSAGE_MAX}")
            }
            Self::Missing { layer } => write!(f, "layer {layer}: its weights are missing"),
            Self::Plan(error) => error.fmt(f),
            Self::Shape { asked, found } => {
                let Shape { c, h, w, .. } = asked;
                write!(f, "samples of {c}x{h}x{w} asked for, expected {found} as the file says")
            }
        }
    }
}

impl std::error::Error for OnnxError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Plan(error) => Some(error),
            _ => None,
        }
    }
}

impl From<PlanError> for OnnxError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}
