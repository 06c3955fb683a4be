//! What frozen layers make of a data set, kept in memory.

use sepal_core::arena::{ArenaError, Layout, Word};
use sepal_core::backend::{Backend, Device, HostMut};
use sepal_core::error::Error;
use sepal_core::infer::Inference;
use sepal_core::layer::L2Normalise;
use sepal_core::net::Model;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

/// Memory for `bytes`, zeroed.
///
/// # Errors
/// Where the system has not that much; the number is named.
pub fn allocate(bytes: usize) -> Result<Vec<Word>, Error> {
    let mut memory = Vec::new();
    let words = Word::count(bytes);
    if memory.try_reserve_exact(words).is_err() {
        return Err(ArenaError::OutOfMemory { needed: bytes, given: 0 }.into());
    }
    memory.resize(words, Word::ZERO);
    Ok(memory)
}

/// At least `bytes` of `memory`, which may hold anything: it grows where it is too small, and what
/// follows finds pages that are there already.
pub(crate) fn lend(memory: &mut Vec<Word>, bytes: usize) -> Result<&mut [Word], Error> {
    let words = Word::count(bytes);
    if memory.len() < words {
        // Not both at once.
        *memory = Vec::new();
        *memory = allocate(bytes)?;
    }
    Ok(memory.get_mut(..words).unwrap_or_default())
}

/// How rows are given: as the reference's, or as they lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    Plain,
    Lying,
}

/// Runs all samples of `source`, read in `draw`, through the layers from its depth up to `last`,
/// and gives rows and labels to `sink`, some samples at a time, in their order. `memory` becomes
/// the arena.
pub(crate) fn forward<D: Device, S: Source, E: From<Error>>(
    device: &D,
    memory: &mut Vec<Word>,
    model: &Model<'_>,
    (source, draw): (&mut S, Option<Draw>),
    last: usize,
    given: Rows,
    mut sink: impl FnMut(&[f32], &[u16]) -> Result<(), E>,
) -> Result<(), E> {
    let depth = source.depth();
    let expected = model.net.shape(depth).map_err(Error::from)?;
    if source.shape() != expected {
        return Err(Error::Sample { expected, got: source.shape() }.into());
    }
    let (samples, chunk) = (source.len(), device.chunk().min(source.len()).max(1));
    let (planner, layers) = (device.open(&mut [])?, (depth, last));
    let plan = match source.layout() {
        Layout::Nchw => Inference::new(&planner, model, layers, chunk, source.is_u8()),
        layout => Inference::lying(&planner, model, layers, chunk, layout),
    };
    let plan = plan.map_err(Error::from)?;
    drop(planner);
    let mut backend = device.open(lend(memory, plan.bytes())?)?;
    backend.prepare(model, depth, last)?;
    let mut rows = Vec::new();
    let mut labels = vec![0; chunk as usize];
    let mut indices: Vec<u32> = (0..chunk).collect();
    let mut first = 0;
    while first < samples {
        indices.truncate((samples - first) as usize);
        labels.truncate(indices.len());
        let slot = plan.run_slot(&mut backend, model, indices.len() as u32, |host| {
            let batch = match host {
                HostMut::F32(x) => Batch::F32(x),
                HostMut::U8(x) => Batch::U8(x),
                _ => return Err(Error::Unsupported("raw samples of this type")),
            };
            Ok(source.read(&indices, draw, batch, &mut labels)?)
        })?;
        let slot = if given == Rows::Lying { slot.flat() } else { slot };
        rows.resize(slot.shape.len().unwrap_or(0) as usize, 0.0);
        backend.read(slot, HostMut::F32(&mut rows))?;
        sink(&rows, &labels)?;
        first += indices.len() as u32;
        indices.iter_mut().for_each(|index| *index += chunk);
    }
    Ok(())
}

/// The memory of a batch of `samples` rows of `dim` numbers each.
pub(crate) fn numbers<'a>(
    batch: Batch<'a>,
    samples: usize,
    dim: usize,
) -> Result<&'a mut [f32], SourceError> {
    let expected = (samples * dim) as u32;
    match batch {
        Batch::F32(out) if out.len() as u32 == expected => Ok(out),
        Batch::F32(out) => Err(SourceError::Batch { expected, got: out.len() as u32 }),
        Batch::U8(_) => Err(SourceError::Batch { expected, got: 0 }),
    }
}

/// The numbers that the leading layers of a net give for all samples of a source: a source
/// itself, for the layers that follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    depth: usize,
    shape: Shape,
    data: Vec<f32>,
    labels: Vec<u16>,
}

impl Features {
    /// Runs all samples of `source` through the layers from its depth up to `last`.
    ///
    /// # Errors
    /// Samples of another shape than the net takes, memory that the system has not.
    pub fn new<D: Device, S: Source>(
        device: &D,
        model: &Model<'_>,
        source: &mut S,
        last: usize,
    ) -> Result<Self, Error> {
        let shape = model.net.shape(last)?;
        let samples = source.len() as usize;
        let numbers = (shape.sample().unwrap_or(0) as usize).saturating_mul(samples);
        let (mut data, mut labels) = (Vec::new(), Vec::with_capacity(samples));
        if data.try_reserve_exact(numbers).is_err() {
            let needed = numbers.saturating_mul(size_of::<f32>());
            return Err(ArenaError::OutOfMemory { needed, given: 0 }.into());
        }
        forward(device, &mut Vec::new(), model, (source, None), last, Rows::Plain, |rows, own| {
            data.extend_from_slice(rows);
            labels.extend_from_slice(own);
            Ok::<_, Error>(())
        })?;
        Ok(Self { depth: last, shape, data, labels })
    }

    /// One row for each sample, (M, D).
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Numbers in a row, D.
    pub fn dim(&self) -> usize {
        self.shape.sample().unwrap_or(0) as usize
    }

    /// The label of each sample.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Each row scaled to length 1; a row of zeros stays.
    pub fn unit(mut self) -> Self {
        let shape = self.shape.with_n(self.labels.len() as u32);
        let mut norms = vec![0.0; self.labels.len()];
        L2Normalise.forward(shape, &mut self.data, &mut norms);
        self
    }

    /// The features of these channels alone, in this order.
    ///
    /// # Panics
    /// Where a channel is not there.
    #[must_use]
    pub fn channels(&self, channels: &[u32]) -> Self {
        let plane = self.shape.plane() as usize;
        let shape = Shape { c: channels.len() as u32, ..self.shape };
        let mut data = Vec::with_capacity(self.labels.len() * channels.len() * plane);
        for row in self.data.chunks_exact(self.dim().max(1)) {
            for &channel in channels {
                let at = channel as usize * plane;
                assert!(channel < self.shape.c, "channel {channel} of {}", self.shape.c);
                data.extend_from_slice(row.get(at..at + plane).unwrap_or_default());
            }
        }
        Self { shape, data, labels: self.labels.clone(), ..*self }
    }

    /// The mean of the squares of each row.
    pub fn goodness(&self) -> impl Iterator<Item = f32> {
        let dim = self.dim().max(1);
        self.data
            .chunks_exact(dim)
            .map(move |row| row.iter().map(|x| x * x).sum::<f32>() / dim as f32)
    }

    /// The features as the input of a net of their own.
    pub fn into_input(mut self) -> Self {
        self.depth = 0;
        self
    }
}

impl Source for Features {
    fn len(&self) -> u32 {
        self.labels.len() as u32
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn is_u8(&self) -> bool {
        false
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn read(
        &mut self,
        indices: &[u32],
        _draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let dim = self.dim();
        let out = numbers(batch, indices.len(), dim)?;
        for ((&index, out), label) in indices.iter().zip(out.chunks_exact_mut(dim)).zip(labels) {
            let missing = SourceError::Index { index, len: self.labels.len() as u32 };
            let at = index as usize;
            *label = *self.labels.get(at).ok_or(missing)?;
            out.copy_from_slice(self.data.get(at * dim..(at + 1) * dim).ok_or(missing)?);
        }
        Ok(())
    }
}
