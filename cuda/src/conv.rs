//! Convolutions.

use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Pass};
use sepal_core::shape::Shape;

use crate::gpu::{Arg, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

/// Rows and columns of a block's sums.
const TILE: u32 = 64;
/// Blocks that the gradient of the weights is to have, which every device keeps busy with. A
/// constant, so that all devices add in one order.
const BLOCKS: u32 = 256;
/// The fewest places that a split sums over.
const SHORTEST: u32 = 256;

/// The arguments that all kernels of a convolution end with.
fn geometry(l: &Conv2d, x: Shape, y: Shape) -> impl Iterator<Item = Arg> {
    let pairs = [l.kernel, l.stride, l.pad];
    let windows = pairs.into_iter().flat_map(|(a, b)| [u32::from(a), u32::from(b)]);
    let groups = l.groups.max(1);
    let sizes = [x.n, x.c, x.h, x.w, y.c, y.h, y.w].into_iter();
    sizes.chain(windows).chain([x.c / groups, y.c / groups]).map(Arg::from)
}

/// Channels times taps of a filter.
fn depth(l: &Conv2d, x: Shape) -> u32 {
    x.c / l.groups.max(1) * u32::from(l.kernel.0) * u32::from(l.kernel.1)
}

/// Into how many parts the sum over output places is split for the weights' gradient, and how long
/// each is.
fn splits(l: &Conv2d, x: Shape, y: Shape) -> (u32, u32) {
    let groups = l.groups.max(1);
    let tiles = (y.c / groups).div_ceil(TILE) * depth(l, x).div_ceil(TILE) * groups;
    let places = (y.n * y.plane()).max(1);
    let most = places.div_ceil(SHORTEST);
    // Groups and splits share the grid's third axis.
    let splits = BLOCKS.div_ceil(tiles.max(1)).clamp(1, most).min((65_535 / groups).max(1));
    let length = places.div_ceil(splits).next_multiple_of(16);
    (places.div_ceil(length), length)
}

/// Scratch bytes of the backward call: the splits' own sums of the weights' gradient.
pub(crate) fn scratch(l: &Conv2d, x: Shape, pass: Pass) -> usize {
    match (pass, l.output(x), l.tensors(x)) {
        (Pass::Train, Some(y), Some(tensors)) => {
            let (splits, _) = splits(l, x, y);
            let sums = (splits as usize).saturating_mul(tensors.weight as usize);
            sums.saturating_mul(size_of::<f32>())
        }
        _ => 0,
    }
}

pub(crate) fn forward(l: &Conv2d, f: &Forward<'_>) -> Result<(), Error> {
    let groups = l.groups.max(1);
    let places = f.out.n * f.out.plane();
    let grid = [places.div_ceil(TILE), (l.filters / groups).div_ceil(TILE), groups];
    let first = args![f.x, f.weight, f.bias, f.y];
    let args: Vec<Arg> = first.iter().copied().chain(geometry(l, f.shape, f.out)).collect();
    f.gpu.launch(Source::Conv, "conv", Launch { grid, block: 256, shared: 0 }, &args)
}

pub(crate) fn backward(l: &Conv2d, b: &Backward<'_>) -> Result<(), Error> {
    let groups = l.groups.max(1);
    let (depth, weights) = (depth(l, b.shape), l.filters * depth(l, b.shape));
    let (splits, length) = splits(l, b.shape, b.out);
    let tiles = |columns: u32, rows: u32, z: u32| Launch {
        grid: [columns.div_ceil(TILE), rows.div_ceil(TILE), z],
        block: 256,
        shared: 0,
    };
    let launch = |name, launch, first: &[Arg]| {
        let args: Vec<Arg> = first.iter().copied().chain(geometry(l, b.shape, b.out)).collect();
        b.gpu.launch(Source::Conv, name, launch, &args)
    };
    let parts = tiles(depth, l.filters / groups, groups * splits);
    launch("conv_weights", parts, args![b.x, b.dy, b.scratch, splits, length])?;
    let sum = args![b.scratch, b.dweight, weights, splits];
    b.gpu.launch(Source::Conv, "conv_weights_sum", Launch::over(weights), sum)?;
    if !b.dbias.is_none() {
        let args = args![b.dy, b.dbias, b.shape.n, l.filters, b.out.plane()];
        b.gpu.launch(Source::Conv, "conv_bias", Launch::blocks(l.filters, 256), args)?;
    }
    if b.dx.is_none() {
        return Ok(());
    }
    let data = tiles(elements(b.shape) / b.shape.c.max(1), b.shape.c / groups, groups);
    launch("conv_data", data, args![b.dy, b.weight, b.dx])
}
