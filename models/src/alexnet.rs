//! AlexNet (Krizhevsky, Sutskever and Hinton 2012) for 32x32 images.
//!
//! The original takes 224x224 images. Karimi et al. (2024) name the net and nothing of its form at
//! 32x32. Taken here from the original: five convolutions, overlapping max-pools of 3x3 that move
//! by 2 behind the 1st, 2nd and 5th, two dense layers of 4096. The channels are those of its form
//! for one device (Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
//! arXiv 1404.5997). Dropout stands before both dense layers, as torchvision has it; the original
//! has it behind them. Chosen here: the first convolution is 5x5 and moves by 1 instead
//! of 11x11 by 4, for there are a seventh of the rows; pools are padded by 1, so that they halve;
//! batch norm (without scale and shift) behind every convolution stands for the normalisation across
//! channels, which the original has behind the 1st and 2nd, and for the biases before it; features
//! are standardised before the dense layers.

use sepal_core::layer::{Dropout, Layer, MaxPool, Window};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Channels and size of each convolution, and whether a pool follows it.
const CONVS: [(u32, u8, bool); 5] =
    [(64, 5, true), (192, 5, true), (384, 3, false), (256, 3, false), (256, 3, true)];

const POOL: MaxPool = MaxPool { window: Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) } };
const DROPOUT: Layer = Layer::Dropout(Dropout { rate: 0.5 });

const fn table(classes: u32) -> Table<27, 8> {
    let mut table = Table::new();
    let mut conv = 0;
    while conv < CONVS.len() {
        let (channels, size, pool) = CONVS[conv];
        table = table.conv(channels, (size, size));
        if pool {
            table = table.layer(Layer::MaxPool(POOL));
        }
        table = table.end();
        conv += 1;
    }
    table.features().layer(DROPOUT).hidden(4096).layer(DROPOUT).hidden(4096).classes(classes)
}

/// The layers; see the [module](self).
///
/// On 32x32 colour images: 256x4x4 features, 253,992,960 multiply-accumulates.
pub const fn alexnet_layers(classes: u32) -> [Layer; 27] {
    table(classes).layers()
}

/// [`alexnet_layers`] as a net of five blocks, two hidden dense layers and a classifier.
///
/// ```
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_models::alexnet::{alexnet, alexnet_layers};
///
/// let layers = alexnet_layers(5);
/// let input = Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE };
/// let net = alexnet(&layers, input);
/// assert_eq!(net.shape(net.features_end())?, Shape::new(1, 256, 4, 4));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn alexnet(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 8] = table(1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 5 }
}

/// AlexNet for ten classes of 32x32 colour images.
pub const ALEXNET: Net<'static> = alexnet(
    &alexnet_layers(10),
    Input { shape: Shape::new(1, 3, 32, 32), normalisation: Normalisation::NONE },
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_blocks, conv_weights, macs};

    #[test]
    fn convolutions_have_the_published_sizes() {
        check_blocks(&ALEXNET, 5);
        // The form for one device has 61,100,840 parameters, of which 58,631,144 are dense and
        // 23,296 in its 11x11 convolution; the other biases are 1,088.
        let others = 61_100_840 - 58_631_144 - 23_296 - 1_088;
        assert_eq!(conv_weights(&ALEXNET, 18), others + 64 * 3 * 25);
        assert_eq!(ALEXNET.shape(18), Ok(Shape::new(1, 256, 4, 4)));
        let dense = (4096 * 4096 + 4096) * 2 + 4096 * 10 + 10;
        let measured = 2 * (1_152 + 4096);
        assert_eq!(ALEXNET.params(27), Ok(others as usize + 4_800 + measured + dense));
        assert_eq!(macs(&ALEXNET), 253_992_960);
        let ends: Vec<_> = (5..8).map(|block| ALEXNET.block(block).unwrap()).collect();
        assert_eq!(ends, [(18, 23), (23, 26), (26, 27)]);
    }
}
