//! A net for rows of features: it has no source, and its sizes are this crate's.

use sepal_core::layer::{BatchNorm, Dense, Flatten, Layer, RELU, Standardise};
use sepal_core::net::{Input, Net};

/// Each feature standardised as measured on the training samples; dense layers of 128 and 64, each
/// with batch norm (without scale and shift) and ReLU; then `classes` outputs.
///
/// ```
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_models::dense::{dense, dense_layers};
///
/// let layers = dense_layers(3);
/// let net = dense(&layers, Input { shape: Shape::rows(1, 30), normalisation: Normalisation::NONE });
/// assert_eq!(net.output()?, Shape::rows(1, 3));
/// assert_eq!(net.shape(net.features_end())?, Shape::rows(1, 64));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn dense_layers(classes: u32) -> [Layer; 9] {
    [
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dense(Dense { units: 128, bias: false }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::Dense(Dense { units: 64, bias: false }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::Dense(Dense { units: classes, bias: true }),
    ]
}

/// [`dense_layers`] for samples of any shape.
pub const fn dense(layers: &[Layer], input: Input) -> Net<'_> {
    Net { input, layers, blocks: &[5, 8, 9], features: 2 }
}
