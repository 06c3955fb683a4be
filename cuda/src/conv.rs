//! Convolutions.

use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Pass};
use sepal_core::shape::Shape;

use crate::activation;
use crate::gpu::{Address, Arg, Gpu, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};
use crate::product::{self, FILL, Kernels, kernels};

/// Steps of a sum that are worth a block of their own, one table of the kernel.
const SPAN: u32 = 256;

/// A tile that is filled to less than one part in so many costs more than threads that each
/// compute one element.
const WASTE: u32 = 8;

/// Rows and columns of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    Large,
    Small,
}

impl Tile {
    /// Tiles of `products` matrices of `rows` by `columns`.
    const fn blocks(self, rows: u32, columns: u32, products: u32) -> u32 {
        let (height, width) = match self {
            Self::Large => (128, 64),
            Self::Small => (64, 32),
        };
        rows.div_ceil(height).saturating_mul(columns.div_ceil(width)).saturating_mul(products)
    }
}

/// How a product's elements are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A block for each of so many tiles.
    Tiles(Tile, u32),
    /// A thread, or a block, for each element.
    Direct,
}

/// The way of y or dx: `columns` channels a group.
const fn gathering(rows: u32, columns: u32, products: u32) -> Way {
    if columns <= 32 / WASTE {
        return Way::Direct;
    }
    let large = Tile::Large.blocks(rows, columns, products);
    if large >= FILL && columns > 32 {
        return Way::Tiles(Tile::Large, large);
    }
    Way::Tiles(Tile::Small, Tile::Small.blocks(rows, columns, products))
}

/// The way of dw, and into how many spans of how many steps its sums over samples and places are
/// split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    way: Way,
    splits: u32,
    span: u32,
}

impl Split {
    /// For gradients of (filters, taps) of each of `groups`.
    const fn new(filters: u32, taps: u32, groups: u32, steps: u32) -> Self {
        let held = taps.next_multiple_of(64) as u64 * filters.next_multiple_of(32) as u64;
        if filters as u64 * taps as u64 * WASTE as u64 <= held {
            return Self { way: Way::Direct, splits: 0, span: 0 };
        }
        let tile = if taps > 64 && filters > 32 { Tile::Large } else { Tile::Small };
        let tiles = tile.blocks(taps, filters, groups);
        let most = steps.div_ceil(SPAN);
        let wanted = FILL.div_ceil(tiles);
        let splits = if wanted < most { wanted } else { most };
        let span = steps.div_ceil(splits).next_multiple_of(SPAN);
        let splits = steps.div_ceil(span);
        Self { way: Way::Tiles(tile, tiles.saturating_mul(splits)), splits, span }
    }

    /// None for a layer without weights, or without anything to learn from.
    fn of(l: &Conv2d, x: Shape, out: Shape) -> Option<Self> {
        let (steps, taps) = (out.n * out.plane(), x.c / l.groups * kernel(l));
        (steps > 0 && taps > 0).then(|| Self::new(l.filters / l.groups, taps, l.groups, steps))
    }
}

/// Taps of a filter's plane.
fn kernel(l: &Conv2d) -> u32 {
    u32::from(l.kernel.0) * u32::from(l.kernel.1)
}

/// Scratch bytes of the backward call: the gradient of the weights, once for each span that its
/// sums are split into.
pub(crate) fn scratch(l: &Conv2d, x: Shape, pass: Pass) -> usize {
    let (Pass::Train, Some(out), Some(tensors)) = (pass, l.output(x), l.tensors(x)) else {
        return 0;
    };
    let splits = Split::of(l, x, out).map_or(0, |split| split.splits);
    tensors.weight as usize * splits as usize * size_of::<f32>()
}

/// What kernels are told of the sizes, behind their first arguments: reading images `from`,
/// writing images `to`.
fn geometry(l: &Conv2d, first: &[Arg], from: Shape, to: Shape) -> Vec<Arg> {
    let (red, out) = (from.c / l.groups, to.c / l.groups);
    let sizes = [from.n, l.groups, red, out, from.h, from.w, to.h, to.w];
    let pairs = [l.kernel, l.stride, l.pad];
    let window = pairs.into_iter().flat_map(|(a, b)| [u32::from(a), u32::from(b)]);
    first.iter().copied().chain(sizes.into_iter().chain(window).map(Arg::from)).collect()
}

/// Launches the kernel of a way: one of the product's, or the one of a thread, or a block, for each
/// element.
fn launch(
    gpu: &Gpu,
    way: Way,
    kernels: Kernels,
    (direct, blocks): (&'static str, Launch),
    args: &[Arg],
) -> Result<(), Error> {
    let (name, launch) = match way {
        Way::Tiles(tile, count) => {
            (kernels.tiled(tile == Tile::Large, gpu.capability()), product::tiles(count))
        }
        Way::Direct => (direct, blocks),
    };
    gpu.launch(Source::Conv, name, launch, args)
}

/// What comes behind a convolution's sums, within its kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    pub bias: Address,
    /// Weight, bias, mean and variance of a norm; nowhere where there is none.
    pub norm: [Address; 4],
    pub eps: f32,
    /// The kernels' number of an activation, and its slope.
    pub activation: (u32, f32),
    /// The windows of a max-pool, which do not overlap and have 1, 2 or 4 places.
    pub window: (u32, u32),
}

impl Finish {
    /// A bias alone.
    pub const fn bias(bias: Address) -> Self {
        let activation = (activation::AS_IT_IS, 0.0);
        Self { bias, norm: [Address::NONE; 4], eps: 0.0, activation, window: (1, 1) }
    }

    fn args(&self) -> [Arg; 10] {
        let [gamma, beta, mean, variance] = self.norm.map(Arg::from);
        let ((kind, slope), (height, width)) = (self.activation, self.window);
        let (kind, slope) = (Arg::from(kind), Arg::from(slope));
        let bias = Arg::from(self.bias);
        [
            bias,
            gamma,
            beta,
            mean,
            variance,
            self.eps.into(),
            kind,
            slope,
            height.into(),
            width.into(),
        ]
    }
}

pub(crate) fn forward(l: &Conv2d, f: &Forward<'_>) -> Result<(), Error> {
    finished(l, f.gpu, f.shape, [f.x, f.weight, f.y], &Finish::bias(f.bias))
}

/// The layer over x of `shape` and what comes behind it, to y.
pub(crate) fn finished(
    l: &Conv2d,
    gpu: &Gpu,
    shape: Shape,
    [x, weight, y]: [Address; 3],
    finish: &Finish,
) -> Result<(), Error> {
    let Some(out) = l.output(shape) else { return Ok(()) };
    // Places that no window has are left out.
    let (height, width) = finish.window;
    let written = Shape { h: out.h / height, w: out.w / width, ..out };
    if elements(written) == 0 {
        return Ok(());
    }
    let places = written.n * written.plane() * height * width;
    let way = gathering(places, l.filters / l.groups, l.groups);
    let first: Vec<Arg> = [x, weight, y].map(Arg::from).into_iter().chain(finish.args()).collect();
    let args = geometry(l, &first, shape, out);
    let direct = ("conv_forward_direct", Launch::over(elements(written)));
    launch(gpu, way, kernels!("conv_forward"), direct, &args)
}

pub(crate) fn backward(l: &Conv2d, b: &Backward<'_>) -> Result<(), Error> {
    if elements(b.out) == 0 {
        return Ok(());
    }
    weights(l, b)?;
    if !b.dbias.is_none() {
        let args = args![b.dy, b.dbias, b.out.n, b.out.plane()];
        b.gpu.launch(Source::Conv, "conv_bias", Launch::blocks(b.out.c, 256), args)?;
    }
    if b.dx.is_none() { Ok(()) } else { data(l, b) }
}

/// Adds to dw.
fn weights(l: &Conv2d, b: &Backward<'_>) -> Result<(), Error> {
    let Some(split) = Split::of(l, b.shape, b.out) else { return Ok(()) };
    let len = l.tensors(b.shape).map_or(0, |tensors| tensors.weight);
    let Split { way, splits, span } = split;
    let first: &[Arg] = match way {
        Way::Tiles(..) => args![b.x, b.dy, b.scratch, splits, span],
        Way::Direct => args![b.x, b.dy, b.dweight],
    };
    let args = geometry(l, first, b.shape, b.out);
    let direct = ("conv_weights_direct", Launch::blocks(len, 256));
    launch(b.gpu, way, kernels!("conv_weights"), direct, &args)?;
    if splits == 0 {
        return Ok(());
    }
    let args = args![b.scratch, b.dweight, splits, len];
    b.gpu.launch(Source::Conv, "conv_weights_sum", Launch::over(len), args)
}

/// Writes dx. Places of x that leave the same rest by the stride are a product of their own, in
/// the same launch; each has as many tiles as the first, which is the largest.
fn data(l: &Conv2d, b: &Backward<'_>) -> Result<(), Error> {
    let (down, across) = (u32::from(l.stride.0), u32::from(l.stride.1));
    let rows = b.shape.n * b.shape.h.div_ceil(down) * b.shape.w.div_ceil(across);
    let way = gathering(rows, b.shape.c / l.groups, l.groups * down * across);
    let first = args![b.dy, b.weight, b.dx];
    let args = geometry(l, first, b.out, b.shape);
    let direct = ("conv_data_direct", Launch::over(elements(b.shape)));
    launch(b.gpu, way, kernels!("conv_data"), direct, &args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_as_large_as_fill_a_device() {
        // 128 x 64 places and channels a tile, from 256 of them on.
        assert_eq!(gathering(128 * 256, 64, 1), Way::Tiles(Tile::Large, 256));
        assert_eq!(gathering(128 * 255, 64, 1), Way::Tiles(Tile::Small, 2 * 255 * 2));
        assert_eq!(gathering(128 * 256, 32, 1), Way::Tiles(Tile::Small, 2 * 256));
        assert_eq!(gathering(1 << 20, 4, 9), Way::Direct);
        // Five tiles, so 52 spans; whole tables of 256 steps.
        let split = Split::new(64, 576, 1, 32 * 32 * 128);
        assert_eq!(split, Split { way: Way::Tiles(Tile::Large, 260), splits: 52, span: 2560 });
    }
}
