//! Pools.

use sepal_core::error::Error;
use sepal_core::layer::{AvgPool, AvgPoolTo, GlobalAvgPool, KMaxPool, MaxPool};

use crate::layers::{Backward, Forward};

pub(crate) fn max(_l: &MaxPool, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("max"))
}

pub(crate) fn max_backward(_l: &MaxPool, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("max_backward"))
}

pub(crate) fn k_max(_l: &KMaxPool, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("k_max"))
}

pub(crate) fn k_max_backward(_l: &KMaxPool, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("k_max_backward"))
}

pub(crate) fn avg(_l: &AvgPool, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("avg"))
}

pub(crate) fn avg_backward(_l: &AvgPool, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("avg_backward"))
}

pub(crate) fn avg_to(_l: &AvgPoolTo, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("avg_to"))
}

pub(crate) fn avg_to_backward(_l: &AvgPoolTo, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("avg_to_backward"))
}

pub(crate) fn global_avg(_l: &GlobalAvgPool, _f: &Forward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("global_avg"))
}

pub(crate) fn global_avg_backward(_l: &GlobalAvgPool, _b: &Backward<'_>) -> Result<(), Error> {
    Err(Error::Unsupported("global_avg_backward"))
}
