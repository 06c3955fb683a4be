//! Dense layers and random projections.

use sepal_core::error::Error;
use sepal_core::layer::{Dense, Project};

use crate::gpu::{Arg, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

/// A block for each tile of 64 x 64 of a matrix.
const fn tiles(rows: u32, columns: u32) -> Launch {
    Launch { grid: [columns.div_ceil(64), rows.div_ceil(64), 1], block: 256, shared: 0 }
}

pub(crate) fn forward(l: &Dense, f: &Forward<'_>) -> Result<(), Error> {
    let (n, units, features) = (f.shape.n, l.units, f.shape.sample().unwrap_or(0));
    let args = args![f.x, f.weight, f.bias, f.y, n, units, features];
    f.gpu.launch(Source::Dense, "dense", tiles(n, units), args)
}

pub(crate) fn backward(l: &Dense, b: &Backward<'_>) -> Result<(), Error> {
    let (n, units, features) = (b.shape.n, l.units, b.shape.sample().unwrap_or(0));
    let launch = |name, launch, args: &[Arg]| b.gpu.launch(Source::Dense, name, launch, args);
    let weights = args![b.dy, b.x, b.dweight, n, units, features];
    launch("dense_weights", tiles(units, features), weights)?;
    if !b.dbias.is_none() {
        launch("dense_bias", Launch::over(units), args![b.dy, b.dbias, n, units])?;
    }
    if b.dx.is_none() {
        return Ok(());
    }
    launch("dense_data", tiles(n, features), args![b.dy, b.weight, b.dx, n, units, features])
}

/// The two words of a seed, and the scale of the sums.
fn drawn(l: &Project) -> (u32, u32, f32) {
    (l.seed as u32, (l.seed >> 32) as u32, 1.0 / (l.dim as f32).sqrt())
}

pub(crate) fn project(l: &Project, f: &Forward<'_>) -> Result<(), Error> {
    let (len, features, (low, high, scale)) =
        (elements(f.out), f.shape.sample().unwrap_or(0), drawn(l));
    let args = args![f.x, f.y, len, features, l.dim, low, high, scale];
    f.gpu.launch(Source::Dense, "project", Launch::warps(len), args)
}

pub(crate) fn project_backward(l: &Project, b: &Backward<'_>) -> Result<(), Error> {
    let (len, features, (low, high, scale)) =
        (elements(b.shape), b.shape.sample().unwrap_or(0), drawn(l));
    let args = args![b.dy, b.dx, len, features, l.dim, low, high, scale];
    b.gpu.launch(Source::Dense, "project_backward", Launch::over(len), args)
}
