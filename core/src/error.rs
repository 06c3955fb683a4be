//! What can go wrong while a net runs or learns.

use crate::arena::ArenaError;
use crate::plan::PlanError;
use crate::shape::Shape;
use crate::source::SourceError;

/// Every error of a pass or a training step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Memory that is missing or wrongly used.
    Arena(ArenaError),
    /// Layers that do not fit each other or the data.
    Plan(PlanError),
    /// A sample that could not be had.
    Source(SourceError),
    /// Parameters of a layer that are missing, of another length, or of a type that this build
    /// does not read.
    Weights {
        /// The layer.
        layer: usize,
        /// Elements that it has.
        expected: usize,
        /// Elements that are stored.
        got: usize,
    },
    /// Samples of another shape than the net takes.
    Sample {
        /// What the net takes.
        expected: Shape,
        /// What was given.
        got: Shape,
    },
    /// A batch larger than the set it is drawn from, or a set without samples.
    TooFew {
        /// Samples that there are.
        samples: u32,
        /// Samples that are needed.
        needed: u32,
    },
    /// A batch in which no anchor has both a neighbour of its own label and one of another.
    NoAnchor {
        /// The stage.
        stage: u16,
        /// The update, counted from 0 within the stage.
        update: u32,
    },
    /// A loss or a parameter that is no longer a number: the training diverged.
    Diverged {
        /// The stage.
        stage: u16,
        /// The first layer that it trains.
        layer: u16,
        /// The update, counted from 0 within the stage.
        update: u32,
    },
    /// The backend does not do this.
    Unsupported(&'static str),
    /// The backend's device failed.
    Device {
        /// The device's own code.
        code: i32,
        /// What was being done.
        doing: &'static str,
    },
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Arena(e) => e.fmt(f),
            Self::Plan(e) => e.fmt(f),
            Self::Source(e) => e.fmt(f),
            Self::Weights { layer, expected, got } => {
                write!(f, "layer {layer} has {expected} parameters, {got} are stored")
            }
            Self::Sample { expected, got } => {
                write!(f, "the net takes samples of {expected}, got {got}")
            }
            Self::TooFew { samples, needed } => {
                write!(f, "{samples} samples, at least {needed} are needed for one batch")
            }
            Self::NoAnchor { stage, update } => write!(
                f,
                "stage {stage}, update {update}: no sample of the batch has both a neighbour of \
                 its own class and one of another"
            ),
            Self::Diverged { stage, layer, update } => write!(
                f,
                "stage {stage} (layers from {layer} on) diverged at update {update}: the loss or \
                 a parameter is not a number"
            ),
            Self::Unsupported(what) => write!(f, "this backend does not support {what}"),
            Self::Device { code, doing } => write!(f, "the device failed ({code}) {doing}"),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Arena(e) => Some(e),
            Self::Plan(e) => Some(e),
            Self::Source(e) => Some(e),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($t:ty => $v:ident),*) => {
        $(impl From<$t> for Error { fn from(e: $t) -> Self { Self::$v(e) } })*
    };
}
from!(ArenaError => Arena, PlanError => Plan, SourceError => Source);
