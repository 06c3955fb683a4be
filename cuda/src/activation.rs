//! Activations and dropout.

use sepal_core::error::Error;
use sepal_core::layer::{Activation, Dropout};

use crate::layers::{Backward, Forward};

pub(crate) fn forward(_l: &Activation, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("forward"))
}

pub(crate) fn backward(_l: &Activation, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("backward"))
}

pub(crate) fn dropout(_l: &Dropout, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("dropout"))
}

pub(crate) fn dropout_backward(_l: &Dropout, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("dropout_backward"))
}
