//! Convolutions.

use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Pass};
use sepal_core::shape::Shape;

use crate::gpu::{Address, Arg, Gpu, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

/// Threads of a block that works on a tile.
pub(crate) const THREADS: u32 = 128;

/// Blocks that fill a device: larger tiles are taken where there are as many of them, and sums
/// are split until there are. A constant, so that the same shapes give the same bits everywhere.
pub(crate) const FILL: u32 = 256;

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

/// The kernels of a product: of large tiles and of small ones, without tensor cores and with them,
/// and the one of a thread, or a block, for each element.
macro_rules! kernels {
    ($name:literal) => {
        [
            concat!($name, "_large"),
            concat!($name, "_small"),
            concat!($name, "_large_tensor"),
            concat!($name, "_small_tensor"),
            concat!($name, "_direct"),
        ]
    };
}

/// Whether tensor cores take less time for the three products that they need for one of f32.
pub(crate) const fn are_tensor_cores_faster(capability: u32) -> bool {
    capability == 80 || capability >= 90
}

/// Launches the kernel of a way, with the blocks of `direct` where there are no tiles.
fn launch(
    gpu: &Gpu,
    way: Way,
    [large, small, large_tensor, small_tensor, one]: [&'static str; 5],
    direct: Launch,
    args: &[Arg],
) -> Result<(), Error> {
    let tensor = are_tensor_cores_faster(gpu.capability());
    let (name, launch) = match way {
        Way::Tiles(tile, blocks) => {
            let name = match (tile, tensor) {
                (Tile::Large, false) => large,
                (Tile::Small, false) => small,
                (Tile::Large, true) => large_tensor,
                (Tile::Small, true) => small_tensor,
            };
            (name, Launch::blocks(blocks, THREADS))
        }
        Way::Direct => (one, direct),
    };
    gpu.launch(Source::Conv, name, launch, args)
}

pub(crate) fn forward(l: &Conv2d, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.out);
    if len == 0 {
        return Ok(());
    }
    let way = gathering(f.out.n * f.out.plane(), l.filters / l.groups, l.groups);
    let args = geometry(l, args![f.x, f.weight, f.bias, f.y], f.shape, f.out);
    let names = kernels!("conv_forward");
    launch(f.gpu, way, names, Launch::over(len), &args)
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
    let names = kernels!("conv_weights");
    let args = geometry(l, first, b.shape, b.out);
    launch(b.gpu, way, names, Launch::blocks(len, 256), &args)?;
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
    let first = args![b.dy, b.weight, Address::NONE, b.dx];
    let args = geometry(l, first, b.out, b.shape);
    let names = kernels!("conv_data");
    launch(b.gpu, way, names, Launch::over(elements(b.shape)), &args)
}
