//! SimCNN (Belilovsky, Eickenberg and Oyallon, "Greedy layerwise learning can scale to ImageNet",
//! ICML 2019): 3x3 convolutions alone, and space to depth in place of pools.
//!
//! k is the number of layers of the auxiliary net that each convolution is trained with and that is
//! discarded afterwards: k - 1 convolutions, a mean of 2x2 bins, a dense layer. Widths, depths and
//! places of downsampling are those by which the authors' code (`layerCNN`, `cifar.py`) gives the
//! accuracies that Karimi et al. (2024) compare with: five convolutions from 256 filters for k = 1,
//! four from 128 for k = 2 and 3. The filters double wherever the image is halved.
//!
//! The code has no batch norm for k = 1; here all have it (without scale and shift), as all other
//! nets. Karimi et al. do not say what k is in their method, where no layer is trained by
//! cross-entropy: here [`simcnn_readout`] is the auxiliary net with unit features in place of the
//! dense layer. The net's own classifier is the auxiliary net of its last block.

use sepal_core::layer::{AvgPoolTo, BatchNorm, Dense, Flatten, L2Normalise, Layer, SpaceToDepth};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Filters of each convolution, and whether the image is halved before it.
type Convs = [(u32, bool)];

const FROM_256: &Convs = &[(256, false), (256, false), (512, true), (1024, true), (1024, false)];
const FROM_128: &Convs = &[(128, false), (128, false), (256, true), (256, false)];

/// A 32x32 colour image.
const COLOUR_32: Input =
    Input { shape: Shape::new(1, 3, 32, 32), normalisation: Normalisation::NONE };

const BINS: Layer = Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 2 });

const fn table<const LAYERS: usize, const BLOCKS: usize>(
    convs: &Convs,
    k: usize,
    classes: u32,
) -> Table<LAYERS, BLOCKS> {
    let mut table = Table::new();
    let mut filters = 0;
    let mut conv = 0;
    while conv < convs.len() {
        let halved;
        (filters, halved) = convs[conv];
        if halved {
            table = table.layer(Layer::SpaceToDepth(SpaceToDepth { factor: 2 }));
        }
        table = table.conv(filters, (3, 3)).end();
        conv += 1;
    }
    table.all(of_depth(k, &simcnn_head(filters, classes))).end()
}

/// The auxiliary net of k = 3 for training by cross-entropy: two 3x3 convolutions with batch norm
/// and ReLU, means of 2x2 bins, batch norm, a dense layer. [`of_depth`] gives those of less depth.
///
/// The source has as many filters as the first convolution of its net and doubles them wherever
/// the image is halved.
pub const fn simcnn_head(filters: u32, classes: u32) -> [Layer; 10] {
    let table = Table::<10, 1>::new().conv(filters, (3, 3)).conv(filters, (3, 3)).layer(BINS);
    let table = table.layer(Layer::BatchNorm(BatchNorm::new())).layer(Layer::Flatten(Flatten));
    table.layer(Layer::Dense(Dense::new(classes))).layers()
}

/// As [`simcnn_head`], for training by SI: the bins as features of length 1.
///
/// ```
/// use sepal_core::stage::Recipe;
/// use sepal_models::recipe;
/// use sepal_models::simcnn::{of_depth, simcnn_readout};
///
/// const READOUT: [sepal_core::layer::Layer; 9] = simcnn_readout(128);
/// let block = Recipe { head: of_depth(2, &READOUT), ..recipe::block(3) };
/// assert_eq!(block.head.len(), 6);
/// ```
pub const fn simcnn_readout(filters: u32) -> [Layer; 9] {
    let table = Table::<9, 1>::new().conv(filters, (3, 3)).conv(filters, (3, 3)).layer(BINS);
    table.layer(Layer::Flatten(Flatten)).layer(Layer::L2Normalise(L2Normalise)).layers()
}

/// The last k layers of depth, 1 to 3, of an auxiliary net of depth 3: k - 1 of its convolutions
/// and what follows them.
pub const fn of_depth(k: usize, head: &[Layer]) -> &[Layer] {
    let without = 3usize.saturating_sub(k) * 3;
    match head.split_at_checked(without) {
        Some((_, rest)) => rest,
        None => head,
    }
}

/// The layers for k = 1: five convolutions of 256, 256, 512, 1024 and 1024 filters, the image
/// halved before the third and the fourth.
///
/// On 32x32 colour images 3,630,997,504 multiply-accumulates.
pub const fn simcnn1_layers(classes: u32) -> [Layer; 21] {
    table::<21, 6>(FROM_256, 1, classes).layers()
}

/// The layers for k = 2: four convolutions of 128, 128, 256 and 256 filters, the image halved
/// before the third; one more in the classifier.
pub const fn simcnn2_layers(classes: u32) -> [Layer; 20] {
    table::<20, 5>(FROM_128, 2, classes).layers()
}

/// The layers for k = 3: as for k = 2, two convolutions in the classifier.
pub const fn simcnn3_layers(classes: u32) -> [Layer; 23] {
    table::<23, 5>(FROM_128, 3, classes).layers()
}

/// [`simcnn1_layers`] as a net of five blocks and a classifier. The sides of an image are multiples
/// of 4.
pub const fn simcnn1(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 6] = table::<21, 6>(FROM_256, 1, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 5 }
}

/// [`simcnn2_layers`] as a net of four blocks and a classifier. The sides of an image are even.
pub const fn simcnn2(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 5] = table::<20, 5>(FROM_128, 2, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 4 }
}

/// [`simcnn3_layers`] as a net of four blocks and a classifier. The sides of an image are even.
pub const fn simcnn3(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 5] = table::<23, 5>(FROM_128, 3, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 4 }
}

/// SimCNN of k = 1 for ten classes of 32x32 colour images.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::simcnn::SIMCNN1;
/// assert_eq!(SIMCNN1.shape(SIMCNN1.features_end()), Ok(Shape::new(1, 1024, 8, 8)));
/// ```
pub const SIMCNN1: Net<'static> = simcnn1(&simcnn1_layers(10), COLOUR_32);

/// SimCNN of k = 2 for ten classes of 32x32 colour images.
pub const SIMCNN2: Net<'static> = simcnn2(&simcnn2_layers(10), COLOUR_32);

/// SimCNN of k = 3 for ten classes of 32x32 colour images.
pub const SIMCNN3: Net<'static> = simcnn3(&simcnn3_layers(10), COLOUR_32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_blocks, conv_weights, macs};
    use sepal_core::layer::RELU;

    #[test]
    fn sizes_are_those_of_the_code() {
        for (net, convs) in [(SIMCNN1, 5), (SIMCNN2, 4), (SIMCNN3, 4)] {
            check_blocks(&net, convs);
        }
        let weights = |net: &Net<'_>| conv_weights(net, net.features_end());
        // Inputs of a convolution behind a halving are four times the filters before it.
        let of_256 = [(3, 256), (256, 256), (1024, 512), (2048, 1024), (1024, 1024)];
        let of_128 = [(3, 128), (128, 128), (512, 256), (256, 256)];
        let sum = |pairs: &[(u32, u32)]| pairs.iter().map(|(c, k)| 9 * c * k).sum::<u32>();
        assert_eq!(weights(&SIMCNN1), sum(&of_256));
        assert_eq!((weights(&SIMCNN2), weights(&SIMCNN3)), (sum(&of_128), sum(&of_128)));
        // The code's classifier has 2x2 numbers for each filter.
        let inputs = |net: &Net<'_>| net.shape(net.layers.len() - 1).unwrap();
        assert_eq!(inputs(&SIMCNN1), Shape::rows(1, 4 * 1024));
        assert_eq!((inputs(&SIMCNN2), inputs(&SIMCNN3)), (Shape::rows(1, 1024), inputs(&SIMCNN2)));
        assert_eq!(macs(&SIMCNN1), 3_630_997_504);
    }

    #[test]
    fn auxiliary_nets_have_k_layers() {
        let (head, readout) = (simcnn_head(7, 5), simcnn_readout(7));
        for k in 1..=3 {
            let layers = |head: &[Layer]| {
                let learns = |l: &&Layer| matches!(l, Layer::Conv2d(_) | Layer::Dense(_));
                head.iter().filter(learns).count()
            };
            assert_eq!(layers(of_depth(k, &head)), k);
            assert_eq!(layers(of_depth(k, &readout)), k - 1);
            assert_eq!(of_depth(k, &readout)[3 * (k - 1)], BINS);
        }
        assert_eq!((of_depth(0, &[]).len(), of_depth(9, &head).len()), (0, 10));
        assert_eq!(RELU, head[2]);
    }
}
