//! MobileNet (Howard et al., arXiv 1704.04861) at a quarter of its width, in the form of MLPerf Tiny
//! (Banbury et al., 2021): colour images of 96x96, with a person on them or without.
//!
//! A 3x3 convolution of 8 filters that moves by 2, 13 pairs of a depthwise 3x3 convolution and one of
//! 1x1, each with biases, batch norm and ReLU; the mean over the plane, one dense layer. That is
//! `training/visual_wake_words/vww_model.py` of the benchmark, with its sizes and its number of parameters.
//! At four times the width ([`scaled`](crate::width::scaled)) it is the whole net.
//!
//! It differs in one place: where a convolution moves by 2, Keras' padding `same` puts the one row and
//! column that it needs below and to the right; here padding is even, and the last positions leave
//! those unread, so they count above and to the left. Nets that were trained in Keras come with their own
//! padding, as ONNX (`docs/interchange.md`): five kernels of 3x3 become 4x4 with a row and a column of zeros, 6.8 %
//! more multiply-accumulates.
//!
//! A depthwise convolution and the one of 1x1 behind it are one block here; norms move by 0.1 of a
//! batch's statistics, in the source by 0.01.

use sepal_core::layer::{Conv2d, Flatten, GlobalAvgPool, Layer};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Filters of the first convolution.
const FIRST: u32 = 8;

/// Filters of each pair's second convolution, and the steps of its depthwise one.
const PAIRS: [(u32, u8); 13] = [
    (16, 1),
    (32, 2),
    (32, 1),
    (64, 2),
    (64, 1),
    (128, 2),
    (128, 1),
    (128, 1),
    (128, 1),
    (128, 1),
    (128, 1),
    (256, 2),
    (256, 1),
];

/// A colour image of 96x96.
const COLOUR_96: Input =
    Input { shape: Shape::new(1, 3, 96, 96), normalisation: Normalisation::NONE };

const fn table(classes: u32) -> Table<84, 15> {
    let first = Conv2d { stride: (2, 2), pad: (1, 1), ..Conv2d::new(FIRST, 3) };
    let mut table = Table::new().normed(Layer::Conv2d(first)).end();
    let (mut channels, mut pair) = (FIRST, 0);
    while pair < PAIRS.len() {
        let (filters, stride) = PAIRS[pair];
        table = table.separable(channels, filters, stride);
        (channels, pair) = (filters, pair + 1);
    }
    table.layer(Layer::GlobalAvgPool(GlobalAvgPool)).layer(Layer::Flatten(Flatten)).classes(classes)
}

/// The layers; see the [module](self).
///
/// On 96x96 colour images: 256x3x3 features, 7,489,664 multiply-accumulates and, for 2 classes, 221,794
/// parameters, statistics of norms included.
pub const fn mobilenet_layers(classes: u32) -> [Layer; 84] {
    table(classes).layers()
}

/// [`mobilenet_layers`] as a net of 14 blocks and a classifier. Images may be of any size.
pub const fn mobilenet(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 15] = table(1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 14 }
}

/// MobileNet for the two classes of the benchmark.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::mobilenet::MOBILENET;
/// assert_eq!(MOBILENET.shape(MOBILENET.features_end()), Ok(Shape::new(1, 256, 3, 3)));
/// ```
pub const MOBILENET: Net<'static> = mobilenet(&mobilenet_layers(2), COLOUR_96);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_separable, macs};

    #[test]
    fn sizes_are_those_of_the_benchmark() {
        assert_eq!(MOBILENET.check(), Ok(()));
        // What Keras counts.
        assert_eq!(MOBILENET.params(84), Ok(221_794));
        assert_eq!(macs(&MOBILENET), 7_489_664);
        check_separable(
            &MOBILENET,
            &[8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256],
        );
        let sides = [0, 2, 4, 6, 12].map(|block| {
            let (_, last) = MOBILENET.block(block).unwrap();
            MOBILENET.shape(last).unwrap().h
        });
        assert_eq!(sides, [48, 24, 12, 6, 3]);
    }
}
