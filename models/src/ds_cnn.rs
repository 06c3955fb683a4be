//! DS-CNN (Zhang, Suda, Lai and Chandra, "Hello edge: keyword spotting on microcontrollers", arXiv
//! 1711.07128) in the form of MLPerf Tiny (Banbury et al., 2021): a second of speech as 49 rows of 10
//! cepstral coefficients, 12 classes.
//!
//! A 10x4 convolution of 64 filters that moves by 2, four pairs of a depthwise 3x3 convolution and one of
//! 1x1 to 64 filters, each with biases, batch norm and ReLU; the mean over the plane, one dense layer;
//! dropout behind the first convolution and before the mean. That is `ds_cnn` of the benchmark's
//! `training/keyword_spotting/keras_model.py`, with its sizes and its number of parameters.
//!
//! It differs in two places. Keras' padding `same` puts 4 rows above and 5 below; here padding is even, so 5
//! stand above, of which the last position of the kernel leaves one unread below. And Keras' pool of
//! 24x5 leaves the last of 25 rows out of the mean; here none is. Nets that were trained in Keras
//! come with both as they have them, as ONNX (`docs/interchange.md`): the kernel gets a row of zeros, which makes
//! the first convolution 11x4, 1.2 % more multiply-accumulates.
//!
//! A depthwise convolution and the one of 1x1 behind it are one block here; the source, which trains
//! end to end, has no blocks. Its norms move by 0.01 of a batch's statistics; here by 0.1 as everywhere,
//! so that a stage of some hundred updates reaches them.

use sepal_core::layer::{Conv2d, Dropout, Flatten, GlobalAvgPool, Layer};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Filters of every convolution.
const FILTERS: u32 = 64;

/// 49 windows of time with 10 coefficients each.
const SPEECH: Input = Input { shape: Shape::new(1, 1, 49, 10), normalisation: Normalisation::NONE };

const fn table(classes: u32) -> Table<32, 6> {
    let (kernel, stride, pad) = ((10, 4), (2, 2), (5, 1));
    let first = Conv2d { kernel, stride, pad, ..Conv2d::new(FILTERS, 1) };
    let mut table = Table::new()
        .normed(Layer::Conv2d(first))
        .layer(Layer::Dropout(Dropout { rate: 0.2 }))
        .end();
    let mut pair = 0;
    while pair < 4 {
        table = table.separable(FILTERS, FILTERS, 1);
        pair += 1;
    }
    table
        .layer(Layer::Dropout(Dropout { rate: 0.4 }))
        .layer(Layer::GlobalAvgPool(GlobalAvgPool))
        .layer(Layer::Flatten(Flatten))
        .classes(classes)
}

/// The layers; see the [module](self).
///
/// On 49x10 numbers: 64x25x5 features, 2,656,768 multiply-accumulates and, for 12 classes, 24,908
/// parameters, statistics of norms included.
pub const fn ds_cnn_layers(classes: u32) -> [Layer; 32] {
    table(classes).layers()
}

/// [`ds_cnn_layers`] as a net of five blocks and a classifier. Inputs are of 2 columns at least.
pub const fn ds_cnn(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 6] = table(1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 5 }
}

/// DS-CNN for the 12 classes of the benchmark.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::ds_cnn::DS_CNN;
/// assert_eq!(DS_CNN.shape(DS_CNN.features_end()), Ok(Shape::new(1, 64, 25, 5)));
/// ```
pub const DS_CNN: Net<'static> = ds_cnn(&ds_cnn_layers(12), SPEECH);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_separable, macs};

    #[test]
    fn sizes_are_those_of_the_benchmark() {
        assert_eq!(DS_CNN.check(), Ok(()));
        // What Keras counts.
        assert_eq!(DS_CNN.params(32), Ok(24_908));
        // By hand: 25x5 places of 10x4, four times 3x3 and 64 to each of 64 filters, and the dense layer.
        assert_eq!(macs(&DS_CNN), 125 * 64 * (40 + 4 * (9 + 64)) + 64 * 12);
        check_separable(&DS_CNN, &[64; 5]);
    }
}
