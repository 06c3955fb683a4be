//! Residual nets (He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016)
//! for 32x32 images: ResNet-8, as MLPerf Tiny measures it, and ResNet-18.
//!
//! A unit is two 3x3 convolutions, each with batch norm, the sum with what the unit reads, and ReLU.
//! Where a unit halves the image, what it reads goes through a 1x1 convolution that does so too. Each
//! unit is a block that learns alone, and so is the first convolution.
//!
//! ResNet-8 is the net of the image classification of MLPerf Tiny (Banbury et al., "MLPerf Tiny
//! benchmark", NeurIPS 2021 Datasets and Benchmarks). Its Keras model has biases in front of its norms,
//! which take them away again, scales and shifts in the norms, and where an image is halved one zero at
//! the far side alone; here are no such biases, norms without scale and shift, as in all other nets, and
//! a zero at each side. ResNet-18 is the usual form for small images: a 3x3 convolution and no pool in
//! front, the units of the paper's table 1; projections have no norm behind them.

use sepal_core::layer::{BatchNorm, Conv2d, GlobalAvgPool, Layer, Projection, RELU, Residual};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Filters of the units; where they change the image is halved.
const EIGHT: &[u32] = &[16, 32, 64];
const EIGHTEEN: &[u32] = &[64, 64, 128, 128, 256, 256, 512, 512];

/// A 32x32 colour image.
const COLOUR_32: Input =
    Input { shape: Shape::new(1, 3, 32, 32), normalisation: Normalisation::NONE };

/// A unit that reads `channels`.
const fn unit(channels: u32, filters: u32) -> [Layer; 7] {
    let stride = if channels == filters { 1 } else { 2 };
    let stride = (stride, stride);
    let project = match channels == filters {
        true => None,
        false => Some(Projection { channels, stride }),
    };
    let conv = Conv2d { pad: (1, 1), bias: false, ..Conv2d::new(filters, 3) };
    let norm = Layer::BatchNorm(BatchNorm::new());
    let first = Layer::Conv2d(Conv2d { stride, ..conv });
    let add = Layer::Residual(Residual { back: 5, project });
    [first, norm, RELU, Layer::Conv2d(conv), norm, add, RELU]
}

const fn table<const LAYERS: usize, const BLOCKS: usize>(
    units: &[u32],
    classes: u32,
) -> Table<LAYERS, BLOCKS> {
    let mut channels = units[0];
    let mut table = Table::new().conv(channels, (3, 3)).end();
    let mut at = 0;
    while at < units.len() {
        table = table.all(&unit(channels, units[at])).end();
        channels = units[at];
        at += 1;
    }
    table.layer(Layer::GlobalAvgPool(GlobalAvgPool)).features().classes(classes)
}

/// A convolution of 16 filters, units of 16, 32 and 64, the mean over the plane, and one dense layer of
/// `classes` on standardised features.
///
/// On 32x32 colour images 12,501,632 multiply-accumulates.
pub const fn resnet8_layers(classes: u32) -> [Layer; 28] {
    table::<28, 5>(EIGHT, classes).layers()
}

/// A convolution of 64 filters, two units each of 64, 128, 256 and 512, the mean over the plane, and one
/// dense layer of `classes` on standardised features.
///
/// On 32x32 colour images 555,422,720 multiply-accumulates.
pub const fn resnet18_layers(classes: u32) -> [Layer; 63] {
    table::<63, 10>(EIGHTEEN, classes).layers()
}

/// [`resnet8_layers`] as a net of four blocks and a classifier. Images are of any size.
///
/// ```
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_models::resnet::{resnet8, resnet8_layers};
///
/// let layers = resnet8_layers(10);
/// let normalisation = Normalisation::scalar(0.5, 0.25);
/// let net = resnet8(&layers, Input { shape: Shape::new(1, 1, 28, 28), normalisation });
/// assert_eq!(net.shape(17)?, Shape::new(1, 32, 14, 14));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn resnet8(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 5] = table::<28, 5>(EIGHT, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 4 }
}

/// [`resnet18_layers`] as a net of nine blocks and a classifier. Images are of any size.
pub const fn resnet18(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 10] = table::<63, 10>(EIGHTEEN, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 9 }
}

/// ResNet-8 for ten classes of 32x32 colour images.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::resnet::RESNET8;
/// assert_eq!(RESNET8.check(), Ok(()));
/// assert_eq!(RESNET8.shape(RESNET8.features_end()), Ok(Shape::new(1, 64, 8, 8)));
/// ```
pub const RESNET8: Net<'static> = resnet8(&resnet8_layers(10), COLOUR_32);

/// ResNet-18 for ten classes of 32x32 colour images.
pub const RESNET18: Net<'static> = resnet18(&resnet18_layers(10), COLOUR_32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::macs;

    #[test]
    fn sizes_are_the_published_ones() {
        assert_eq!((RESNET8.check(), RESNET18.check()), (Ok(()), Ok(())));
        // 78,666 parameters in Keras; without biases in front of norms, scales and shifts, and with
        // standardised features.
        let (biases, affine) = (16 * 3 + 32 * 2 + 64 * 2, 2 * (16 * 3 + 32 * 2 + 64 * 2));
        assert_eq!(RESNET8.params(28), Ok(78_666 - biases - affine + 2 * 64));
        assert_eq!(macs(&RESNET8), 12_501_632);
        // torchvision's resnet18 has 11,689,512 parameters for 1000 classes, 9,408 of them in a first
        // convolution of 7x7, and norms with scale and shift; here their means and variances count.
        let norms = 2 * (64 * 5 + 128 * 4 + 256 * 4 + 512 * 4);
        let behind_projections = 128 + 256 + 512;
        let torch = 11_689_512 - 9_408 - 513_000 - norms - 2 * behind_projections;
        let ours = torch + 1_728 + norms + behind_projections + 2 * 512 + 5_130;
        assert_eq!(RESNET18.params(63), Ok(ours));
        assert_eq!(macs(&RESNET18), 555_422_720);
    }

    /// A constant of the program: three tensors of 16x32x32.
    const ON_A_SMALL_CORE: usize = match sepal_core::infer::Inference::micro(RESNET8, 1, false) {
        Ok(plan) => plan.bytes(),
        Err(_) => panic!("it has no plan"),
    };

    #[test]
    fn a_unit_holds_three_tensors() {
        assert_eq!(ON_A_SMALL_CORE, 3 * 16 * 32 * 32 * 4);
    }

    #[test]
    fn each_unit_is_a_block() {
        for (net, units) in [(RESNET8, EIGHT), (RESNET18, EIGHTEEN)] {
            assert_eq!(usize::from(net.features), units.len() + 1);
            for (block, &filters) in (1..).zip(units) {
                let (first, last) = net.block(block).unwrap();
                let read = net.shape(first).unwrap();
                assert_eq!(net.layers[first..last], unit(read.c, filters));
                let halved = if read.c == filters { 1 } else { 2 };
                let side = read.h / halved;
                assert_eq!(net.shape(last), Ok(Shape::new(1, filters, side, side)));
            }
        }
    }
}
