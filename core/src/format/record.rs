//! The records of a manifest, read one at a time.

use serde::Deserialize;

use super::error::{FormatError, within};
use super::{MINOR, TEXT_MAX, tag};
use crate::layer::Layer;
use crate::net::{Input, Normalisation, TensorRecord};
use crate::shape::Shape;
use crate::stage::Outcome;
use crate::train::Progress;

/// Kinds of records, in the order in which they stand in a file.
pub(super) mod kind {
    pub const NET: u8 = 1;
    pub const LAYER: u8 = 2;
    pub const TENSOR: u8 = 3;
    pub const CLASS: u8 = 4;
    pub const CHECKPOINT: u8 = 5;
    pub const OUTCOME: u8 = 6;
    pub const STATE: u8 = 7;
    /// Set in kinds that a reader which does not know them may skip.
    pub const OPTIONAL: u8 = 0x40;
    pub const PROVENANCE: u8 = OPTIONAL | 1;
    pub const SEPARATION: u8 = OPTIONAL | 2;
    pub const NOTE: u8 = OPTIONAL | 3;
}

/// How many of each there are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Counts {
    /// Layers.
    pub layers: usize,
    /// Stored tensors.
    pub tensors: usize,
    /// Class names.
    pub classes: usize,
    /// Blocks.
    pub blocks: usize,
}

/// The fields of one record, in order.
pub(super) struct Fields<'m> {
    rest: &'m [u8],
    broken: FormatError,
}

impl<'m> Fields<'m> {
    pub(super) const fn new(record: &Raw<'m>) -> Self {
        let broken = FormatError::Record { at: record.at, kind: record.kind };
        Self { rest: record.payload, broken }
    }

    pub(super) fn next<T: Deserialize<'m>>(&mut self) -> Result<T, FormatError> {
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(|_| self.broken)?;
        self.rest = rest;
        Ok(value)
    }

    pub(super) fn pair<T: Deserialize<'m>>(&mut self) -> Result<(T, T), FormatError> {
        Ok((self.next()?, self.next()?))
    }

    fn four(&mut self) -> Result<[f32; 4], FormatError> {
        Ok([self.next()?, self.next()?, self.next()?, self.next()?])
    }

    fn text(&mut self) -> Result<&'m str, FormatError> {
        let text: &str = self.next()?;
        within("text length", text.len() as u64, TEXT_MAX as u64)?;
        Ok(text)
    }

    /// Nothing may follow, except in files of a later minor version.
    fn end(&self, minor: u16) -> Result<(), FormatError> {
        if self.rest.is_empty() || minor > MINOR { Ok(()) } else { Err(self.broken) }
    }
}

/// What a net is made of beside its layers.
#[derive(Clone, Copy)]
pub(super) struct NetRecord<'m> {
    pub(super) counts: Counts,
    pub(super) features: u16,
    pub(super) input: Input,
    at: &'m [u8],
    broken: FormatError,
}

impl<'m> NetRecord<'m> {
    fn read(f: &mut Fields<'m>) -> Result<Self, FormatError> {
        let mut count = || f.next::<u16>().map(usize::from);
        let counts =
            Counts { layers: count()?, tensors: count()?, classes: count()?, blocks: count()? };
        let (at, broken) = (f.rest, f.broken);
        for _ in 0..counts.blocks {
            f.next::<u16>()?;
        }
        let features = f.next()?;
        let shape = Shape::new(1, f.next()?, f.next()?, f.next()?);
        let normalisation = Normalisation { mean: f.four()?, std: f.four()? };
        Ok(Self { counts, features, input: Input { shape, normalisation }, at, broken })
    }

    /// Where each block ends.
    pub(super) fn blocks(&self, into: &mut [u16]) -> Result<(), FormatError> {
        let mut f = Fields { rest: self.at, broken: self.broken };
        for block in into {
            *block = f.next()?;
        }
        Ok(())
    }
}

/// Where a model comes from.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Provenance<'a> {
    /// The version of the crate that wrote it.
    pub version: &'a str,
    /// How it was trained, as text.
    pub recipe: &'a str,
    /// The run's seed.
    pub seed: u64,
    /// A digest of the training data, such as [`Digest`](super::Digest) gives; 0 where unknown.
    pub data: u64,
}

/// The record of a checkpoint.
#[derive(Clone, Copy)]
pub(super) struct CheckpointRecord<'m> {
    pub(super) version: &'m str,
    pub(super) identity: u64,
    pub(super) text: &'m str,
    pub(super) progress: Progress,
}

/// Where a state vector lies.
#[derive(Clone, Copy)]
pub(super) struct StateRecord {
    pub(super) index: u8,
    pub(super) at: u32,
    pub(super) len: u32,
}

/// A record that this version knows.
pub(super) enum Record<'m> {
    Net(NetRecord<'m>),
    Layer(Layer),
    Tensor(TensorRecord),
    Class(&'m str),
    Checkpoint(CheckpointRecord<'m>),
    Outcome(Outcome),
    State(StateRecord),
    Provenance(Provenance<'m>),
    Separation(u16, f32),
    Note(&'m str),
    /// Of a later minor version, and not needed to use the model.
    Skipped,
}

/// A record before it is decoded.
#[derive(Clone, Copy)]
pub(super) struct Raw<'m> {
    pub(super) kind: u8,
    pub(super) at: u32,
    payload: &'m [u8],
}

impl<'m> Raw<'m> {
    #[cfg(test)]
    pub(super) const fn new(kind: u8, payload: &'m [u8]) -> Self {
        Self { kind, at: 0, payload }
    }

    pub(super) fn decode(&self, minor: u16) -> Result<Record<'m>, FormatError> {
        let mut fields = Fields::new(self);
        let f = &mut fields;
        let record = match self.kind {
            kind::NET => Record::Net(NetRecord::read(f)?),
            kind::LAYER => Record::Layer(tag::layer(f)?),
            kind::TENSOR => Record::Tensor(TensorRecord {
                layer: f.next()?,
                role: tag::role(f.next()?)?,
                dtype: tag::dtype(f.next()?)?,
                at: f.next()?,
                len: f.next()?,
                scales_at: f.next()?,
                scales_len: f.next()?,
            }),
            kind::CLASS => Record::Class(f.text()?),
            kind::CHECKPOINT => Record::Checkpoint(CheckpointRecord {
                version: f.text()?,
                identity: f.next()?,
                text: f.text()?,
                progress: Progress {
                    stage: f.next()?,
                    calibrated: f.next()?,
                    epoch: f.next()?,
                    step: f.next()?,
                    updates: f.next()?,
                    loss: f.next()?,
                    anchors: f.next()?,
                    skipped: f.next()?,
                    correct: f.next()?,
                    last: f.pair()?,
                    best: f.next()?,
                    stale: f.next()?,
                    stopped: f.next()?,
                },
            }),
            kind::OUTCOME => Record::Outcome(Outcome {
                first: f.next()?,
                last: f.next()?,
                epochs: f.next()?,
                updates: f.next()?,
                loss: f.next()?,
                score: f.next()?,
                held_out: f.next()?,
            }),
            kind::STATE => {
                Record::State(StateRecord { index: f.next()?, at: f.next()?, len: f.next()? })
            }
            kind::PROVENANCE => Record::Provenance(Provenance {
                version: f.text()?,
                recipe: f.text()?,
                seed: f.next()?,
                data: f.next()?,
            }),
            kind::SEPARATION => Record::Separation(f.next()?, f.next()?),
            kind::NOTE => Record::Note(f.text()?),
            kind if kind & kind::OPTIONAL != 0 && minor > MINOR => return Ok(Record::Skipped),
            kind => {
                return Err(FormatError::Unknown { field: "record kind", found: u64::from(kind) });
            }
        };
        fields.end(minor)?;
        Ok(record)
    }
}

/// The records of a manifest.
#[derive(Clone, Copy)]
pub(super) struct Records<'m> {
    rest: &'m [u8],
    at: u32,
}

impl<'m> Records<'m> {
    /// Over `manifest`, whose first byte is byte `at` of the file.
    pub(super) const fn new(manifest: &'m [u8], at: u32) -> Self {
        Self { rest: manifest, at }
    }

    fn split(&mut self) -> Option<Raw<'m>> {
        let (len, body) = postcard::take_from_bytes::<u32>(self.rest).ok()?;
        let (record, rest) = body.split_at_checked(len as usize)?;
        let (&kind, payload) = record.split_first()?;
        let raw = Raw { kind, at: self.at, payload };
        self.at += (self.rest.len() - rest.len()) as u32;
        self.rest = rest;
        Some(raw)
    }
}

impl<'m> Iterator for Records<'m> {
    type Item = Result<Raw<'m>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let broken = FormatError::Record { at: self.at, kind: 0 };
        let raw = self.split().ok_or(broken);
        if raw.is_err() {
            self.rest = &[];
        }
        Some(raw)
    }
}
