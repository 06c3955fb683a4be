//! LeNet (LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
//! recognition", Proc. IEEE 1998) in two forms.
//!
//! Taken from the original: 5x5 convolutions of 6 and 16 filters, each followed by a halving, then
//! dense layers of 120, 84 and the classes. The original reads 32x32 images; in the first form here
//! padding makes the same of 28x28. Chosen here, as is usual today: max-pools in place of means
//! with a learnt scale and shift, ReLU in place of tanh, every filter of the second convolution
//! sees all planes of the first (there a table says which), and a dense layer of logits in place of
//! radial basis functions. Batch norm and standardised features, in the first form, are this
//! crate's. Karimi et al. (2024) name the net and nothing of its form.

use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Flatten, Layer, MaxPool, RELU, Standardise, Window,
};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

/// A 28x28 gray image as a net takes it.
const GRAY_28: Input =
    Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE };

/// A padded and an unpadded 5x5 convolution, each with batch norm (without scale and shift),
/// ReLU and a 2x2 max-pool; then standardised features and dense layers of 120, 84 and `classes`.
///
/// On 28x28 images: features of 6x14x14 and 16x5x5, 416,520 multiply-accumulates.
pub const fn lenet_layers(classes: u32) -> [Layer; 15] {
    [
        Layer::Conv2d(Conv2d { pad: (2, 2), bias: false, ..Conv2d::new(6, 5) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(16, 5) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dense(Dense { units: 120, bias: true }),
        RELU,
        Layer::Dense(Dense { units: 84, bias: true }),
        RELU,
        Layer::Dense(Dense { units: classes, bias: true }),
    ]
}

/// [`lenet_layers`] for inputs of another shape or another number of classes.
///
/// ```
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_models::lenet::{lenet, lenet_layers};
///
/// let layers = lenet_layers(4);
/// let normalisation = Normalisation::scalar(0.5, 0.25);
/// let net = lenet(&layers, Input { shape: Shape::new(1, 3, 32, 32), normalisation });
/// assert_eq!(net.output()?, Shape::rows(1, 4));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn lenet(layers: &[Layer], input: Input) -> Net<'_> {
    Net { input, layers, blocks: &[4, 8, 12, 14, 15], features: 2 }
}

/// LeNet for ten classes of 28x28 gray images.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::lenet::LENET;
/// assert_eq!(LENET.check(), Ok(()));
/// assert_eq!(LENET.shape(4), Ok(Shape::new(1, 6, 14, 14)));
/// assert_eq!(LENET.shape(8), Ok(Shape::new(1, 16, 5, 5)));
/// ```
pub const LENET: Net<'static> = lenet(&lenet_layers(10), GRAY_28);

/// The form that firmware libraries measure: no padding and no norm, with biases, 4x4x16
/// features; 44,426 parameters, 281,640 multiply-accumulates on 28x28 images.
pub const fn lenet5_layers(classes: u32) -> [Layer; 12] {
    [
        Layer::Conv2d(Conv2d::new(6, 5)),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
        Layer::Conv2d(Conv2d::new(16, 5)),
        RELU,
        Layer::MaxPool(MaxPool { window: Window::square(2) }),
        Layer::Flatten(Flatten),
        Layer::Dense(Dense { units: 120, bias: true }),
        RELU,
        Layer::Dense(Dense { units: 84, bias: true }),
        RELU,
        Layer::Dense(Dense { units: classes, bias: true }),
    ]
}

/// [`lenet5_layers`] for inputs of another shape or another number of classes.
pub const fn lenet5(layers: &[Layer], input: Input) -> Net<'_> {
    Net { input, layers, blocks: &[3, 6, 9, 11, 12], features: 2 }
}

/// LeNet-5 for ten classes of 28x28 gray images.
pub const LENET5: Net<'static> = lenet5(&lenet5_layers(10), GRAY_28);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::macs;

    #[test]
    fn sizes_are_the_published_ones() {
        assert_eq!(LENET5.check(), Ok(()));
        assert_eq!(LENET5.params(12), Ok(44_426));
        assert_eq!(macs(&LENET5), 281_640);
        assert_eq!(macs(&LENET), 416_520);
    }
}
