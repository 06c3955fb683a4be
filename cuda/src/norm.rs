//! Normalisations.

use sepal_core::backend::Phase;
use sepal_core::error::Error;
use sepal_core::layer::{BatchNorm, ChannelStd, L2Normalise, Standardise};
use sepal_core::shape::Shape;

use crate::gpu::{Launch, Source, args};
use crate::layers::{Backward, Forward, elements};

/// A block for each channel, of as many threads as its places keep busy: few channels of large
/// planes are all that there is to fill a device with.
fn channels(shape: Shape) -> Launch {
    let places = u64::from(shape.n) * u64::from(shape.plane());
    Launch::blocks(shape.c, if places > 1024 { 1024 } else { 256 })
}

pub(crate) fn batch_norm(l: &BatchNorm, f: &Forward<'_>) -> Result<(), Error> {
    let (n, c, plane) = (f.shape.n, f.shape.c, f.shape.plane());
    let share = match f.phase {
        Phase::Eval => {
            let len = elements(f.shape);
            let args = args![f.y, f.weight, f.bias, f.mean, f.variance, len, c, plane, l.eps];
            return f.gpu.launch(Source::Norm, "batch_norm_eval", Launch::over(len), args);
        }
        Phase::Calibrate { seen } => n as f32 / seen.saturating_add(n).max(1) as f32,
        Phase::Train { .. } => l.momentum,
    };
    let args =
        args![f.x, f.y, f.weight, f.bias, f.saved, f.mean, f.variance, n, c, plane, l.eps, share];
    f.gpu.launch(Source::Norm, "batch_norm_train", channels(f.shape), args)
}

pub(crate) fn batch_norm_backward(l: &BatchNorm, b: &Backward<'_>) -> Result<(), Error> {
    let (n, c, plane) = (b.shape.n, b.shape.c, b.shape.plane());
    let args = args![b.x, b.dy, b.weight, b.saved, b.dweight, b.dbias, n, c, plane, l.eps];
    b.gpu.launch(Source::Norm, "batch_norm_backward", channels(b.shape), args)
}

pub(crate) fn standardise(_: &Standardise, f: &Forward<'_>) -> Result<(), Error> {
    let (n, features) = (f.shape.n, f.shape.sample().unwrap_or(0));
    let len = elements(f.shape);
    // A batch of none would still be averaged.
    if let Phase::Calibrate { seen } = f.phase
        && n > 0
    {
        let total = f64::from(seen) + f64::from(n);
        let (share, keep) = ((f64::from(n) / total) as f32, (f64::from(seen) / total) as f32);
        let args = args![f.y, f.mean, f.variance, n, features, seen, share, keep];
        f.gpu.launch(Source::Norm, "standardise_calibrate", Launch::over(features), args)?;
    }
    let args = args![f.y, f.mean, f.variance, len, features];
    f.gpu.launch(Source::Norm, "standardise", Launch::over(len), args)
}

pub(crate) fn standardise_backward(_: &Standardise, b: &Backward<'_>) -> Result<(), Error> {
    let (len, features) = (elements(b.shape), b.shape.sample().unwrap_or(0));
    let args = args![b.dy, b.variance, len, features];
    b.gpu.launch(Source::Norm, "standardise_backward", Launch::over(len), args)
}

pub(crate) fn l2_normalise(_: &L2Normalise, f: &Forward<'_>) -> Result<(), Error> {
    let features = f.shape.sample().unwrap_or(0);
    let launch = Launch::blocks(f.shape.n, 128);
    f.gpu.launch(Source::Norm, "l2_normalise", launch, args![f.y, f.saved, features])
}

pub(crate) fn l2_normalise_backward(_: &L2Normalise, b: &Backward<'_>) -> Result<(), Error> {
    let features = b.shape.sample().unwrap_or(0);
    let launch = Launch::blocks(b.shape.n, 128);
    let args = args![b.y, b.saved, b.dy, features];
    b.gpu.launch(Source::Norm, "l2_normalise_backward", launch, args)
}

pub(crate) fn channel_std(_: &ChannelStd, f: &Forward<'_>) -> Result<(), Error> {
    let planes = elements(f.out);
    let args = args![f.x, f.y, planes, f.shape.plane()];
    f.gpu.launch(Source::Norm, "channel_std", Launch::warps(planes), args)
}

pub(crate) fn channel_std_backward(_: &ChannelStd, b: &Backward<'_>) -> Result<(), Error> {
    let planes = elements(b.out);
    let args = args![b.x, b.dy, b.dx, planes, b.shape.plane()];
    b.gpu.launch(Source::Norm, "channel_std_backward", Launch::warps(planes), args)
}
