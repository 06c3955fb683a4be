//! Normalisations.

use sepal_core::error::Error;
use sepal_core::layer::{BatchNorm, ChannelStd, L2Normalise, Pass, Standardise};
use sepal_core::shape::Shape;

use crate::layers::{Backward, Forward};

/// Scratch bytes, forward and backward.
pub(crate) fn scratch(_l: &BatchNorm, _x: Shape, _pass: Pass) -> (usize, usize) {
    (0, 0)
}

pub(crate) fn batch_norm(_l: &BatchNorm, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("batch_norm"))
}

pub(crate) fn batch_norm_backward(_l: &BatchNorm, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("batch_norm_backward"))
}

pub(crate) fn standardise(_l: &Standardise, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("standardise"))
}

pub(crate) fn standardise_backward(_l: &Standardise, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("standardise_backward"))
}

pub(crate) fn l2_normalise(_l: &L2Normalise, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("l2_normalise"))
}

pub(crate) fn l2_normalise_backward(_l: &L2Normalise, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("l2_normalise_backward"))
}

pub(crate) fn channel_std(_l: &ChannelStd, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("channel_std"))
}

pub(crate) fn channel_std_backward(_l: &ChannelStd, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("channel_std_backward"))
}
