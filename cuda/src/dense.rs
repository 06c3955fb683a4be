//! Dense layers and random projections.

use sepal_core::error::Error;
use sepal_core::layer::{Dense, Project};

use crate::gpu::{Address, Arg, Gpu, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};
use crate::product::{self, FILL, Kernels, kernels};

/// Outputs that a warp each computes sooner than tiles do, of which there would be some four.
const FEW: u32 = 8192;

/// Tiles of a matrix of `rows` by `columns`, large ones or small ones.
const fn tiles(rows: u32, columns: u32, large: bool) -> u32 {
    let (height, width) = if large { (64, 128) } else { (32, 64) };
    rows.div_ceil(height).saturating_mul(columns.div_ceil(width))
}

/// Launches the kernel of a product with a block for each tile of a matrix of `rows` by `columns`.
fn over_tiles(
    gpu: &Gpu,
    kernels: Kernels,
    [rows, columns]: [u32; 2],
    args: &[Arg],
) -> Result<(), Error> {
    let is_large = tiles(rows, columns, true) >= FILL;
    let name = kernels.tiled(is_large, gpu.capability());
    gpu.launch(Source::Dense, name, product::tiles(tiles(rows, columns, is_large)), args)
}

/// Needs no scratch.
pub(crate) fn forward(l: &Dense, f: &Forward<'_>) -> Result<(), Error> {
    let (n, features, units) = (f.shape.n, f.shape.sample().unwrap_or(0), l.units);
    let args = args![f.x, f.weight, f.bias, f.y, n, features, units];
    let outputs = elements(f.out);
    if outputs <= FEW {
        return f.gpu.launch(Source::Dense, "dense_forward_direct", Launch::warps(outputs), args);
    }
    over_tiles(f.gpu, kernels!("dense_forward"), [n, units], args)
}

/// Needs no scratch.
pub(crate) fn backward(l: &Dense, b: &Backward<'_>) -> Result<(), Error> {
    let (gpu, units) = (b.gpu, l.units);
    let (n, features) = (b.shape.n, b.shape.sample().unwrap_or(0));
    if n == 0 {
        return Ok(());
    }
    let args = args![b.x, b.dy, b.dweight, n, features, units];
    over_tiles(gpu, kernels!("dense_weights"), [units, features], args)?;
    if !b.dbias.is_none() {
        let args = args![b.dy, b.dbias, n, units];
        gpu.launch(Source::Dense, "dense_bias", Launch::over(units), args)?;
    }
    if b.dx.is_none() {
        return Ok(());
    }
    let args = args![b.dy, b.weight, b.dx, n, features, units];
    over_tiles(gpu, kernels!("dense_data"), [n, features], args)
}

pub(crate) fn project(l: &Project, f: &Forward<'_>) -> Result<(), Error> {
    let (n, features) = (f.shape.n, f.shape.sample().unwrap_or(0));
    let blocks = product::tiles(tiles(n, l.dim, false));
    f.gpu.launch(Source::Dense, "project", blocks, &projection(l, [f.x, f.y], n, features))
}

pub(crate) fn project_backward(l: &Project, b: &Backward<'_>) -> Result<(), Error> {
    let (n, features) = (b.shape.n, b.shape.sample().unwrap_or(0));
    let blocks = product::tiles(tiles(n, features, false));
    b.gpu.launch(Source::Dense, "project_data", blocks, &projection(l, [b.dy, b.dx], n, features))
}

/// What both kernels of a projection are told.
fn projection(l: &Project, [from, to]: [Address; 2], n: u32, features: u32) -> [Arg; 8] {
    let (low, high) = (l.seed as u32, (l.seed >> 32) as u32);
    let scale = 1.0 / (l.dim as f32).sqrt();
    [
        from.into(),
        to.into(),
        n.into(),
        features.into(),
        l.dim.into(),
        low.into(),
        high.into(),
        scale.into(),
    ]
}
