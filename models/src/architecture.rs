//! All architectures by name.

use sepal_core::layer::Layer;
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::source::Source;

use crate::data::{Dataset, Moments};
use crate::width::scaled;
use crate::{
    alexnet, autoencoder, dense, ds_cnn, gesture, lenet, mobilenet, resnet, simcnn, vdcnn, vgg,
};

/// An architecture of this crate, for any number of classes.
///
/// ```
/// use sepal_models::architecture::Architecture;
/// use sepal_models::data;
/// let images = data::bundled().train;
/// let architecture = Architecture::Lenet5;
/// let layers = architecture.layers(10, 100);
/// assert_eq!(architecture.net(&layers, architecture.input(&images)).params(12)?, 44_426);
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Architecture {
    /// Two 5x5 convolutions with batch norm, dense 120-84-classes
    Lenet,
    /// The same without padding and norm, with biases
    Lenet5,
    /// Three convolutions over time, for gestures, with batch norm, dense 32-classes
    Gesture,
    /// MLPerf Tiny, keywords: a 10x4 convolution and four depthwise separable ones of 64 filters
    DsCnn,
    /// MLPerf Tiny, persons: a convolution and 13 depthwise separable ones of 8 to 256 filters
    Mobilenet,
    /// MLPerf Tiny, sounds: dense 128 (four times), 8, 128 (four times), classes, with batch norm
    Autoencoder,
    /// Six 3x3 convolutions of 16 to 64 filters with batch norm and one dense layer
    Vgg6,
    /// 13 3x3 convolutions with batch norm and one dense layer, for images of 32x32 and more
    Vgg16,
    /// The same with 16 convolutions
    Vgg19,
    /// Five convolutions, dense 4096-4096-classes
    Alexnet,
    /// A convolution and three residual units of 16 to 64 filters: MLPerf Tiny's net for images
    Resnet8,
    /// A convolution and eight residual units of 64 to 512 filters
    Resnet18,
    /// Five 3x3 convolutions from 256 filters; space to depth halves the image
    Simcnn1,
    /// Four from 128 filters; each learns with an auxiliary net of one more of its width behind it
    Simcnn2,
    /// Four from 128 filters; each learns with an auxiliary net of two more of its width behind it
    Simcnn3,
    /// For text: embedded characters, 9 convolutions, dense 2048-2048-classes
    Vdcnn9,
    /// The same with 17 convolutions
    Vdcnn17,
    /// The same with 29 convolutions
    Vdcnn29,
    /// For rows of features: two hidden dense layers of 128 and 64 with batch norm
    Dense,
}

impl Architecture {
    /// Whether it reads characters.
    pub const fn reads_text(self) -> bool {
        matches!(self, Self::Vdcnn9 | Self::Vdcnn17 | Self::Vdcnn29)
    }

    /// The depth of the auxiliary nets of SimCNN.
    pub const fn depth(self) -> Option<usize> {
        match self {
            Self::Simcnn1 => Some(1),
            Self::Simcnn2 => Some(2),
            Self::Simcnn3 => Some(3),
            _ => None,
        }
    }

    /// The layers of the net, for a number of classes; their width in percent.
    pub fn layers(self, classes: u32, width: u32) -> Vec<Layer> {
        match self {
            Self::Lenet => scaled(lenet::lenet_layers(classes), width).to_vec(),
            Self::Lenet5 => scaled(lenet::lenet5_layers(classes), width).to_vec(),
            Self::Gesture => scaled(gesture::gesture_layers(classes), width).to_vec(),
            Self::DsCnn => scaled(ds_cnn::ds_cnn_layers(classes), width).to_vec(),
            Self::Mobilenet => scaled(mobilenet::mobilenet_layers(classes), width).to_vec(),
            Self::Autoencoder => scaled(autoencoder::autoencoder_layers(classes), width).to_vec(),
            Self::Vgg6 => scaled(vgg::vgg6_layers(classes), width).to_vec(),
            Self::Vgg16 => scaled(vgg::vgg16_layers(classes), width).to_vec(),
            Self::Vgg19 => scaled(vgg::vgg19_layers(classes), width).to_vec(),
            Self::Alexnet => scaled(alexnet::alexnet_layers(classes), width).to_vec(),
            Self::Resnet8 => scaled(resnet::resnet8_layers(classes), width).to_vec(),
            Self::Resnet18 => scaled(resnet::resnet18_layers(classes), width).to_vec(),
            Self::Simcnn1 => scaled(simcnn::simcnn1_layers(classes), width).to_vec(),
            Self::Simcnn2 => scaled(simcnn::simcnn2_layers(classes), width).to_vec(),
            Self::Simcnn3 => scaled(simcnn::simcnn3_layers(classes), width).to_vec(),
            Self::Vdcnn9 => scaled(vdcnn::vdcnn9_layers(classes), width).to_vec(),
            Self::Vdcnn17 => scaled(vdcnn::vdcnn17_layers(classes), width).to_vec(),
            Self::Vdcnn29 => scaled(vdcnn::vdcnn29_layers(classes), width).to_vec(),
            Self::Dense => scaled(dense::dense_layers(classes), width).to_vec(),
        }
    }

    /// The net of these layers.
    pub fn net<'m>(self, layers: &'m [Layer], input: Input) -> Net<'m> {
        match self {
            Self::Lenet => lenet::lenet(layers, input),
            Self::Lenet5 => lenet::lenet5(layers, input),
            Self::Gesture => gesture::gesture(layers, input),
            Self::DsCnn => ds_cnn::ds_cnn(layers, input),
            Self::Mobilenet => mobilenet::mobilenet(layers, input),
            Self::Autoencoder => autoencoder::autoencoder(layers, input),
            Self::Vgg6 => vgg::vgg6(layers, input),
            Self::Vgg16 => vgg::vgg16(layers, input),
            Self::Vgg19 => vgg::vgg19(layers, input),
            Self::Alexnet => alexnet::alexnet(layers, input),
            Self::Resnet8 => resnet::resnet8(layers, input),
            Self::Resnet18 => resnet::resnet18(layers, input),
            Self::Simcnn1 => simcnn::simcnn1(layers, input),
            Self::Simcnn2 => simcnn::simcnn2(layers, input),
            Self::Simcnn3 => simcnn::simcnn3(layers, input),
            Self::Vdcnn9 => vdcnn::vdcnn9(layers, input),
            Self::Vdcnn17 => vdcnn::vdcnn17(layers, input),
            Self::Vdcnn29 => vdcnn::vdcnn29(layers, input),
            Self::Dense => dense::dense(layers, input),
        }
    }

    /// The input of a net that reads these samples, normalised by their mean and deviation.
    pub fn input(self, train: &Dataset) -> Input {
        let normalisation = self.normalisation(train.moments(), train.is_u8());
        Input { shape: train.shape(), normalisation }
    }

    /// The normalisation of samples, bytes or numbers, that have this mean and deviation over all
    /// their elements. Nets for text read characters as they are, and the dense net measures each
    /// feature itself.
    pub fn normalisation(self, moments: Moments, bytes: bool) -> Normalisation {
        let scale = if bytes { 255.0 } else { 1.0 };
        let std = (moments.std / scale) as f32;
        // A constant, or as good as one: its inverse is no number.
        let std = if std.is_normal() { std } else { 1.0 };
        match self {
            Self::Dense => Normalisation::NONE,
            _ if self.reads_text() => Normalisation::BYTES,
            _ => Normalisation::scalar((moments.mean / scale) as f32, std),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_normalised_by_a_deviation_that_has_an_inverse() {
        let of = |std| Architecture::Lenet.normalisation(Moments { mean: 51.0, std }, true);
        assert_eq!(of(102.0), Normalisation::scalar(0.2, 0.4));
        for std in [0.0, 1e-300, 1e-38] {
            assert_eq!(of(std), Normalisation::scalar(0.2, 1.0), "{std}");
        }
    }
}
