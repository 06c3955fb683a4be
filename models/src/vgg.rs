//! VGG (Simonyan and Zisserman, arXiv 1409.1556) with batch norm, for 32x32 images.

use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Flatten, Layer, MaxPool, RELU, Standardise, Window,
};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

/// Channels of each convolution of configuration D, and whether a pool follows it.
const VGG16_CONVS: [(u32, bool); 13] = [
    (64, false),
    (64, true),
    (128, false),
    (128, true),
    (256, false),
    (256, false),
    (256, true),
    (512, false),
    (512, false),
    (512, true),
    (512, false),
    (512, false),
    (512, true),
];

/// The end of each block: a convolution with its batch norm, ReLU and pool; last the classifier.
const VGG16_BLOCKS: [u16; 14] = [3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40, 44, 47];

/// The 13 convolutions of configuration D, 3x3 and padded, each with batch norm (without scale and
/// shift) and ReLU, with a 2x2 max-pool behind the 2nd, 4th, 7th, 10th and 13th; then standardised
/// features and one dense layer of `classes`.
///
/// On 32x32 colour images: 512 features, 313,201,664 multiply-accumulates. The original has biases
/// (batch norm takes them away again), no batch norm, and three dense layers for 224x224 images.
pub const fn vgg16_layers(classes: u32) -> [Layer; 47] {
    let mut layers = [RELU; 47];
    let (mut at, mut conv) = (0, 0);
    while conv < VGG16_CONVS.len() {
        let (channels, pool) = VGG16_CONVS[conv];
        layers[at] = Layer::Conv2d(Conv2d { pad: (1, 1), bias: false, ..Conv2d::new(channels, 3) });
        layers[at + 1] = Layer::BatchNorm(BatchNorm::new());
        // The ReLU at `at + 2` is there already.
        at += 3;
        if pool {
            layers[at] = Layer::MaxPool(MaxPool { window: Window::square(2) });
            at += 1;
        }
        conv += 1;
    }
    layers[at] = Layer::Flatten(Flatten);
    layers[at + 1] = Layer::Standardise(Standardise);
    layers[at + 2] = Layer::Dense(Dense { units: classes, bias: true });
    layers
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
    Net { input, layers, blocks: &VGG16_BLOCKS, features: 13 }
}

/// VGG16 for ten classes of 32x32 colour images.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::vgg::VGG16;
/// assert_eq!(VGG16.check(), Ok(()));
/// assert_eq!(VGG16.shape(VGG16.features_end()), Ok(Shape::new(1, 512, 1, 1)));
/// ```
pub const VGG16: Net<'static> = vgg16(
    &vgg16_layers(10),
    Input { shape: Shape::new(1, 3, 32, 32), normalisation: Normalisation::NONE },
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_published_ones() {
        assert_eq!(VGG16.check(), Ok(()));
        let of = |(at, layer): (usize, &Layer)| layer.macs(VGG16.shape(at).unwrap());
        assert_eq!(VGG16.layers.iter().enumerate().map(of).sum::<u64>(), 313_201_664);
        // Weights of convolutions, measured means and variances, the dense layer.
        let measured = 2 * (4_224 + 512);
        assert_eq!(VGG16.params(47), Ok(14_710_464 + measured + 5_130));
    }

    #[test]
    fn each_block_begins_with_a_convolution_and_ends_with_its_relu_or_pool() {
        for (block, (channels, pool)) in VGG16_CONVS.into_iter().enumerate() {
            let (first, last) = VGG16.block(block).unwrap();
            let conv = Conv2d { pad: (1, 1), bias: false, ..Conv2d::new(channels, 3) };
            assert_eq!(VGG16.layers[first], Layer::Conv2d(conv), "{block}");
            assert!(matches!(VGG16.layers[first + 1], Layer::BatchNorm(_)), "{block}");
            assert_eq!(VGG16.layers[first + 2], RELU, "{block}");
            assert_eq!(matches!(VGG16.layers[last - 1], Layer::MaxPool(_)), pool, "{block}");
            assert_eq!(last - first, 3 + usize::from(pool), "{block}");
        }
        assert_eq!(VGG16.block(13), Some((44, 47)));
        assert_eq!(VGG16.features_end(), 44);
    }
}
