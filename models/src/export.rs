//! Nets for small cores: norms folded into the layers before them, weights and activations in bytes.
//!
//! [`fold`] gives the same net with fewer layers. [`quantise`] gives one that
//! [`Micro`](sepal_core::micro::Micro) runs in integers (Jacob et al., CVPR 2018): weights are i8
//! with a scale for each filter, and in front of every layer that multiplies by them stands
//! [`Quantise`], whose steps are measured on samples. Both keep the blocks: block i of the net that
//! comes out computes what block i computed. On other backends the same model computes the same
//! numbers in f32, but for rounding, so that the loss of accuracy is known before anything is
//! flashed.
//!
//! ```
//! use sepal_core::micro::OnMicro;
//! use sepal_core::net::Model;
//! use sepal_core::reference::OnReference;
//! use sepal_models::export::{self, Settings};
//! use sepal_models::features::Features;
//! # #[cfg(feature = "bundled")] {
//! use sepal_models::{data, fit::Fit, lenet::LENET};
//!
//! let (fit, images) = (Fit::new(LENET, 0)?, data::bundled().train.head(64)?);
//! let int8 = export::quantise(&OnReference, &fit.model(), &mut &images, &Settings::default())?;
//! let logits = Features::new(&OnMicro, &int8.model(), &mut &images, int8.layers().len())?;
//! assert_eq!(logits.dim(), 10);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use sepal_core::arena::{Dtype, Word};
use sepal_core::backend::Device;
use sepal_core::error::Error;
use sepal_core::layer::{BatchNorm, Conv2d, Dense, Layer, Quantise, Role};
use sepal_core::net::{Input, Model, Net, Normalisation, TensorRecord, Weights};
use sepal_core::plan::{Chain, PlanError};
use sepal_core::shape::Shape;
use sepal_core::source::Source;

use crate::features::Features;

/// Why a net cannot be exported.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ExportError {
    /// A pass over the samples failed, or the net is none.
    Run(Error),
    /// The net rounds activations already.
    Quantised {
        /// The layer that does.
        layer: usize,
    },
    /// A parameter that is not a finite number.
    Parameter {
        /// The layer.
        layer: usize,
        /// Which of its parameters.
        role: Role,
    },
    /// An activation that is not a finite number.
    Activation {
        /// The layer that it reaches.
        layer: usize,
    },
    /// A block with a residual addition, which is of numbers, among those that are to be bytes.
    Residual {
        /// The block.
        block: usize,
    },
    /// A block that the net does not have.
    Block {
        /// The block.
        block: u16,
        /// How many there are.
        blocks: usize,
    },
    /// A share of numbers that is not above 1/2 and at most 1.
    Quantile {
        /// The share.
        quantile: f64,
    },
    /// No samples to measure on.
    Empty,
}

impl std::fmt::Display for ExportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Run(error) => error.fmt(f),
            Self::Quantised { layer } => {
                write!(f, "layer {layer} rounds activations, expected a net that is not quantised")
            }
            Self::Parameter { layer, role } => {
                write!(f, "layer {layer}, {role:?}: a number that is not finite")
            }
            Self::Activation { layer } => {
                write!(f, "what reaches layer {layer}: a number that is not finite")
            }
            Self::Residual { block } => write!(
                f,
                "block {block} holds a residual addition, expected it among those that stay in f32"
            ),
            Self::Block { block, blocks } => {
                write!(f, "block {block}, expected one of {blocks}, counted from 0")
            }
            Self::Quantile { quantile } => {
                write!(f, "quantile {quantile}, expected more than 0.5 and at most 1")
            }
            Self::Empty => write!(f, "no samples, expected at least one to measure ranges on"),
        }
    }
}

impl std::error::Error for ExportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Run(error) => Some(error),
            _ => None,
        }
    }
}

impl<E: Into<Error>> From<E> for ExportError {
    fn from(error: E) -> Self {
        Self::Run(error.into())
    }
}

/// How a net becomes bytes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Settings<'a> {
    /// Blocks that stay in f32, counted from 0.
    pub floats: &'a [u16],
    /// The share of the measured numbers that lie between the first and the last step, on each side:
    /// 1 for all of them. Less makes finer steps, and cuts off what lies outside.
    pub quantile: f64,
}

impl Default for Settings<'_> {
    /// All blocks in bytes; steps that reach over all numbers measured.
    fn default() -> Self {
        Self { floats: &[], quantile: 1.0 }
    }
}

/// What was measured in front of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The [`Quantise`] layer that stands there.
    pub layer: usize,
    /// The smallest and the largest number.
    pub full: (f32, f32),
    /// What the steps reach over.
    pub kept: (f32, f32),
}

/// A net with its weights.
#[derive(Clone, Debug)]
pub struct Export {
    input: Input,
    features: u16,
    layers: Vec<Layer>,
    blocks: Vec<u16>,
    records: Vec<TensorRecord>,
    blob: Vec<Word>,
    ranges: Vec<Range>,
}

impl Export {
    /// The model.
    pub fn model(&self) -> Model<'_> {
        let Self { input, features, .. } = *self;
        Model {
            net: Net { input, layers: &self.layers, blocks: &self.blocks, features },
            weights: Weights::File {
                records: &self.records,
                blob: bytemuck::cast_slice(&self.blob),
            },
        }
    }

    /// Its layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What was measured, in the order of the layers; raw bytes that are read as they are need no
    /// measurement.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn new(input: Input, features: u16, blocks: Vec<Vec<Part>>) -> Result<Self, ExportError> {
        let mut this = Self {
            input,
            features,
            layers: Vec::new(),
            blocks: Vec::new(),
            records: Vec::new(),
            blob: Vec::new(),
            ranges: Vec::new(),
        };
        for block in blocks {
            for Part { layer, numbers, scales, .. } in block {
                for (role, numbers) in Role::ALL.into_iter().zip(&numbers) {
                    let scales = if role == Role::Weight { &scales[..] } else { &[] };
                    this.push(role, numbers, scales)?;
                }
                this.layers.push(layer);
            }
            let end = u16::try_from(this.layers.len());
            let layer = this.layers.len();
            this.blocks.push(end.map_err(|_| PlanError::Overflow { layer })?);
        }
        this.model().net.check()?;
        Ok(this)
    }

    /// Stores a parameter of the next layer: as i8 where there are scales.
    fn push(&mut self, role: Role, numbers: &[f32], scales: &[f32]) -> Result<(), ExportError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let layer = self.layers.len();
        let (at, len, dtype) = match scales.is_empty() {
            true => {
                let (at, len) = self.append(numbers.iter().flat_map(|w| w.to_le_bytes()));
                (at, len, Dtype::F32)
            }
            false => {
                let rows = numbers.chunks(numbers.len().div_ceil(scales.len()).max(1));
                let steps = rows.zip(scales).flat_map(|(row, scale)| {
                    row.iter().map(move |w| (w / scale).round().clamp(-127.0, 127.0) as i8 as u8)
                });
                let (at, len) = self.append(steps);
                (at, len, Dtype::I8)
            }
        };
        let (scales_at, scales_len) = match scales.is_empty() {
            true => (0, 0),
            false => self.append(scales.iter().flat_map(|scale| scale.to_le_bytes())),
        };
        let place = |at: usize| u32::try_from(at).map_err(|_| PlanError::Overflow { layer });
        self.records.push(TensorRecord {
            layer: u16::try_from(layer).map_err(|_| PlanError::Overflow { layer })?,
            role,
            dtype,
            at: place(at)?,
            len: place(len)?,
            scales_at: place(scales_at)?,
            scales_len: place(scales_len)?,
        });
        Ok(())
    }

    /// Appends bytes at the next word; gives their place and number.
    fn append(&mut self, bytes: impl Iterator<Item = u8>) -> (usize, usize) {
        let bytes: Vec<u8> = bytes.collect();
        let at = self.blob.len() * Word::BYTES;
        self.blob.resize(self.blob.len() + Word::count(bytes.len()), Word::ZERO);
        let room: &mut [u8] = bytemuck::cast_slice_mut(&mut self.blob);
        room.iter_mut().skip(at).zip(&bytes).for_each(|(to, from)| *to = *from);
        (at, bytes.len())
    }
}

/// A layer with its parameters in the order of [`Role::ALL`]. Weights with scales, one for each
/// filter or unit, are stored as i8.
struct Part {
    layer: Layer,
    /// Its place in its block, before layers went.
    at: usize,
    numbers: [Vec<f32>; 4],
    scales: Vec<f32>,
}

impl Part {
    fn plain(layer: Layer) -> Self {
        Self { layer, at: 0, numbers: [const { Vec::new() }; 4], scales: Vec::new() }
    }

    /// Filters or units of a layer that multiplies.
    fn rows(&self) -> Option<usize> {
        match self.layer {
            Layer::Conv2d(conv) => Some(conv.filters as usize),
            Layer::Dense(dense) => Some(dense.units as usize),
            _ => None,
        }
    }

    /// Replaces each filter or unit's weights and bias.
    fn each_row(&mut self, mut f: impl FnMut(usize, &mut [f32], f64) -> f64) {
        let Some(rows) = self.rows() else { return };
        let [weight, bias, ..] = &mut self.numbers;
        let len = (weight.len() / rows.max(1)).max(1);
        bias.resize(rows, 0.0);
        for (k, (row, bias)) in weight.chunks_mut(len).zip(bias).enumerate() {
            *bias = f(k, row, f64::from(*bias)) as f32;
        }
        match &mut self.layer {
            Layer::Conv2d(Conv2d { bias, .. }) | Layer::Dense(Dense { bias, .. }) => *bias = true,
            _ => {}
        }
    }
}

/// The net's layers with their parameters, block by block.
fn parts(model: &Model<'_>) -> Result<Vec<Vec<Part>>, ExportError> {
    let net = model.net;
    net.check()?;
    let mut blocks = Vec::new();
    let mut shape = net.input.shape;
    for block in 0..net.blocks.len() {
        let (first, last) = net.block(block).unwrap_or_default();
        let mut parts = Vec::new();
        for (index, layer) in net.layers.iter().enumerate().take(last).skip(first) {
            if matches!(layer, Layer::Quantise(_)) {
                return Err(ExportError::Quantised { layer: index });
            }
            let mut part = Part { at: index - first, ..Part::plain(*layer) };
            let lengths = layer.tensors(shape).unwrap_or_default();
            let stored = model.weights.layer(&net, index);
            for ((role, stored), numbers) in
                Role::ALL.into_iter().zip(stored).zip(&mut part.numbers)
            {
                let expected = lengths.len(role) as usize;
                numbers.resize(expected, 0.0);
                if expected > 0 && !stored.widen(numbers) {
                    let got = stored.len();
                    return Err(Error::Weights { layer: index, expected, got }.into());
                }
                if !numbers.iter().all(|w| w.is_finite()) {
                    return Err(ExportError::Parameter { layer: index, role });
                }
            }
            parts.push(part);
            shape = layer.output(shape).unwrap_or_default();
        }
        blocks.push(parts);
    }
    Ok(blocks)
}

/// The same net with fewer layers, for inference.
///
/// Within each block batch norm goes into the convolution or dense layer that it directly follows,
/// standardisation into the dense layer behind it, and dropout goes:
/// ```text
/// w'[k] = w[k] g[k],  b'[k] = (b[k] - mean[k]) g[k] + beta[k],  g = gamma / sqrt(variance + eps)
/// w'[u,d] = w[u,d] / deviation[d],  b'[u] = b[u] - sum_d w'[u,d] mean[d]
/// ```
/// (0 for w' where the deviation is 0). What stands elsewhere stays, and what gives or reads a tensor that
/// a residual addition reads too. Weights become f32.
///
/// # Errors
/// A net that is none, or is quantised; weights that are missing or not finite.
pub fn fold(model: &Model<'_>) -> Result<Export, ExportError> {
    Export::new(model.net.input, model.net.features, folded(model)?)
}

fn folded(model: &Model<'_>) -> Result<Vec<Vec<Part>>, ExportError> {
    let mut blocks = parts(model)?;
    for block in &mut blocks {
        let layers: Vec<Layer> = block.iter().map(|part| part.layer).collect();
        let held = |at: usize| Chain::new(&layers).held(at) > 0;
        // A block is a layer at least.
        let dropouts = block.iter().filter(|p| matches!(p.layer, Layer::Dropout(_))).count();
        if dropouts < block.len() {
            block.retain(|part| !matches!(part.layer, Layer::Dropout(_)));
        }
        let mut done: Vec<Part> = Vec::new();
        for mut part in std::mem::take(block) {
            if let (Layer::BatchNorm(norm), Some(last)) = (part.layer, done.last_mut())
                && last.rows().is_some()
                && !held(part.at)
            {
                fold_norm(norm, &part, last);
                continue;
            }
            if matches!(part.layer, Layer::Dense(_)) {
                let flat = done.iter().rev().take_while(|p| matches!(p.layer, Layer::Flatten(_)));
                let before = done.len() - flat.count();
                let at = before.checked_sub(1).filter(|&at| {
                    done.get(at).is_some_and(|p| {
                        matches!(p.layer, Layer::Standardise(_)) && !(p.at + 1..=part.at).any(held)
                    })
                });
                if let Some(at) = at {
                    fold_standardise(&done.remove(at), &mut part);
                }
            }
            done.push(part);
        }
        link(&mut done);
        *block = done;
    }
    Ok(blocks)
}

/// Has the residual additions of a block find what they add, now that layers before them have gone: the
/// first that is left of those that read it, or stood behind it, reads it now.
fn link(block: &mut [Part]) {
    let places: Vec<usize> = block.iter().map(|part| part.at).collect();
    for (at, part) in block.iter_mut().enumerate() {
        if let Layer::Residual(residual) = &mut part.layer {
            let source = part.at.saturating_sub(residual.back.into());
            let first = places.partition_point(|&place| place < source);
            residual.back = at.saturating_sub(first) as u8;
        }
    }
}

fn fold_norm(norm: BatchNorm, part: &Part, into: &mut Part) {
    let [gamma, beta, mean, variance] = &part.numbers;
    let at = |numbers: &[f32], k: usize, or: f64| numbers.get(k).map_or(or, |&n| f64::from(n));
    into.each_row(|k, row, bias| {
        let deviation = (at(variance, k, 0.0) + f64::from(norm.eps)).sqrt();
        let scale = at(gamma, k, 1.0) / deviation;
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
        (bias - at(mean, k, 0.0)) * scale + at(beta, k, 0.0)
    });
}

fn fold_standardise(part: &Part, into: &mut Part) {
    let [_, _, mean, variance] = &part.numbers;
    into.each_row(|_, row, bias| {
        row.iter_mut().zip(mean.iter().zip(variance)).fold(bias, |bias, (w, (&mean, &variance))| {
            let deviation = f64::from(variance).sqrt();
            let scaled = if variance == 0.0 { 0.0 } else { f64::from(*w) / deviation };
            *w = scaled as f32;
            bias - scaled * f64::from(mean)
        })
    });
}

/// The folded net in bytes, with steps measured on `samples`, all of them, which are read as they
/// are stored.
///
/// `Quantise` stands in front of each convolution and dense layer of the blocks in bytes, flattening
/// aside, as the last layer of the block before. In front of block 0 it is that block's first
/// layer. Where samples are bytes, the first of these layers reads them as they are: the net's
/// normalisation goes into its weights and bias. That takes padding that is one byte for all
/// channels, or none; else steps are measured there too.
///
/// Weights are `round(w / scale)` with `scale = max |w| / 127` for each filter. Biases are f32, whole
/// numbers of steps of the sums, so that f32 and integers begin with the same number; a filter that
/// is small beside its bias has larger steps, or the sum would not hold the bias.
///
/// # Errors
/// As [`fold`]; settings that make no sense; a residual addition in a block that is to be bytes; activations that are not finite; samples of another
/// shape than the net takes; what the device says.
pub fn quantise<D: Device, S: Source>(
    device: &D,
    model: &Model<'_>,
    samples: &mut S,
    settings: &Settings<'_>,
) -> Result<Export, ExportError> {
    let Settings { floats, quantile } = *settings;
    if !(quantile > 0.5 && quantile <= 1.0) {
        return Err(ExportError::Quantile { quantile });
    }
    if samples.is_empty() {
        return Err(ExportError::Empty);
    }
    let blocks = model.net.blocks.len();
    if let Some(&block) = floats.iter().find(|&&block| usize::from(block) >= blocks) {
        return Err(ExportError::Block { block, blocks });
    }
    let mut folded = folded(model)?;
    let mut input = model.net.input;
    let float = |block: usize| floats.iter().any(|&float| usize::from(float) == block);
    let adds = |block: &Vec<Part>| block.iter().any(|p| matches!(p.layer, Layer::Residual(_)));
    if let Some(block) = (0..).zip(&folded).find(|&(at, block)| !float(at) && adds(block)) {
        return Err(ExportError::Residual { block: block.0 });
    }
    let bytes = match samples.is_u8() && !float(0) {
        true => read_bytes(&mut input, folded.first_mut().map_or(&mut [], |block| block)),
        false => None,
    };
    let net = Export::new(input, model.net.features, folded)?;
    let points = points(&net.model().net, float);
    let steps = steps(device, &net, samples, bytes, &points, quantile)?;
    let folded = parts(&net.model())?;
    net.assemble(folded, &points, &steps)
}

/// A layer that multiplies bytes, and the one in front of which its steps stand.
#[derive(Clone, Copy)]
struct Point {
    layer: usize,
    steps: usize,
}

/// All of them, in order.
fn points(net: &Net<'_>, float: impl Fn(usize) -> bool) -> Vec<Point> {
    let blocks = (0..net.blocks.len()).filter(|&block| !float(block));
    let layers = blocks.filter_map(|block| net.block(block)).flat_map(|(first, last)| first..last);
    let products =
        layers.filter(|&at| matches!(net.layers.get(at), Some(Layer::Conv2d(_) | Layer::Dense(_))));
    products
        .map(|layer| {
            let before = net.layers.iter().take(layer).rev();
            let flat = before.take_while(|l| matches!(l, Layer::Flatten(_) | Layer::Dropout(_)));
            Point { layer, steps: layer - flat.count() }
        })
        .collect()
}

/// Makes the net read raw bytes as they are, where its first layers allow it.
fn read_bytes(input: &mut Input, block: &mut [Part]) -> Option<Quantise> {
    let shape = input.shape;
    let first = block.iter_mut().find(|part| !matches!(part.layer, Layer::Flatten(_)))?;
    let padded = match first.layer {
        Layer::Conv2d(conv) => conv.pad != (0, 0),
        Layer::Dense(_) => false,
        _ => return None,
    };
    let affine = |channel| input.normalisation.affine(channel, shape.c as usize, true);
    let zero = if padded { padding(shape, affine)? } else { 0 };
    // A deviation of 1 keeps this product as it is: the backend compares it with the steps.
    let steps = Quantise { zero, ..Quantise::BYTES };
    let mean = f32::from(zero) * steps.scale;
    // x = raw factor + summand = y gain + offset with the new input y = raw / 255 - mean.
    let channel = |channel: usize| {
        let (factor, summand) = affine(channel);
        let gain = f64::from(factor) / f64::from(steps.scale);
        (gain, f64::from(summand) + gain * f64::from(mean))
    };
    let (layer, plane) = (first.layer, shape.plane().max(1) as usize);
    first.each_row(|k, row, bias| {
        row.iter_mut().enumerate().fold(bias, |bias, (at, w)| {
            let (gain, offset) = channel(match layer {
                Layer::Conv2d(conv) => read_by(conv, shape, k) + at / taps(conv),
                _ => at / plane,
            });
            let old = f64::from(*w);
            *w = (old * gain) as f32;
            bias + old * offset
        })
    });
    input.normalisation = Normalisation::scalar(mean, 1.0);
    Some(steps)
}

/// The byte that 0 is nearest to, where that is one for all channels.
fn padding(shape: Shape, affine: impl Fn(usize) -> (f32, f32)) -> Option<u8> {
    let byte = |channel: u32| {
        let (factor, summand) = affine(channel as usize);
        (-summand / factor).round()
    };
    let first = byte(0);
    let one = (0..shape.c).all(|channel| byte(channel) == first);
    (one && (0.0..=255.0).contains(&first)).then_some(first as u8)
}

/// The first channel that filter `k` reads.
fn read_by(conv: Conv2d, x: Shape, k: usize) -> usize {
    let groups = conv.groups.max(1);
    let (filters, channels) = ((conv.filters / groups).max(1), x.c / groups);
    k / filters as usize * channels as usize
}

fn taps(conv: Conv2d) -> usize {
    (usize::from(conv.kernel.0) * usize::from(conv.kernel.1)).max(1)
}

/// The steps in front of each point, and what was measured there.
fn steps<D: Device, S: Source>(
    device: &D,
    net: &Export,
    samples: &mut S,
    bytes: Option<Quantise>,
    points: &[Point],
    quantile: f64,
) -> Result<Vec<(Quantise, Option<Range>)>, ExportError> {
    let model = net.model();
    let mut reached: Option<Features> = None;
    let mut steps = Vec::new();
    for point in points {
        if let (0, Some(bytes)) = (point.steps, bytes) {
            steps.push((bytes, None));
            continue;
        }
        let features = match &mut reached {
            Some(before) => Features::new(device, &model, before, point.steps)?,
            None => Features::new(device, &model, samples, point.steps)?,
        };
        let nothing = ExportError::Activation { layer: point.steps };
        let mut numbers = features.data().to_vec();
        if !numbers.iter().all(|x| x.is_finite()) {
            return Err(nothing);
        }
        reached = Some(features);
        let last = numbers.len().checked_sub(1).ok_or(ExportError::Empty)?;
        let mut of = |share: f64| {
            let at = ((last as f64 * share).round() as usize).min(last);
            *numbers.select_nth_unstable_by(at, f32::total_cmp).1
        };
        let full = (of(0.0), of(1.0));
        let kept = (of(1.0 - quantile), of(quantile));
        let layer = point.steps + steps.len();
        steps.push((Quantise::range(kept.0, kept.1), Some(Range { layer, full, kept })));
    }
    Ok(steps)
}

impl Export {
    /// The net with `steps` in front of its `points`, whose weights become i8.
    fn assemble(
        &self,
        folded: Vec<Vec<Part>>,
        points: &[Point],
        steps: &[(Quantise, Option<Range>)],
    ) -> Result<Self, ExportError> {
        let steps_at = |at: usize| {
            let mut all = points.iter().zip(steps);
            all.find(|(point, _)| point.steps == at).map(|(_, (steps, _))| *steps)
        };
        let reads = |at: usize| {
            let mut all = points.iter().zip(steps);
            all.find(|(point, _)| point.layer == at).map(|(_, (steps, _))| *steps)
        };
        let mut at = 0;
        let mut blocks = Vec::new();
        for (block, parts) in folded.into_iter().enumerate() {
            let mut done = Vec::new();
            if let (0, Some(steps)) = (block, steps_at(0)) {
                done.push(Part::plain(Layer::Quantise(steps)));
            }
            for mut part in parts {
                if let Some(reads) = reads(at) {
                    narrow(&mut part, reads);
                }
                done.push(part);
                at += 1;
                if let Some(steps) = steps_at(at) {
                    done.push(Part::plain(Layer::Quantise(steps)));
                }
            }
            blocks.push(done);
        }
        let ranges = steps.iter().filter_map(|(_, range)| *range).collect();
        Ok(Self { ranges, ..Self::new(self.input, self.features, blocks)? })
    }
}

/// The largest number of a sum's steps that a bias may be, so that f32 holds it exactly.
const BIAS: f32 = 16_777_216.0;

/// Chooses the scales of weights that multiply bytes in the steps of `reads`, and rounds the biases.
fn narrow(part: &mut Part, reads: Quantise) {
    let Some(rows) = part.rows() else { return };
    let [weight, bias, ..] = &mut part.numbers;
    let len = (weight.len() / rows.max(1)).max(1);
    for (k, row) in weight.chunks(len).enumerate() {
        let largest = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
        let bias = bias.get_mut(k);
        let least = bias.as_ref().map_or(0.0, |bias| bias.abs() / BIAS / reads.scale);
        let scale = (largest / 127.0).max(least);
        // A filter of zeros without bias has any scale.
        let scale = if scale > 0.0 { scale } else { 1.0 };
        if let Some(bias) = bias {
            // As the kernel has it, to the bit.
            let step = reads.scale * scale;
            *bias = (*bias / step).round() * step;
        }
        part.scales.push(scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Dataset, Samples};
    use crate::file::{self, Loaded};
    use crate::lenet::{lenet, lenet_layers};
    use crate::vgg::{vgg6, vgg6_layers};
    use sepal_core::backend::Backend;
    use sepal_core::format::{Meta, Storage};
    use sepal_core::layer::{Activation, Dropout, Flatten, MaxPool, Pass, RELU, Standardise};
    use sepal_core::micro::{Micro, OnMicro};
    use sepal_core::reference::OnReference;
    use sepal_core::rng::{Purpose, Rng};

    /// By how much a folded net's numbers differ, over the largest of them: rounding.
    const FOLDED: f32 = 2e-6;

    /// The same where the zeros of padding become the nearest byte. Half a byte is a thousandth of
    /// the range.
    const PADDED: f32 = 1e-2;

    /// By how much sums of integers may differ from the same sums in f32, over the largest number:
    /// a few numbers fall to the other side of a boundary between two steps.
    const STEPS: f32 = 2e-2;

    fn normal(seed: u64) -> Rng {
        Rng::new(seed, Purpose::Sample, 0, 0)
    }

    /// Weights of a net, with norms that were measured on something.
    fn weights(net: &Net<'_>, seed: u64) -> Vec<f32> {
        let mut rng = normal(seed);
        let mut weights = vec![0.0; net.params(net.layers.len()).unwrap()];
        sepal_core::init::weights(net, seed, &mut weights);
        for (at, layer) in net.layers.iter().enumerate() {
            let (first, last) = (net.params(at).unwrap(), net.params(at + 1).unwrap());
            let variances = layer.tensors(net.shape(at).unwrap()).unwrap().variance as usize;
            for (i, w) in weights[first..last].iter_mut().enumerate() {
                if i + variances >= last - first && variances > 0 {
                    // One never changed.
                    let still = i == last - first - 1 && matches!(layer, Layer::Standardise(_));
                    *w = if still { 0.0 } else { 0.1 + rng.uniform() };
                } else {
                    *w += 0.1 * rng.normal();
                }
            }
        }
        weights
    }

    fn model<'m>(net: Net<'m>, weights: &'m [f32]) -> Model<'m> {
        Model { net, weights: Weights::Flat(weights) }
    }

    fn bytes(shape: Shape, count: u32) -> Dataset {
        let mut rng = normal(9);
        let len = shape.sample().unwrap() * count;
        let data = (0..len).map(|_| rng.below(256) as u8).collect();
        let names = vec!["a".to_owned(), "b".to_owned()];
        let labels = (0..count).map(|i| (i % 2) as u16).collect();
        Dataset::new(shape, Samples::U8(data), labels, names).unwrap()
    }

    fn run<D: Device>(device: &D, model: &Model<'_>, set: &Dataset, last: usize) -> Vec<f32> {
        Features::new(device, model, &mut &*set, last).unwrap().data().to_vec()
    }

    #[track_caller]
    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= tolerance * most, "{off} of {most}");
    }

    const fn input(c: u32, h: u32, w: u32) -> Input {
        Input { shape: Shape::new(1, c, h, w), normalisation: Normalisation::scalar(0.286, 0.353) }
    }

    /// Everything that is folded, and what is not: a norm in front, one behind an activation, one that
    /// begins a block, standardisation in front of something else, a block that is a dropout.
    const MIXED: Net<'static> = Net {
        input: input(2, 9, 7),
        layers: &[
            Layer::BatchNorm(BatchNorm::new()),
            Layer::Conv2d(Conv2d { groups: 2, pad: (1, 1), ..Conv2d::new(4, 3) }),
            Layer::Dropout(Dropout { rate: 0.5 }),
            Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
            RELU,
            Layer::BatchNorm(BatchNorm::new()),
            Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(3, 3) }),
            Layer::BatchNorm(BatchNorm::new()),
            Layer::Dropout(Dropout { rate: 0.5 }),
            Layer::Standardise(Standardise),
            RELU,
            Layer::Standardise(Standardise),
            Layer::Flatten(Flatten),
            Layer::Dropout(Dropout { rate: 0.5 }),
            Layer::Dense(Dense { units: 5, bias: false }),
            Layer::BatchNorm(BatchNorm::new()),
            Layer::Dense(Dense::new(3)),
        ],
        blocks: &[5, 7, 8, 9, 10, 16, 17],
        features: 4,
    };

    /// Layers go from around and within what is added, and the sums stay what they were.
    #[test]
    fn additions_find_what_they_add_when_layers_go() {
        use sepal_core::layer::Residual;
        let conv = |filters| Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) });
        let (norm, add) =
            (Layer::BatchNorm(BatchNorm::new()), |back| Layer::Residual(Residual::new(back)));
        let drop = Layer::Dropout(Dropout { rate: 0.5 });
        let layers = [
            conv(3),
            drop,
            norm,
            RELU,
            drop,
            conv(3),
            norm,
            drop,
            add(4),
            RELU,
            conv(3),
            norm,
            add(1),
            conv(3),
            norm,
            add(2),
            Layer::Standardise(Standardise),
            Layer::Flatten(Flatten),
            Layer::Dense(Dense::new(75)),
            add(1),
            Layer::Dense(Dense::new(2)),
        ];
        let net = Net {
            input: Input { shape: Shape::new(1, 2, 5, 5), normalisation: Normalisation::NONE },
            layers: &layers,
            blocks: &[16, 21],
            features: 1,
        };
        assert_eq!(net.check(), Ok(()));
        let mut weights = vec![0.0; net.params(layers.len()).unwrap()];
        assert!(sepal_core::init::weights(&net, 3, &mut weights));
        // What was measured is not what norms begin with.
        for (at, layer) in layers.iter().enumerate() {
            if matches!(layer, Layer::BatchNorm(_) | Layer::Standardise(_)) {
                let range = net.params(at).unwrap()..net.params(at + 1).unwrap();
                (0u8..)
                    .zip(&mut weights[range])
                    .for_each(|(i, w)| *w = 0.3 + f32::from(i % 5) * 0.2);
            }
        }
        let model = Model { net, weights: Weights::Flat(&weights) };
        let folded = fold(&model).unwrap();
        let names: Vec<_> = folded.layers().iter().map(Layer::name).collect();
        let expected = [
            "conv2d",
            "relu",
            "conv2d",
            "residual",
            "relu",
            "conv2d",
            "batch_norm",
            "residual",
            "conv2d",
            "residual",
            "standardise",
            "flatten",
            "dense",
            "residual",
            "dense",
        ];
        assert_eq!(names, expected);
        let run = |model: &Model<'_>| {
            use sepal_core::infer::Inference;
            use sepal_core::reference::Reference;
            let plan = Inference::reference(model.net, 1).unwrap();
            let mut memory = vec![Word::NAN; plan.bytes() / Word::BYTES];
            let mut y = [0.0; 2];
            let fill =
                |raw: &mut [u8]| (0u8..).zip(raw).for_each(|(i, raw)| *raw = i.wrapping_mul(37));
            plan.run(&mut Reference::new(&mut memory), model, 1, fill, &mut y).unwrap();
            y
        };
        let (before, after) = (run(&model), run(&folded.model()));
        for (before, after) in before.iter().zip(after) {
            assert!((before - after).abs() < 1e-3 * before.abs().max(1.0), "{before} {after}");
        }
    }

    #[test]
    fn a_folded_net_is_the_same_net_block_by_block() {
        let (lenet_layers, vgg_layers) = (lenet_layers(10), vgg6_layers(10));
        let nets = [
            (MIXED, 12, &[3, 5, 6, 7, 8, 11, 12][..]),
            (lenet(&lenet_layers, input(1, 28, 28)), 12, &[3, 6, 9, 11, 12]),
            (vgg6(&vgg_layers, input(1, 16, 16)), 17, &[2, 5, 7, 10, 12, 15, 17]),
        ];
        for (net, layers, blocks) in nets {
            let weights = weights(&net, 3);
            let (wide, set) = (model(net, &weights), bytes(net.input.shape, 8));
            let folded = fold(&wide).unwrap();
            let narrow = folded.model();
            assert_eq!((narrow.net.layers.len(), narrow.net.blocks), (layers, blocks));
            assert_eq!((narrow.net.features, narrow.net.input), (net.features, net.input));
            assert!(!narrow.weights.is_narrow());
            for block in 0..blocks.len() {
                let ends = [net, narrow.net].map(|net| net.block(block).unwrap().1);
                let expected = run(&OnReference, &wide, &set, ends[0]);
                close(&run(&OnReference, &narrow, &set, ends[1]), &expected, FOLDED);
            }
            // What is folded stays as it is.
            assert_eq!(fold(&narrow).unwrap().layers(), folded.layers());
        }
    }

    const fn first(layer: Layer, input: Input) -> (Layer, Input) {
        (layer, input)
    }

    #[test]
    fn raw_bytes_are_read_as_they_are_where_the_normalisation_allows_it() {
        let pad = |pad| Layer::Conv2d(Conv2d { pad, ..Conv2d::new(4, 3) });
        let grouped = Layer::Conv2d(Conv2d { groups: 2, bias: false, ..Conv2d::new(4, 3) });
        let colours = Normalisation { mean: [0.1, 0.5, 0.3, 0.2], std: [0.2, 0.3, 0.25, 1.0] };
        let alike = Normalisation { mean: [0.2, 0.2, 0.2, 0.2], std: [0.2, 0.3, 0.25, 0.1] };
        let of = |c, normalisation| Input { normalisation, ..input(c, 6, 5) };
        let outside = Normalisation::scalar(-0.2, 1.0);
        let cases = [
            (first(pad((0, 0)), input(1, 6, 5)), Some((0, FOLDED))),
            (first(pad((0, 0)), of(3, colours)), Some((0, FOLDED))),
            (first(grouped, of(4, colours)), Some((0, FOLDED))),
            (
                first(Layer::Dense(Dense { units: 3, bias: false }), of(3, colours)),
                Some((0, FOLDED)),
            ),
            (first(pad((1, 1)), input(2, 6, 5)), Some((73, PADDED))),
            (first(pad((1, 0)), of(4, alike)), Some((51, PADDED))),
            (first(pad((1, 1)), of(3, colours)), None),
            (first(pad((1, 1)), of(1, outside)), None),
            (first(Layer::MaxPool(MaxPool::new(2)), input(1, 6, 5)), None),
        ];
        for ((layer, input), expected) in cases {
            let layers = [layer, Layer::Flatten(Flatten), Layer::Dense(Dense::new(3))];
            let net = Net { input, layers: &layers, blocks: &[1, 3], features: 1 };
            let weights = weights(&net, 5);
            let (wide, set) = (model(net, &weights), bytes(input.shape, 6));
            let mut blocks = folded(&wide).unwrap();
            let mut normalised = input;
            let steps = read_bytes(&mut normalised, &mut blocks[0]);
            assert_eq!(steps.map(|steps| steps.zero), expected.map(|(zero, _)| zero), "{layer:?}");
            if let Some((_, tolerance)) = expected {
                let raw = Export::new(normalised, 1, blocks).unwrap();
                let wanted = run(&OnReference, &wide, &set, 3);
                close(&run(&OnReference, &raw.model(), &set, 3), &wanted, tolerance);
            } else {
                assert_eq!(normalised, input);
            }
            let all = quantise(&OnReference, &wide, &mut &set, &Settings::default()).unwrap();
            let direct = Micro::<true>::new(&mut []).takes_bytes(&all.model().net, Pass::Narrow);
            assert_eq!(direct, expected.is_some(), "{layer:?}");
            close(
                &run(&OnMicro, &all.model(), &set, all.layers().len()),
                &run(&OnReference, &all.model(), &set, all.layers().len()),
                STEPS,
            );
        }
    }

    /// The names of a net's layers, its blocks' ends, and which weights are bytes.
    fn form(export: &Export) -> (String, &[u16], String) {
        let names: Vec<&str> = export.layers().iter().map(Layer::name).collect();
        let dtypes = export.records.iter().filter(|r| r.role == Role::Weight).map(|r| r.dtype);
        let narrow = dtypes.map(|dtype| if dtype == Dtype::I8 { 'b' } else { 'f' }).collect();
        (names.join(" "), &export.blocks, narrow)
    }

    #[test]
    fn steps_end_the_block_before_and_blocks_in_f32_have_none() {
        let layers = lenet_layers(10);
        let net = lenet(&layers, input(1, 28, 28));
        let weights = weights(&net, 1);
        let (wide, set) = (model(net, &weights), bytes(net.input.shape, 4));
        let logits = run(&OnReference, &wide, &set, 15);
        let conv = "conv2d relu max_pool";
        let cases: [(&[u16], String, &[u16], &str); 5] = [
            (
                &[],
                format!(
                    "quantise {conv} quantise {conv} quantise flatten dense relu quantise \
                     dense relu quantise dense"
                ),
                &[5, 9, 13, 16, 17],
                "bbbbb",
            ),
            (
                &[0],
                format!(
                    "{conv} quantise {conv} quantise flatten dense relu quantise dense relu \
                     quantise dense"
                ),
                &[4, 8, 12, 15, 16],
                "fbbbb",
            ),
            (
                &[1],
                format!(
                    "quantise {conv} {conv} quantise flatten dense relu quantise dense relu \
                     quantise dense"
                ),
                &[4, 8, 12, 15, 16],
                "bfbbb",
            ),
            (
                &[2, 3, 4],
                format!("quantise {conv} quantise {conv} flatten dense relu dense relu dense"),
                &[5, 8, 11, 13, 14],
                "bbfff",
            ),
            (
                &[4, 0, 1, 2, 3],
                format!("{conv} {conv} flatten dense relu dense relu dense"),
                &[3, 6, 9, 11, 12],
                "fffff",
            ),
        ];
        for (floats, names, blocks, narrow) in cases {
            let settings = Settings { floats, ..Settings::default() };
            let export = quantise(&OnReference, &wide, &mut &set, &settings).unwrap();
            assert_eq!(form(&export), (names, blocks, narrow.to_owned()), "{floats:?}");
            let rounds = |at: usize| matches!(export.layers()[at], Layer::Quantise(_));
            assert!(export.ranges().iter().all(|range| rounds(range.layer)));
            let found = run(&OnMicro, &export.model(), &set, export.layers().len());
            close(&found, &logits, 0.2);
            close(&found, &run(&OnReference, &export.model(), &set, export.layers().len()), STEPS);
            // The raw bytes' normalisation stays where they are not read as they are.
            assert_eq!(export.input == net.input, floats.contains(&0));
        }
    }

    #[test]
    fn what_no_kernel_joins_runs_beside_the_bytes() {
        let layers = [
            Layer::Conv2d(Conv2d::new(4, 3)),
            Layer::Activation(Activation::LeakyRelu { slope: 0.1 }),
            Layer::Conv2d(Conv2d::new(4, 3)),
            Layer::Activation(Activation::Tanh),
            Layer::MaxPool(MaxPool {
                window: Conv2d { stride: (1, 1), ..Conv2d::new(1, 2) }.window(),
            }),
            Layer::Conv2d(Conv2d::new(3, 1)),
            Layer::BatchNorm(BatchNorm::new()),
            Layer::Dense(Dense::new(3)),
        ];
        let net = Net { input: input(1, 9, 9), layers: &layers, blocks: &[6, 8], features: 1 };
        let weights = weights(&net, 2);
        let (wide, set) = (model(net, &weights), bytes(net.input.shape, 4));
        let export = quantise(&OnReference, &wide, &mut &set, &Settings::default()).unwrap();
        let (names, ..) = form(&export);
        // The norm begins a block.
        let expected = "quantise conv2d leaky_relu quantise conv2d tanh max_pool quantise conv2d \
                        batch_norm quantise dense";
        assert_eq!(names, expected);
        let last = export.layers().len();
        let found = run(&OnMicro, &export.model(), &set, last);
        close(&found, &run(&OnReference, &export.model(), &set, last), STEPS);
        close(&found, &run(&OnReference, &wide, &set, 8), 0.1);
    }

    /// A filter without weights still gives its bias, and the others are within half a step.
    #[test]
    fn weights_are_within_half_a_step_and_biases_whole_steps() {
        let mut part = Part::plain(Layer::Dense(Dense::new(4)));
        let weights = [0.5, -1.27, 0.0, 0.0, 1e-9, 0.0, 0.0, 0.0];
        part.numbers = [weights.to_vec(), vec![0.3, -4.0, 5.0, 0.0], Vec::new(), Vec::new()];
        let reads = Quantise { scale: 0.02, zero: 3 };
        narrow(&mut part, reads);
        let scales = part.scales.clone();
        assert_eq!((scales[0], scales[3]), (1.27 / 127.0, 1.0));
        for (bias, (expected, scale)) in
            part.numbers[1].iter().zip([0.3f32, -4.0, 5.0, 0.0].iter().zip(&scales))
        {
            let step = reads.scale * scale;
            assert!((bias - expected).abs() <= step / 2.0, "{bias} {expected}");
            assert!((bias / step).abs() <= BIAS && (bias / step).fract() == 0.0, "{bias} {step}");
        }
        let export = Export::new(input(1, 1, 2), 0, vec![vec![part]]).unwrap();
        let model = export.model();
        let [stored, ..] = model.weights.layer(&model.net, 0);
        let mut wide = [0.0; 8];
        assert!(stored.widen(&mut wide));
        for ((w, wide), scale) in weights.iter().zip(wide).zip(scales.iter().flat_map(|s| [s, s])) {
            assert!((w - wide).abs() <= scale / 2.0 * (1.0 + 1e-6), "{w} {wide}");
        }
        assert_eq!(wide[..2], [0.5, -1.27]);
    }

    #[test]
    fn a_quantile_cuts_off_what_is_rare() {
        // One sample is ten times as bright.
        let data: Vec<f32> =
            (0..200).map(|i| if i == 77 { 10.0 } else { i as f32 / 200.0 }).collect();
        let names = vec!["a".to_owned()];
        let set = Dataset::new(Shape::rows(1, 1), Samples::F32(data), vec![0; 200], names).unwrap();
        let layers = [Layer::Dense(Dense::new(2))];
        let input = Input { shape: Shape::rows(1, 1), normalisation: Normalisation::NONE };
        let net = Net { input, layers: &layers, blocks: &[1], features: 0 };
        let weights = weights(&net, 1);
        let wide = model(net, &weights);
        for (quantile, high) in [(1.0, 10.0), (0.99, 0.985)] {
            let settings = Settings { quantile, ..Settings::default() };
            let export = quantise(&OnReference, &wide, &mut &set, &settings).unwrap();
            let [range] = export.ranges() else { panic!("numbers are measured") };
            assert_eq!((range.layer, range.full), (0, (0.0, 10.0)));
            assert!((range.kept.1 - high).abs() < 0.01, "{range:?}");
            assert_eq!(
                export.layers()[0],
                Layer::Quantise(Quantise::range(range.kept.0, range.kept.1))
            );
        }
    }

    #[test]
    fn a_file_holds_the_same_model() {
        let layers = lenet_layers(10);
        let net = lenet(&layers, input(1, 28, 28));
        let weights = weights(&net, 1);
        let (wide, set) = (model(net, &weights), bytes(net.input.shape, 4));
        let int8 = quantise(&OnReference, &wide, &mut &set, &Settings::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("int8.sepal");
        file::save(&path, &int8.model(), &Meta::NONE).unwrap();
        let loaded = Loaded::open(&path).unwrap();
        assert_eq!(loaded.model().net, int8.model().net);
        let last = int8.layers().len();
        let found = run(&OnMicro, &loaded.model(), &set, last);
        assert_eq!(found, run(&OnMicro, &int8.model(), &set, last));
        let bytes = loaded.bytes().len();

        let folded = fold(&wide).unwrap();
        let meta = Meta { storage: Storage::F16, ..Meta::NONE };
        file::save(&path, &folded.model(), &meta).unwrap();
        let halves = Loaded::open(&path).unwrap();
        assert_eq!(halves.model().net, folded.model().net);
        // 61,470 weights.
        assert!(halves.bytes().len() - bytes > 60_000 && halves.bytes().len() < 125_000);
        let found = run(&OnMicro, &halves.model(), &set, 12);
        close(&found, &run(&OnReference, &folded.model(), &set, 12), 2e-3);
        // What was narrow is folded as what it stands for.
        assert_eq!(fold(&halves.model()).unwrap().layers(), folded.layers());
        let again = fold(&int8.model()).unwrap_err();
        assert_eq!(again, ExportError::Quantised { layer: 0 });
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let layers = lenet_layers(10);
        let net = lenet(&layers, input(1, 28, 28));
        let weights = weights(&net, 1);
        let set = bytes(net.input.shape, 4);
        let refused = |weights: &[f32], set: &Dataset, settings: Settings<'_>| {
            quantise(&OnReference, &model(net, weights), &mut &*set, &settings).unwrap_err()
        };
        let settings = Settings::default();
        for quantile in [0.5, 1.1, f64::NAN] {
            let error = refused(&weights, &set, Settings { quantile, ..settings });
            assert!(matches!(error, ExportError::Quantile { .. }), "{error}");
        }
        let error = refused(&weights, &set, Settings { floats: &[1, 5], ..settings });
        assert_eq!(error, ExportError::Block { block: 5, blocks: 5 });
        let error = refused(&weights, &bytes(Shape::new(1, 1, 8, 8), 2), settings);
        assert!(matches!(error, ExportError::Run(Error::Sample { .. })), "{error}");
        let mut broken = weights.clone();
        broken[3] = f32::NAN;
        let error = refused(&broken, &set, settings);
        assert_eq!(error, ExportError::Parameter { layer: 0, role: Role::Weight });
        let large: Vec<f32> = weights.iter().map(|w| w * 1e20).collect();
        let error = refused(&large, &set, settings);
        assert!(matches!(error, ExportError::Activation { .. }), "{error}");
        let error = refused(&weights[..100], &set, settings);
        assert!(matches!(error, ExportError::Run(Error::Weights { .. })), "{error}");
        // Sums are of numbers: their blocks stay in f32.
        let layers = crate::width::scaled(crate::resnet::resnet8_layers(10), 25);
        let sums = crate::resnet::resnet8(&layers, input(1, 28, 28));
        let drawn = self::weights(&sums, 1);
        let export = |floats| {
            let settings = Settings { floats, ..settings };
            quantise(&OnReference, &model(sums, &drawn), &mut &set, &settings)
        };
        assert_eq!(export(&[2, 3]).unwrap_err(), ExportError::Residual { block: 1 });
        assert!(export(&[1, 2, 3]).is_ok());
        let none = Net { blocks: &[4], ..net };
        assert!(matches!(fold(&model(none, &weights)), Err(ExportError::Run(_))));
        for error in [
            ExportError::Empty,
            ExportError::Quantised { layer: 7 },
            ExportError::Block { block: 7, blocks: 5 },
            ExportError::Activation { layer: 7 },
            ExportError::Parameter { layer: 7, role: Role::Mean },
        ] {
            let text = error.to_string();
            assert!(text.contains('7') || error == ExportError::Empty, "{text}");
        }
    }
}
