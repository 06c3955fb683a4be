//! Pools.

use sepal_core::error::Error;
use sepal_core::layer::{AvgPool, AvgPoolTo, GlobalAvgPool, KMaxPool, MaxPool, Window};
use sepal_core::shape::Shape;

use crate::gpu::{Address, Arg, Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

/// The arguments of a kernel over windows: `first`, the elements that are written, sizes, windows.
fn windowed(first: &[Address], len: u32, x: Shape, out: Shape, window: Window) -> Vec<Arg> {
    let Window { kernel, stride, pad } = window;
    let pairs = [kernel, stride, pad];
    let sizes = [len, x.h, x.w, out.h, out.w].map(Arg::from);
    let windows = pairs.into_iter().flat_map(|(a, b)| [u32::from(a), u32::from(b)]);
    first.iter().map(|&a| a.into()).chain(sizes).chain(windows.map(Arg::from)).collect()
}

pub(crate) fn max(l: &MaxPool, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.out);
    let args = windowed(&[f.x, f.y, f.saved], len, f.shape, f.out, l.window);
    f.gpu.launch(Source::Pool, "max_pool", Launch::over(len), &args)
}

pub(crate) fn max_backward(l: &MaxPool, b: &Backward<'_>) -> Result<(), Error> {
    let len = elements(b.shape);
    let args = windowed(&[b.saved, b.dy, b.dx], len, b.shape, b.out, l.window);
    b.gpu.launch(Source::Pool, "max_pool_backward", Launch::over(len), &args)
}

pub(crate) fn avg(l: &AvgPool, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.out);
    let args = windowed(&[f.x, f.y], len, f.shape, f.out, l.window);
    f.gpu.launch(Source::Pool, "avg_pool", Launch::over(len), &args)
}

pub(crate) fn avg_backward(l: &AvgPool, b: &Backward<'_>) -> Result<(), Error> {
    let len = elements(b.shape);
    let args = windowed(&[b.dy, b.dx], len, b.shape, b.out, l.window);
    b.gpu.launch(Source::Pool, "avg_pool_backward", Launch::over(len), &args)
}

pub(crate) fn avg_to(_: &AvgPoolTo, f: &Forward<'_>) -> Result<(), Error> {
    let len = elements(f.out);
    let args = args![f.x, f.y, len, f.shape.h, f.shape.w, f.out.h, f.out.w];
    f.gpu.launch(Source::Pool, "avg_pool_to", Launch::over(len), args)
}

pub(crate) fn avg_to_backward(_: &AvgPoolTo, b: &Backward<'_>) -> Result<(), Error> {
    let len = elements(b.shape);
    let args = args![b.dy, b.dx, len, b.shape.h, b.shape.w, b.out.h, b.out.w];
    b.gpu.launch(Source::Pool, "avg_pool_to_backward", Launch::over(len), args)
}

pub(crate) fn global_avg(_: &GlobalAvgPool, f: &Forward<'_>) -> Result<(), Error> {
    let planes = elements(f.out);
    let args = args![f.x, f.y, planes, f.shape.plane()];
    f.gpu.launch(Source::Pool, "global_avg_pool", Launch::warps(planes), args)
}

pub(crate) fn global_avg_backward(_: &GlobalAvgPool, b: &Backward<'_>) -> Result<(), Error> {
    let len = elements(b.shape);
    let args = args![b.dy, b.dx, len, b.shape.plane()];
    b.gpu.launch(Source::Pool, "global_avg_pool_backward", Launch::over(len), args)
}

pub(crate) fn k_max(l: &KMaxPool, f: &Forward<'_>) -> Result<(), Error> {
    let (k, width) = (u32::from(l.k), f.shape.w);
    let rows = elements(f.out) / k.max(1);
    let args = args![f.x, f.y, f.saved, rows, width, k];
    f.gpu.launch(Source::Pool, "k_max_pool", Launch::warps(rows), args)
}

pub(crate) fn k_max_backward(l: &KMaxPool, b: &Backward<'_>) -> Result<(), Error> {
    let len = elements(b.shape);
    let args = args![b.saved, b.dy, b.dx, len, b.shape.w, u32::from(l.k)];
    b.gpu.launch(Source::Pool, "k_max_pool_backward", Launch::over(len), args)
}
