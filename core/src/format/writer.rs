//! Writing a file, without memory of its own.

use postcard::ser_flavors::{Flavor, Size};
use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::error::{FormatError, within};
use super::record::{Provenance, kind};
use super::tag::Tagged;
use super::{ALIGN, BLOB_ALIGN, CHECKPOINT, HEADER, MAGIC, MAJOR, MANIFEST_MAX, MINOR, TEXT_MAX};
use crate::arena::Dtype;
use crate::checksum::CRC32;
use crate::layer::{Layer, Role};
use crate::net::{Model, Net, Normalisation, Stored, TensorRecord};
use crate::shape::Shape;
use crate::stage::Outcome;
use crate::train::Progress;

/// Where a file's bytes go, from the first to the last. Closures of the same form are sinks.
pub trait Sink {
    /// Takes the next bytes: from one to some thousand.
    ///
    /// # Errors
    /// [`FormatError::Sink`], with a code of the sink's own.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError>;
}

impl<F: FnMut(&[u8]) -> Result<(), FormatError>> Sink for F {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self(bytes)
    }
}

/// A sink in the caller's memory.
#[derive(Debug)]
pub struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the first byte.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The bytes so far.
    pub fn written(&self) -> &[u8] {
        self.bytes.get(..self.at).unwrap_or_default()
    }
}

impl Sink for Cursor<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let (needed, given) = (self.at.saturating_add(bytes.len()), self.bytes.len());
        let rest = self.bytes.get_mut(self.at..).unwrap_or_default();
        let full = FormatError::Memory { field: "bytes", needed, given };
        rest.get_mut(..bytes.len()).ok_or(full)?.copy_from_slice(bytes);
        self.at = needed;
        Ok(())
    }
}

/// How weights are stored. Biases, means and variances always stay f32.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[non_exhaustive]
pub enum Storage {
    /// As they are: numbers in memory as f32, those of a file in the file's types.
    #[default]
    Kept,
    /// Weights of convolutions and dense layers that are f32 become f16.
    #[cfg(feature = "f16")]
    F16,
}

/// What a file says beside the model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Meta<'a> {
    /// The classes' names, in the order of the labels.
    pub classes: &'a [&'a str],
    /// Where the model comes from.
    pub provenance: Option<Provenance<'a>>,
    /// The number of a block, and the Separation Index that was measured after it.
    pub separation: &'a [(u16, f32)],
    /// Free lines of text.
    pub notes: &'a [&'a str],
    /// How weights are stored.
    pub storage: Storage,
}

impl Meta<'_> {
    /// Nothing.
    pub const NONE: Self = Self {
        classes: &[],
        provenance: None,
        separation: &[],
        notes: &[],
        storage: Storage::Kept,
    };
}

/// Writes a model. The same model and meta give the same bytes.
///
/// # Errors
/// A net that does not [`check`](Net::check), weights that are missing, text or counts above
/// the format's limits, what the sink says.
pub fn write(model: &Model<'_>, meta: &Meta<'_>, sink: &mut impl Sink) -> Result<(), FormatError> {
    emit(&Content { model, meta, checkpoint: None }, sink)
}

/// Writes a model with the state of a run.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_checkpoint(
    model: &Model<'_>,
    meta: &Meta<'_>,
    checkpoint: &Checkpoint<'_>,
    sink: &mut impl Sink,
) -> Result<(), FormatError> {
    emit(&Content { model, meta, checkpoint: Some(checkpoint) }, sink)
}

struct Content<'a> {
    model: &'a Model<'a>,
    meta: &'a Meta<'a>,
    checkpoint: Option<&'a Checkpoint<'a>>,
}

/// Bytes on their way: counted, summed, and passed on where there is a sink.
struct Out<'a> {
    sink: Option<&'a mut dyn Sink>,
    len: u64,
    crc: crc::Digest<'static, u32, crc::Table<1>>,
    /// What the sink said: postcard's errors cannot carry it.
    error: Option<FormatError>,
}

impl<'a> Out<'a> {
    fn new(sink: Option<&'a mut dyn Sink>) -> Self {
        Self { sink, len: 0, crc: CRC32.digest(), error: None }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.crc.update(bytes);
        self.len += bytes.len() as u64;
        self.sink.as_mut().map_or(Ok(()), |sink| sink.write(bytes))
    }

    fn pad(&mut self, align: usize) -> Result<(), FormatError> {
        let zeros = [0; BLOB_ALIGN];
        let missing = (self.len.next_multiple_of(align as u64) - self.len) as usize;
        self.bytes(zeros.get(..missing).unwrap_or_default())
    }

    fn value(&mut self, value: &impl Serialize) -> Result<(), FormatError> {
        let written = value.serialize(&mut postcard::Serializer { output: &mut *self });
        // Only the sink fails: postcard itself writes all types that are used here.
        let unknown = FormatError::Unknown { field: "value", found: 0 };
        written.map_err(|_| self.error.take().unwrap_or(unknown))
    }

    fn record(&mut self, kind: u8, value: &impl Serialize) -> Result<(), FormatError> {
        let unknown = FormatError::Unknown { field: "record kind", found: kind.into() };
        let size = postcard::serialize_with_flavor(value, Size::default()).map_err(|_| unknown)?;
        self.value(&(size as u32 + 1))?;
        self.value(&kind)?;
        self.value(value)
    }
}

impl Flavor for &mut Out<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.bytes(data).map_err(|e| {
            self.error = Some(e);
            postcard::Error::SerializeBufferFull
        })
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.try_extend(&[data])
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn emit(content: &Content<'_>, sink: &mut dyn Sink) -> Result<(), FormatError> {
    content.check()?;
    // Lengths first, then the checksum that stands before what it sums, then the bytes.
    let mut measured = Out::new(None);
    let blob_len = content.manifest(&mut measured)?;
    let manifest_len = measured.len;
    within("manifest length", manifest_len, MANIFEST_MAX as u64)?;
    let blob_at = (HEADER as u64 + manifest_len).next_multiple_of(BLOB_ALIGN as u64);
    within("length of the weights", blob_len, u64::from(u32::MAX))?;
    let flags = if content.checkpoint.is_some() { CHECKPOINT } else { 0 };
    let mut summed = Out::new(None);
    let header = |out: &mut Out<'_>| -> Result<(), FormatError> {
        out.bytes(&MAGIC)?;
        out.bytes(&MAJOR.to_le_bytes())?;
        out.bytes(&MINOR.to_le_bytes())?;
        for word in [flags, manifest_len as u32, blob_at as u32, blob_len as u32] {
            out.bytes(&word.to_le_bytes())?;
        }
        Ok(())
    };
    header(&mut summed)?;
    content.manifest(&mut summed)?;

    let mut out = Out::new(Some(sink));
    header(&mut out)?;
    out.bytes(&summed.crc.finalize().to_le_bytes())?;
    content.manifest(&mut out)?;
    out.pad(BLOB_ALIGN)?;
    (out.crc, out.len) = (CRC32.digest(), 0);
    content.blob(&mut out)?;
    let crc = out.crc.clone().finalize();
    out.bytes(&crc.to_le_bytes())
}

impl Content<'_> {
    fn net(&self) -> &Net<'_> {
        &self.model.net
    }

    /// What limits the format sets, and what the net says of itself.
    fn check(&self) -> Result<(), FormatError> {
        let (net, meta) = (self.net(), self.meta);
        net.check()?;
        net.params(net.layers.len())?;
        let most = u64::from(u16::MAX);
        within("number of layers", net.layers.len() as u64, most)?;
        within("number of classes", meta.classes.len() as u64, most)?;
        let provenance = meta.provenance.iter().flat_map(|p| [p.version, p.recipe]);
        let checkpoint = self.checkpoint.iter().map(|c| c.text);
        let texts = meta.classes.iter().chain(meta.notes).copied();
        for text in texts.chain(provenance).chain(checkpoint) {
            within("text length", text.len() as u64, TEXT_MAX as u64)?;
        }
        Ok(())
    }

    /// Every stored tensor in the order of the file, with its record.
    fn tensors(
        &self,
        mut each: impl FnMut(TensorRecord, Stored<'_>) -> Result<(), FormatError>,
    ) -> Result<u64, FormatError> {
        let net = self.net();
        let mut end = 0u64;
        let mut shape = net.input.shape;
        for (index, layer) in net.layers.iter().enumerate() {
            let lengths = layer.tensors(shape).unwrap_or_default();
            let stored = self.model.weights.layer(net, index);
            for (role, stored) in Role::ALL.into_iter().zip(stored) {
                let expected = lengths.len(role) as usize;
                if stored.len() != expected {
                    return Err(FormatError::Tensor {
                        layer: index as u16,
                        role,
                        field: "number of elements",
                        found: stored.len() as u64,
                        expected: expected as u64,
                    });
                }
                if expected == 0 {
                    continue;
                }
                let dtype = self.dtype(layer, role, stored.dtype);
                let len = expected as u64 * dtype.size() as u64;
                let at = end;
                let scales_at = (at + len).next_multiple_of(ALIGN as u64);
                let scales_len = stored.scales.len() as u64;
                end = (scales_at + scales_len).next_multiple_of(ALIGN as u64);
                within("length of the weights", end, u64::from(u32::MAX))?;
                let record = TensorRecord {
                    layer: index as u16,
                    role,
                    dtype,
                    at: at as u32,
                    len: len as u32,
                    scales_at: if scales_len == 0 { 0 } else { scales_at as u32 },
                    scales_len: scales_len as u32,
                };
                each(record, stored)?;
            }
            shape = layer.output(shape).unwrap_or_default();
        }
        Ok(end)
    }

    /// The type that a tensor is stored in.
    #[cfg(not(feature = "f16"))]
    const fn dtype(&self, _: &Layer, _: Role, given: Dtype) -> Dtype {
        match self.meta.storage {
            Storage::Kept => given,
        }
    }

    /// The type that a tensor is stored in.
    #[cfg(feature = "f16")]
    const fn dtype(&self, layer: &Layer, role: Role, given: Dtype) -> Dtype {
        match (self.meta.storage, layer, role, given) {
            (Storage::F16, Layer::Conv2d(_) | Layer::Dense(_), Role::Weight, Dtype::F32) => {
                Dtype::F16
            }
            _ => given,
        }
    }

    /// Writes all records; gives the length of the weights section.
    fn manifest(&self, out: &mut Out<'_>) -> Result<u64, FormatError> {
        let (net, meta) = (self.net(), self.meta);
        let mut tensors = 0u64;
        let end = self.tensors(|_, _| {
            tensors += 1;
            Ok(())
        })?;
        within("number of tensors", tensors, u64::from(u16::MAX))?;
        let Shape { n: _, c, h, w } = net.input.shape;
        let Normalisation { mean, std } = net.input.normalisation;
        let counts = (net.layers.len() as u16, tensors as u16, meta.classes.len() as u16);
        out.record(kind::NET, &(counts, net.blocks, net.features, (c, h, w), mean, std))?;
        for layer in net.layers {
            out.record(kind::LAYER, &Tagged(layer))?;
        }
        self.tensors(|record, _| {
            let TensorRecord { layer, role, dtype, at, len, scales_at, scales_len } = record;
            let tags = (role as u8, dtype as u8);
            out.record(kind::TENSOR, &(layer, tags, at, len, scales_at, scales_len))
        })?;
        for name in meta.classes {
            out.record(kind::CLASS, name)?;
        }
        let end = self.run(out, end)?;
        if let Some(Provenance { version, recipe, seed, data }) = meta.provenance {
            out.record(kind::PROVENANCE, &(version, recipe, seed, data))?;
        }
        for measured in meta.separation {
            out.record(kind::SEPARATION, measured)?;
        }
        for note in meta.notes {
            out.record(kind::NOTE, note)?;
        }
        Ok(end)
    }

    /// The records of a checkpoint; gives the end of the state vectors.
    fn run(&self, out: &mut Out<'_>, end: u64) -> Result<u64, FormatError> {
        let Some(checkpoint) = self.checkpoint else { return Ok(end) };
        let Checkpoint { identity, text, progress, outcomes, state } = *checkpoint;
        let Progress {
            stage,
            calibrated,
            epoch,
            step,
            updates,
            loss,
            anchors,
            skipped,
            correct,
            last,
            best,
            stale,
            stopped,
        } = progress;
        let counters = (stage, calibrated, epoch, step, updates, loss, anchors, skipped, correct);
        let judged = (last, best, stale, stopped);
        out.record(kind::CHECKPOINT, &(super::VERSION, identity, text, counters, judged))?;
        for outcome in outcomes {
            let Outcome { first, last, epochs, updates, loss, score, held_out } = *outcome;
            let value = (first, last, epochs, updates, loss, score, held_out);
            out.record(kind::OUTCOME, &value)?;
        }
        let mut end = end;
        for (index, state) in (0u8..).zip(state).filter(|(_, state)| !state.is_empty()) {
            let len = size_of_val(state) as u64;
            within("length of the weights", end + len, u64::from(u32::MAX))?;
            out.record(kind::STATE, &(index, end as u32, len as u32))?;
            end = (end + len).next_multiple_of(ALIGN as u64);
        }
        Ok(end)
    }

    fn blob(&self, out: &mut Out<'_>) -> Result<(), FormatError> {
        self.tensors(|record, stored| {
            tensor(out, &record, stored)?;
            out.pad(ALIGN)?;
            out.bytes(stored.scales)?;
            out.pad(ALIGN)
        })?;
        for state in self.checkpoint.iter().flat_map(|checkpoint| checkpoint.state) {
            numbers(out, state)?;
            out.pad(ALIGN)?;
        }
        Ok(())
    }
}

fn numbers(out: &mut Out<'_>, numbers: &[f32]) -> Result<(), FormatError> {
    if cfg!(target_endian = "little") {
        return out.bytes(bytemuck::cast_slice(numbers));
    }
    numbers.iter().try_for_each(|number| out.bytes(&number.to_le_bytes()))
}

#[cfg(not(feature = "f16"))]
fn tensor(out: &mut Out<'_>, _: &TensorRecord, stored: Stored<'_>) -> Result<(), FormatError> {
    out.bytes(stored.bytes)
}

/// A tensor's elements, narrowed where the record says so.
#[cfg(feature = "f16")]
fn tensor(out: &mut Out<'_>, record: &TensorRecord, stored: Stored<'_>) -> Result<(), FormatError> {
    if record.dtype == stored.dtype {
        return out.bytes(stored.bytes);
    }
    for bytes in stored.bytes.as_chunks::<4>().0 {
        let wide = f32::from_le_bytes(*bytes);
        let narrow = half::f16::from_f32(wide);
        if wide.is_finite() && !narrow.is_finite() {
            let TensorRecord { layer, role, .. } = *record;
            let expected = u64::from(half::f16::MAX.to_bits());
            let found = u64::from(wide.to_bits());
            let field = "an element past the range of f16 (bits)";
            return Err(FormatError::Tensor { layer, role, field, found, expected });
        }
        out.bytes(&narrow.to_le_bytes())?;
    }
    Ok(())
}
