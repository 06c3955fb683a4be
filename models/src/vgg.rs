//! VGG16 and VGG19 (Simonyan and Zisserman, arXiv 1409.1556) with batch norm, for 32x32 images, and a
//! small net of their kind.
//!
//! The original has biases (batch norm takes them away again), no batch norm, and three dense
//! layers for 224x224 images. Karimi et al. (2024) name the nets and nothing of their form; the
//! one dense layer here is what is usual for small images.

use sepal_core::layer::{Layer, MaxPool};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// Channels of the convolutions up to each pool.
const CHANNELS: [u32; 5] = [64, 128, 256, 512, 512];

/// And of the small net.
const SMALL: [u32; 3] = [16, 32, 64];

/// How many convolutions there are up to each pool in configuration D.
const D: [u8; 5] = [2, 2, 3, 3, 3];

/// And in configuration E.
const E: [u8; 5] = [2, 2, 4, 4, 4];

/// A 32x32 colour image.
const COLOUR_32: Input =
    Input { shape: Shape::new(1, 3, 32, 32), normalisation: Normalisation::NONE };

/// 3x3 convolutions, each with batch norm and ReLU, a 2x2 max-pool behind the last of each
/// number of channels; then standardised features and one dense layer.
const fn table<const LAYERS: usize, const BLOCKS: usize>(
    channels: &[u32],
    convs: &[u8],
    classes: u32,
) -> Table<LAYERS, BLOCKS> {
    let mut table = Table::new();
    let mut stage = 0;
    while stage < convs.len() {
        let mut conv = 1;
        while conv <= convs[stage] {
            table = table.conv(channels[stage], (3, 3));
            if conv == convs[stage] {
                table = table.layer(Layer::MaxPool(MaxPool::new(2)));
            }
            table = table.end();
            conv += 1;
        }
        stage += 1;
    }
    table.features().classes(classes)
}

/// The 13 convolutions of configuration D, 3x3 and padded, each with batch norm (without scale and
/// shift) and ReLU, with a 2x2 max-pool behind the 2nd, 4th, 7th, 10th and 13th; then standardised
/// features and one dense layer of `classes`.
///
/// On 32x32 colour images: 512 features, 313,201,664 multiply-accumulates.
pub const fn vgg16_layers(classes: u32) -> [Layer; 47] {
    table::<47, 14>(&CHANNELS, &D, classes).layers()
}

/// The 16 convolutions of configuration E, as in [`vgg16_layers`], with a max-pool behind the 2nd,
/// 4th, 8th, 12th and 16th.
///
/// On 32x32 colour images: 512 features, 398,136,320 multiply-accumulates.
pub const fn vgg19_layers(classes: u32) -> [Layer; 56] {
    table::<56, 17>(&CHANNELS, &E, classes).layers()
}

/// [`vgg16_layers`] as a net of 13 blocks and a classifier. Images are of 32x32 pixels at least.
///
/// ```
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_models::vgg::{vgg16, vgg16_layers};
///
/// let layers = vgg16_layers(100);
/// let normalisation = Normalisation::scalar(0.5, 0.25);
/// let net = vgg16(&layers, Input { shape: Shape::new(1, 1, 32, 32), normalisation });
/// assert_eq!(net.output()?, Shape::rows(1, 100));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn vgg16(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 14] = table::<47, 14>(&CHANNELS, &D, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 13 }
}

/// [`vgg19_layers`] as a net of 16 blocks and a classifier. Images are of 32x32 pixels at least.
pub const fn vgg19(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 17] = table::<56, 17>(&CHANNELS, &E, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 16 }
}

/// Two 3x3 convolutions of 16, two of 32 and two of 64 filters, as in [`vgg16_layers`], with a
/// max-pool behind the 2nd, 4th and 6th. Small enough for many runs, deep enough to tell layer-wise
/// methods apart.
///
/// On 28x28 grey images: 576 features, 7,344,000 multiply-accumulates.
pub const fn vgg6_layers(classes: u32) -> [Layer; 24] {
    table::<24, 7>(&SMALL, &[2, 2, 2], classes).layers()
}

/// [`vgg6_layers`] as a net of 6 blocks and a classifier. Images are of 8x8 pixels at least.
pub const fn vgg6(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 7] = table::<24, 7>(&SMALL, &[2, 2, 2], 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 6 }
}

/// VGG16 for ten classes of 32x32 colour images.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::vgg::VGG16;
/// assert_eq!(VGG16.check(), Ok(()));
/// assert_eq!(VGG16.shape(VGG16.features_end()), Ok(Shape::new(1, 512, 1, 1)));
/// ```
pub const VGG16: Net<'static> = vgg16(&vgg16_layers(10), COLOUR_32);

/// VGG19 for ten classes of 32x32 colour images.
pub const VGG19: Net<'static> = vgg19(&vgg19_layers(10), COLOUR_32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_blocks, macs};
    use sepal_core::layer::{Conv2d, Layer};

    #[test]
    fn sizes_are_the_published_ones() {
        assert_eq!(VGG16.check(), Ok(()));
        assert_eq!(macs(&VGG16), 313_201_664);
        // Weights of convolutions, measured means and variances, the dense layer.
        let measured = 2 * (4_224 + 512);
        assert_eq!(VGG16.params(47), Ok(14_710_464 + measured + 5_130));
        // With its biases and the three dense layers for 224x224 images VGG19 has 143,667,240
        // parameters, of which 123,642,856 are dense.
        let (biases, measured) = (5_504, 2 * (5_504 + 512));
        assert_eq!(VGG19.params(56), Ok(143_667_240 - 123_642_856 - biases + measured + 5_130));
        // 19,632,062,464 multiply-accumulates there, 123,633,664 of them dense, on 49 times the
        // places.
        assert_eq!(macs(&VGG19), (19_632_062_464 - 123_633_664) / 49 + 5_120);
    }

    #[test]
    fn the_small_net_fits_28x28() {
        let normalisation = Normalisation::NONE;
        let net = vgg6(
            &const { vgg6_layers(10) },
            Input { shape: Shape::new(1, 1, 28, 28), normalisation },
        );
        check_blocks(&net, 6);
        assert_eq!(net.shape(net.features_end()), Ok(Shape::new(1, 64, 3, 3)));
        assert_eq!(macs(&net), 7_344_000);
    }

    #[test]
    fn each_block_is_a_convolution_with_what_follows_it() {
        for (net, pools) in [(VGG16, [1, 3, 6, 9, 12]), (VGG19, [1, 3, 7, 11, 15])] {
            let convs = net.features.into();
            check_blocks(&net, convs);
            for block in 0..convs {
                let (first, last) = net.block(block).unwrap();
                let stage = pools.iter().filter(|&&pool| pool < block).count();
                let expected =
                    Conv2d { pad: (1, 1), bias: false, ..Conv2d::new(CHANNELS[stage], 3) };
                assert_eq!(net.layers[first], Layer::Conv2d(expected), "{block}");
                assert_eq!(last - first, 3 + usize::from(pools.contains(&block)), "{block}");
            }
        }
        assert_eq!((VGG16.block(13), VGG16.features_end()), (Some((44, 47)), 44));
        assert_eq!((VGG19.block(16), VGG19.features_end()), (Some((53, 56)), 53));
    }
}
