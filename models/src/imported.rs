//! Nets that were made elsewhere.

use sepal_core::layer::Layer;
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::plan::PlanError;

/// What a foreign net does to its last layer's output, which is no layer here: nets end in logits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Ending {
    /// Nothing.
    #[default]
    Logits,
    /// `exp(y[u]) / sum_v exp(y[v])` over the outputs of a sample.
    Softmax,
    /// The logarithm of that.
    LogSoftmax,
}

/// A net with its weights. Where the file does not say otherwise it is cut into blocks that begin
/// with a convolution or a dense layer, which the flattening, standardisation and dropout directly
/// before it go with; what a residual addition spans is one block.
///
/// Features then end before the first dense layer. Where there is none, or nothing before it, they end
/// before the last block.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    input: Input,
    layers: Vec<Layer>,
    blocks: Vec<u16>,
    features: u16,
    weights: Vec<f32>,
    names: Vec<String>,
    ending: Ending,
}

/// A layer with its parameters in the order of
/// [`Role::ALL`](sepal_core::layer::Role::ALL), and what it is called where it comes
/// from.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) layer: Layer,
    pub(crate) name: String,
    pub(crate) numbers: [Vec<f32>; 4],
}

/// How a file of weights stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F64,
    F16,
    Bf16,
}

impl Element {
    /// Bytes of one.
    #[cfg(feature = "onnx")]
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Little-endian numbers as f32.
    pub(crate) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        fn all<const SIZE: usize>(bytes: &[u8], one: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<SIZE>().0.iter().map(|bytes| one(*bytes)).collect()
        }
        match self {
            Self::F32 => all(bytes, f32::from_le_bytes),
            Self::F64 => all(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F16 => all(bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => all(bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        }
    }
}

/// What is wrong with numbers that are not all finite.
pub(crate) fn not_finite(numbers: &[f32]) -> Option<String> {
    let at = numbers.iter().position(|number| !number.is_finite())?;
    let number = numbers.get(at).copied().unwrap_or_default();
    Some(format!("element {at} is {number}, expected a finite number"))
}

/// Has a convolution do what a batch norm behind it does: scale, shift, means and variances.
pub(crate) fn fold_norm(
    norm: &[Vec<f32>; 4],
    eps: f32,
    weight: &mut [f32],
    bias: &mut [f32],
) -> Result<(), String> {
    let [gamma, beta, mean, variance] = norm;
    let lengths = norm.each_ref().map(Vec::len);
    if lengths != [bias.len(); 4] {
        return Err(format!("{lengths:?} numbers, expected {} of each", bias.len()));
    }
    let rows = weight.chunks_mut((weight.len() / bias.len().max(1)).max(1));
    let norms = gamma.iter().zip(beta).zip(mean.iter().zip(variance));
    for ((row, bias), ((gamma, beta), (mean, variance))) in rows.zip(bias).zip(norms) {
        let factor = f64::from(*gamma) / (f64::from(*variance) + f64::from(eps)).sqrt();
        if !factor.is_finite() {
            return Err(format!("variance {variance}, expected more than {}", -eps));
        }
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        *bias = ((f64::from(*bias) - f64::from(*mean)) * factor + f64::from(*beta)) as f32;
    }
    Ok(())
}

impl Imported {
    /// Joins `pieces`, whose parameters have the right lengths.
    pub(crate) fn new(input: Input, pieces: Vec<Piece>, ending: Ending) -> Result<Self, PlanError> {
        let layers: Vec<Layer> = pieces.iter().map(|piece| piece.layer).collect();
        if u16::try_from(layers.len()).is_err() {
            return Err(PlanError::Overflow { layer: layers.len() });
        }
        let (blocks, features) = cut(&layers);
        let (mut weights, mut names) = (Vec::new(), Vec::new());
        for piece in pieces {
            piece.numbers.into_iter().for_each(|numbers| weights.extend(numbers));
            names.push(piece.name);
        }
        let this = Self { input, layers, blocks, features, weights, names, ending };
        this.model().net.check()?;
        Ok(this)
    }

    /// The same with the blocks of a net that has as many layers.
    #[cfg(feature = "safetensors")]
    pub(crate) fn cut_as(self, net: Net<'_>) -> Self {
        Self { blocks: net.blocks.to_vec(), features: net.features, ..self }
    }

    /// The model.
    pub fn model(&self) -> Model<'_> {
        let Self { input, features, .. } = *self;
        Model {
            net: Net { input, layers: &self.layers, blocks: &self.blocks, features },
            weights: Weights::Flat(&self.weights),
        }
    }

    /// The same with another normalisation of raw samples, such as the one that the net's training
    /// data went through before they reached it.
    #[must_use]
    pub fn normalised(mut self, normalisation: Normalisation) -> Self {
        self.input.normalisation = normalisation;
        self
    }

    /// What each layer is called where it comes from.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the net that was read does to the logits.
    pub fn ending(&self) -> Ending {
        self.ending
    }
}

/// One past the last layer of each block, and how many blocks give features.
fn cut(layers: &[Layer]) -> (Vec<u16>, u16) {
    let multiplies = |layer: &Layer| matches!(layer, Layer::Conv2d(_) | Layer::Dense(_));
    let joins = |layer: &&Layer| {
        matches!(layer, Layer::Flatten(_) | Layer::Standardise(_) | Layer::Dropout(_))
    };
    let crosses = |first: usize| {
        let mut ahead = layers.iter().enumerate().skip(first).take(u8::MAX.into());
        ahead.any(|(at, layer)| match layer {
            Layer::Residual(l) => at.saturating_sub(l.back.into()) < first,
            _ => false,
        })
    };
    let (mut blocks, mut features): (Vec<u16>, Option<u16>) = (Vec::new(), None);
    let mut multiplied = false;
    for (at, layer) in layers.iter().enumerate().filter(|(_, layer)| multiplies(layer)) {
        let along = layers.iter().take(at).rev().take_while(joins).count();
        let first = (at - along) as u16;
        if multiplied && crosses(first.into()) {
            continue;
        }
        if multiplied {
            blocks.push(first);
        }
        multiplied = true;
        if matches!(layer, Layer::Dense(_)) && features.is_none() {
            features = Some(blocks.len() as u16);
        }
    }
    if !layers.is_empty() {
        blocks.push(layers.len() as u16);
    }
    let last = blocks.len().saturating_sub(1) as u16;
    (blocks, features.filter(|&features| features > 0).unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lenet::lenet5_layers;
    use sepal_core::layer::{Conv2d, Dense, Dropout, Flatten, GlobalAvgPool, RELU, Residual};

    #[test]
    fn blocks_begin_with_what_multiplies() {
        const CONV: Layer = Layer::Conv2d(Conv2d::new(3, 1));
        const DENSE: Layer = Layer::Dense(Dense::new(3));
        const DROP: Layer = Layer::Dropout(Dropout { rate: 0.5 });
        const FLAT: Layer = Layer::Flatten(Flatten);
        const POOL: Layer = Layer::GlobalAvgPool(GlobalAvgPool);
        const ADD: Layer = Layer::Residual(Residual::new(2));
        let cases: [(&[Layer], &[u16], u16); 11] = [
            (&[CONV, RELU, CONV, CONV, ADD, RELU, CONV, CONV, ADD, DENSE], &[2, 6, 9, 10], 3),
            (&[CONV, DENSE, DENSE, ADD, DENSE], &[1, 4, 5], 1),
            (&[CONV, CONV, ADD, CONV, CONV, ADD], &[3, 6], 1),
            (&lenet5_layers(10), &[3, 6, 9, 11, 12], 2),
            (&[RELU, CONV, RELU, CONV, POOL, FLAT, DROP, DENSE], &[3, 5, 8], 2),
            (&[FLAT, DENSE, RELU, DENSE, RELU, DENSE], &[3, 5, 6], 2),
            (&[CONV, RELU, CONV, POOL], &[2, 4], 1),
            (&[DENSE], &[1], 0),
            (&[CONV, DENSE], &[1, 2], 1),
            (&[RELU, RELU], &[2], 0),
            (&[], &[], 0),
        ];
        for (layers, blocks, features) in cases {
            assert_eq!(cut(layers), (blocks.to_vec(), features), "{layers:?}");
        }
    }
}
