//! Nets and their weights: both borrowed, so a net may be a constant of the program, a part of a
//! model file, or something grown at run time.

use crate::arena::Dtype;
use crate::layer::{Layer, Role, Tensors};
use crate::plan::{Chain, PlanError, tri};
use crate::shape::Shape;

/// What happens to a raw sample before the first layer.
///
/// `x = (raw / s - mean[c]) / std[c]` with s = 255 for bytes and 1 for numbers. Nets of up to
/// four channels use entry c for channel c, others entry 0 for all.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Normalisation {
    /// Subtracted.
    pub mean: [f32; 4],
    /// Divided by.
    pub std: [f32; 4],
}

impl Normalisation {
    /// Nothing but the scale of bytes.
    pub const NONE: Self = Self { mean: [0.0; 4], std: [1.0; 4] };

    /// Bytes as the numbers that they are, 0 to 255, such as an
    /// [`Embedding`](crate::layer::Embedding) reads; numbers are multiplied by 255.
    ///
    /// ```
    /// assert_eq!(sepal_core::net::Normalisation::BYTES.affine(0, 1, true), (1.0, 0.0));
    /// ```
    pub const BYTES: Self = Self::scalar(0.0, 1.0 / 255.0);

    /// The same mean and deviation for all channels.
    pub const fn scalar(mean: f32, std: f32) -> Self {
        Self { mean: [mean; 4], std: [std; 4] }
    }

    /// The factor and the summand of channel `c` of `channels`: `x = raw * factor + summand`.
    pub const fn affine(&self, c: usize, channels: usize, bytes: bool) -> (f32, f32) {
        let entry = if channels <= 4 { c } else { 0 };
        let (mean, std) = if entry < 4 { (self.mean[entry], self.std[entry]) } else { (0.0, 1.0) };
        let scale = if bytes { 255.0 } else { 1.0 };
        (1.0 / (scale * std), -mean / std)
    }
}

/// What a net takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Input {
    /// One sample, `n == 1`.
    pub shape: Shape,
    /// How raw values are scaled.
    pub normalisation: Normalisation,
}

/// An architecture: layers in a row, cut into blocks.
///
/// ```
/// use sepal_core::layer::{BatchNorm, Conv2d, Dense, Layer, MaxPool, RELU, Window};
/// use sepal_core::net::{Input, Net, Normalisation};
/// use sepal_core::shape::Shape;
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::new(1, 1, 28, 28), normalisation: Normalisation::NONE },
///     layers: &[
///         Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(6, 5) }),
///         Layer::BatchNorm(BatchNorm::new()),
///         RELU,
///         Layer::MaxPool(MaxPool { window: Window::square(2) }),
///         Layer::Dense(Dense { units: 10, bias: true }),
///     ],
///     blocks: &[4, 5],
///     features: 1,
/// };
/// const OUTPUT: Shape = match NET.output() {
///     Ok(shape) => shape,
///     Err(_) => panic!("the layers do not fit each other"),
/// };
/// assert_eq!(OUTPUT, Shape::rows(1, 10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Net<'m> {
    /// What it takes.
    pub input: Input,
    /// The layers.
    pub layers: &'m [Layer],
    /// Where each block ends: one past its last layer. Ascending; the last is the net's length.
    pub blocks: &'m [u16],
    /// How many leading blocks compute features; the others are the classifier.
    pub features: u16,
}

impl<'m> Net<'m> {
    /// The shape that reaches layer `at` for one sample; the output's for the number of layers.
    ///
    /// # Errors
    /// The first layer that cannot take its input.
    pub const fn shape(&self, at: usize) -> Result<Shape, PlanError> {
        Chain::new(self.layers).shape(self.input.shape, at)
    }

    /// The shape of one sample's output.
    ///
    /// # Errors
    /// The first layer that cannot take its input.
    pub const fn output(&self) -> Result<Shape, PlanError> {
        self.shape(self.layers.len())
    }

    /// Checks that the layers fit each other, that blocks ascend and cover all layers, and that no
    /// residual addition reaches out of its block.
    ///
    /// # Errors
    /// What does not fit.
    pub const fn check(&self) -> Result<(), PlanError> {
        let layers = self.layers.len();
        let mut first = 0;
        let mut i = 0;
        while i < self.blocks.len() {
            let last = self.blocks[i] as usize;
            if last <= first || last > layers {
                return Err(PlanError::Range { first, last, layers });
            }
            first = last;
            i += 1;
        }
        if first != layers || self.features as usize > self.blocks.len() || self.input.shape.n != 1
        {
            return Err(PlanError::Range { first, last: self.features as usize, layers });
        }
        tri!(self.output());
        let (mut shape, mut i) = (self.input.shape, 0);
        while let Some((first, last)) = self.block(i) {
            let chain = tri!(self.chain(first, last));
            match chain.check(shape) {
                Err(PlanError::Source { layer, back }) => {
                    return Err(PlanError::Source { layer: first + layer, back });
                }
                Err(PlanError::Sum { layer, input, source }) => {
                    return Err(PlanError::Sum { layer: first + layer, input, source });
                }
                Err(PlanError::Sources { layer }) => {
                    return Err(PlanError::Sources { layer: first + layer });
                }
                other => tri!(other),
            }
            shape = tri!(chain.shape(shape, chain.len()));
            i += 1;
        }
        Ok(())
    }

    /// The layers of block `index`, first and one past the last.
    pub const fn block(&self, index: usize) -> Option<(usize, usize)> {
        if index >= self.blocks.len() {
            return None;
        }
        let first = if index == 0 { 0 } else { self.blocks[index - 1] as usize };
        Some((first, self.blocks[index] as usize))
    }

    /// Where the features end and the classifier begins: one past the last feature layer.
    pub const fn features_end(&self) -> usize {
        match (self.features as usize).checked_sub(1) {
            Some(last) if last < self.blocks.len() => self.blocks[last] as usize,
            _ => 0,
        }
    }

    /// Layers `first..last`.
    ///
    /// # Errors
    /// A range that is not within the net.
    pub const fn chain(&self, first: usize, last: usize) -> Result<Chain<'m>, PlanError> {
        if first > last || last > self.layers.len() {
            return Err(PlanError::Range { first, last, layers: self.layers.len() });
        }
        let (head, _) = self.layers.split_at(last);
        let (_, body) = head.split_at(first);
        Ok(Chain::new(body))
    }

    /// Numbers that all parameters of layers `..last` take together.
    ///
    /// # Errors
    /// A layer that cannot take its input, or more than the address space holds.
    pub const fn params(&self, last: usize) -> Result<usize, PlanError> {
        let mut shape = self.input.shape;
        let mut total = 0usize;
        let mut i = 0;
        while i < last {
            if i >= self.layers.len() {
                return Err(PlanError::Range { first: 0, last, layers: self.layers.len() });
            }
            let layer = &self.layers[i];
            let (Some(tensors), Some(out)) = (layer.tensors(shape), layer.output(shape)) else {
                return Err(PlanError::Shape { layer: i, input: shape });
            };
            total = match total.checked_add(tensors.total() as usize) {
                Some(total) => total,
                None => return Err(PlanError::Overflow { layer: i }),
            };
            shape = out;
            i += 1;
        }
        Ok(total)
    }
}

/// One stored tensor, read where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'m> {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Little-endian elements.
    pub bytes: &'m [u8],
    /// For [`Dtype::I8`]: f32 scales, one for each output channel; the element is q * scale.
    pub scales: &'m [u8],
}

impl<'m> Stored<'m> {
    /// No elements.
    pub const EMPTY: Self = Self { dtype: Dtype::F32, bytes: &[], scales: &[] };

    /// The elements in place, where they are aligned f32.
    pub fn as_f32(&self) -> Option<&'m [f32]> {
        match self.dtype {
            // An empty slice has no address that could be aligned.
            Dtype::F32 if self.bytes.is_empty() => Some(&[]),
            Dtype::F32 if cfg!(target_endian = "little") => {
                bytemuck::try_cast_slice(self.bytes).ok()
            }
            _ => None,
        }
    }

    /// The elements in place, where they are i8.
    pub fn as_i8(&self) -> Option<&'m [i8]> {
        (self.dtype == Dtype::I8).then(|| bytemuck::cast_slice(self.bytes))
    }

    /// Element `at` of f32, which may lie at any address.
    pub fn number(&self, at: usize) -> Option<f32> {
        let bytes = self.bytes.as_chunks::<4>().0.get(at)?;
        (self.dtype == Dtype::F32).then(|| f32::from_le_bytes(*bytes))
    }

    /// Row `at` of `rows` equal ones; empty where that does not cut scales evenly.
    pub fn row(&self, at: usize, rows: usize) -> Self {
        let part = |bytes: &'m [u8], parts: usize, at: usize| {
            let len = bytes.len().checked_div(parts).unwrap_or(0);
            let first = at.saturating_mul(len);
            bytes.get(first..first.saturating_add(len)).unwrap_or_default()
        };
        let scales = self.scales.len() / size_of::<f32>();
        let scales = match scales.checked_rem(rows) {
            Some(0) => part(self.scales, rows, at),
            // Several rows share a scale.
            _ => match rows.checked_rem(scales) {
                Some(0) => part(self.scales, scales, at / (rows / scales.max(1)).max(1)),
                _ => return Self { bytes: &[], scales: &[], ..*self },
            },
        };
        Self { bytes: part(self.bytes, rows, at), scales, ..*self }
    }

    /// How many elements there are.
    pub const fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes the elements as f32, as many as `out` takes. False where the type is not a
    /// storage type of weights, or the lengths differ; nothing is written then.
    pub fn widen(&self, out: &mut [f32]) -> bool {
        if self.len() != out.len() {
            return false;
        }
        match self.dtype {
            Dtype::F32 => {
                for (o, b) in out.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
                true
            }
            #[cfg(feature = "f16")]
            Dtype::F16 => {
                for (o, b) in out.iter_mut().zip(self.bytes.as_chunks::<2>().0) {
                    *o = half::f16::from_le_bytes(*b).to_f32();
                }
                true
            }
            Dtype::I8 => {
                let scales = self.scales.as_chunks::<4>().0;
                if scales.is_empty() || !out.len().is_multiple_of(scales.len()) {
                    return false;
                }
                let per = (out.len() / scales.len()).max(1);
                let rows = out.chunks_exact_mut(per).zip(self.bytes.chunks_exact(per)).zip(scales);
                for ((out, bytes), scale) in rows {
                    let scale = f32::from_le_bytes(*scale);
                    for (o, &b) in out.iter_mut().zip(bytes) {
                        *o = f32::from(b as i8) * scale;
                    }
                }
                true
            }
            _ => false,
        }
    }
}

/// Where a tensor of a model file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TensorRecord {
    /// The layer that it belongs to.
    pub layer: u16,
    /// Which of its parameters.
    pub role: Role,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its first byte in the weights.
    pub at: u32,
    /// Its length in bytes.
    pub len: u32,
    /// The first byte of its scales.
    pub scales_at: u32,
    /// Their length in bytes; 0 without.
    pub scales_len: u32,
}

/// Numbers in place of the parameters of layers `first..last`: what a block learnt on a device,
/// layer by layer, each its weight, bias, mean and variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patch<'m> {
    /// The first layer.
    pub first: u16,
    /// One past the last.
    pub last: u16,
    /// The parameters of all its layers.
    pub numbers: &'m [f32],
}

impl Patch<'_> {
    /// Whether both are of the same layers.
    pub const fn same_layers(&self, other: &Patch<'_>) -> bool {
        self.first == other.first && self.last == other.last
    }
}

/// The parameters of a net, frozen where they lie.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'m> {
    /// Numbers in memory, layer by layer, each its weight, bias, mean and variance.
    Flat(&'m [f32]),
    /// Tensors of a model file, records sorted by layer and role.
    File {
        /// The tensors.
        records: &'m [TensorRecord],
        /// The weights section.
        blob: &'m [u8],
    },
    /// Other weights, except of the layers that a patch covers: the first that does.
    ///
    /// ```
    /// use sepal_core::layer::{Dense, Layer};
    /// use sepal_core::net::{Input, Net, Normalisation, Patch, Weights};
    /// use sepal_core::shape::Shape;
    ///
    /// const DENSE: Layer = Layer::Dense(Dense { units: 1, bias: false });
    /// let net = Net {
    ///     input: Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE },
    ///     layers: &[DENSE, DENSE],
    ///     blocks: &[1, 2],
    ///     features: 1,
    /// };
    /// let under = Weights::Flat(&[1.0, 2.0, 3.0]);
    /// let patches = [Patch { first: 1, last: 2, numbers: &[4.0] }];
    /// let weights = Weights::Patched { under: &under, patches: &patches };
    /// assert_eq!(weights.layer(&net, 0)[0].as_f32(), Some(&[1.0, 2.0][..]));
    /// assert_eq!(weights.layer(&net, 1)[0].as_f32(), Some(&[4.0][..]));
    /// ```
    Patched {
        /// The other weights.
        under: &'m Weights<'m>,
        /// The patches.
        patches: &'m [Patch<'m>],
    },
}

impl<'m> Weights<'m> {
    /// Whether some weights are stored in another type than aligned f32, so that the reference
    /// needs scratch to widen them ([`Pass::Narrow`](crate::layer::Pass::Narrow)).
    pub fn is_narrow(&self) -> bool {
        match *self {
            Self::Flat(_) => false,
            Self::File { records, .. } => records.iter().any(|r| self.record(r).as_f32().is_none()),
            Self::Patched { under, .. } => under.is_narrow(),
        }
    }

    fn record(&self, r: &TensorRecord) -> Stored<'m> {
        let Self::File { blob, .. } = *self else { return Stored::EMPTY };
        let part = |at: u32, len: u32| {
            let past = (at as usize).checked_add(len as usize);
            past.and_then(|past| blob.get(at as usize..past)).unwrap_or_default()
        };
        Stored { dtype: r.dtype, bytes: part(r.at, r.len), scales: part(r.scales_at, r.scales_len) }
    }

    /// The parameters of layer `layer` of `net`, in the order of [`Role::ALL`]; empty where it
    /// has none or they are not stored.
    pub fn layer(&self, net: &Net<'_>, layer: usize) -> [Stored<'m>; 4] {
        let lengths = net.shape(layer).ok().and_then(|x| net.layers.get(layer)?.tensors(x));
        self.find(layer, lengths.unwrap_or_default(), &|layer| net.params(layer).ok())
    }

    /// The parameters of layer `layer`, which have these lengths. `before` says how many numbers lie
    /// before those of a layer.
    #[inline(never)]
    pub(crate) fn find(
        &self,
        layer: usize,
        lengths: Tensors,
        before: &dyn Fn(usize) -> Option<usize>,
    ) -> [Stored<'m>; 4] {
        match *self {
            Self::Flat(numbers) => flat(numbers, before(layer), lengths),
            Self::Patched { under, patches } => {
                let covers = |p: &&Patch<'_>| (p.first.into()..p.last.into()).contains(&layer);
                let Some(patch) = patches.iter().find(covers) else {
                    return under.find(layer, lengths, before);
                };
                let (first, at) = (before(patch.first.into()), before(layer));
                let at = at.zip(first).and_then(|(at, first)| at.checked_sub(first));
                flat(patch.numbers, at, lengths)
            }
            Self::File { records, .. } => {
                let mut stored = [Stored::EMPTY; 4];
                for record in records.iter().filter(|r| usize::from(r.layer) == layer) {
                    if let Some(stored) = stored.get_mut(record.role as usize) {
                        *stored = self.record(record);
                    }
                }
                stored
            }
        }
    }
}

/// Parameters of these lengths, which begin at number `at`.
#[inline(never)]
fn flat(numbers: &[f32], at: Option<usize>, lengths: Tensors) -> [Stored<'_>; 4] {
    let mut stored = [Stored::EMPTY; 4];
    let mut rest = at.and_then(|at| numbers.get(at..)).unwrap_or_default();
    for (stored, role) in stored.iter_mut().zip(Role::ALL) {
        let Some((head, tail)) = rest.split_at_checked(lengths.len(role) as usize) else { break };
        stored.bytes = bytemuck::cast_slice(head);
        rest = tail;
    }
    stored
}

/// A net with its weights.
#[derive(Clone, Copy, Debug)]
pub struct Model<'m> {
    /// The architecture.
    pub net: Net<'m>,
    /// Its parameters.
    pub weights: Weights<'m>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Dense, RELU};

    #[test]
    fn a_tensor_that_is_not_there_is_used_in_place() {
        assert_eq!(Stored::EMPTY.as_f32(), Some(&[][..]));
    }

    #[test]
    fn patches_cover_their_layers_and_no_others() {
        let dense = |bias| Layer::Dense(Dense { units: 1, bias });
        let layers = [dense(false), RELU, dense(true), dense(true)];
        let net = Net {
            input: Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE },
            layers: &layers,
            blocks: &[1, 4],
            features: 1,
        };
        let under = Weights::Flat(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let of = |patches: &[Patch<'_>], layer| {
            let [weight, bias, ..] = Weights::Patched { under: &under, patches }.layer(&net, layer);
            [weight, bias].map(|stored| stored.as_f32().map(<[f32]>::to_vec).unwrap())
        };
        let patch = |first, last, numbers| Patch { first, last, numbers };
        let both = [patch(1, 4, &[7.0, 8.0, 9.0, 10.0][..]), patch(0, 1, &[11.0, 12.0])];
        for (layer, expected) in [
            (0, [&[11.0, 12.0][..], &[]]),
            (1, [&[], &[]]),
            (2, [&[7.0], &[8.0]]),
            (3, [&[9.0], &[10.0]]),
        ] {
            assert_eq!(of(&both, layer), expected);
        }
        // Only the last layer; another patch of it comes too late.
        let last = [patch(3, 4, &[7.0, 8.0][..]), patch(3, 4, &[9.0, 9.0])];
        assert_eq!(of(&last, 2), [[3.0], [4.0]]);
        assert_eq!(of(&last, 3), [[7.0], [8.0]]);
        // What a patch is too short for is not there, rather than taken from below.
        let short = [patch(2, 4, &[7.0, 8.0, 9.0][..])];
        assert_eq!(of(&short, 3), [&[9.0][..], &[]]);
        assert_eq!(of(&short, 4), [&[], &[]] as [&[f32]; 2]);
    }
}
