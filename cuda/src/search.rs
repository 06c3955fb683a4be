//! Nearest neighbours.

use std::sync::Arc;

use sepal_core::backend::Bank;
use sepal_core::error::Error;
use sepal_core::neighbour::{Nearest, Pair};

use crate::gpu::Gpu;
use crate::memory::Memory;

pub(crate) fn nearest(
    _gpu: &Arc<Gpu>,
    _memory: &Memory,
    _queries: Bank<'_>,
    _bank: Bank<'_>,
    (_first, _skip): (u32, Option<u32>),
    _pairs: &mut [Pair],
) -> Result<(), Error> {
    Err(Error::Unsupported("nearest"))
}

pub(crate) fn top_k(
    _gpu: &Arc<Gpu>,
    _memory: &Memory,
    _queries: Bank<'_>,
    _bank: Bank<'_>,
    (_first, _skip): (u32, Option<u32>),
    _k: usize,
    _out: &mut [Nearest],
) -> Result<(), Error> {
    Err(Error::Unsupported("top_k"))
}
