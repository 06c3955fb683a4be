//! The autoencoder of MLPerf Tiny (Banbury et al., 2021) for sounds of machines that are about to fail: five
//! windows of 128 mel bands, 640 numbers.
//!
//! Four dense layers of 128, one of 8, four of 128, each with batch norm and ReLU, then one of as many
//! outputs as there are inputs. That is `training/anomaly_detection/keras_model.py` of the benchmark, and the
//! baseline of task 2 of DCASE 2020 (Koizumi et al., arXiv 2006.05822).
//!
//! The source trains end to end to give the input again, and takes the squared difference for a measure
//! of how odd a sound is. There is no such loss here: weights trained elsewhere run as they are, and
//! what is trained here has labels. Each dense layer of the encoder is a block of features, the decoder
//! the classifier; its last layer then has an output for each class.
//!
//! Norms move by 0.1 of a batch's statistics, in the source by 0.01.

use sepal_core::layer::{Dense, Layer};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Units of all layers but the last; the code is the narrowest.
const UNITS: [u32; 9] = [128, 128, 128, 128, 8, 128, 128, 128, 128];

/// Numbers that go in, and come out.
const SOUND: u32 = 640;

const fn table(outputs: u32) -> Table<28, 10> {
    let (mut table, mut hidden) = (Table::new(), 0);
    while hidden < UNITS.len() {
        table = table.normed(Layer::Dense(Dense::new(UNITS[hidden]))).end();
        hidden += 1;
    }
    table.classes(outputs)
}

/// The layers.
///
/// For 640 numbers in and out: 264,192 multiply-accumulates, 269,992 parameters, statistics of norms
/// included.
pub const fn autoencoder_layers(outputs: u32) -> [Layer; 28] {
    table(outputs).layers()
}

/// [`autoencoder_layers`] as a net of five blocks and a classifier.
pub const fn autoencoder(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 10] = table(1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 5 }
}

/// The autoencoder of 640 numbers.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::autoencoder::AUTOENCODER;
/// assert_eq!(AUTOENCODER.shape(AUTOENCODER.features_end()), Ok(Shape::rows(1, 8)));
/// assert_eq!(AUTOENCODER.output(), Ok(AUTOENCODER.input.shape));
/// ```
pub const AUTOENCODER: Net<'static> = autoencoder(
    &autoencoder_layers(SOUND),
    Input { shape: Shape::rows(1, SOUND), normalisation: Normalisation::NONE },
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::macs;

    #[test]
    fn sizes_are_those_of_the_benchmark() {
        assert_eq!(AUTOENCODER.check(), Ok(()));
        // What Keras counts.
        assert_eq!(AUTOENCODER.params(28), Ok(269_992));
        assert_eq!(macs(&AUTOENCODER), 264_192);
    }
}
