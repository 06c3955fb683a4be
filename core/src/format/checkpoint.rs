//! Checkpoints: a model file that also holds a run between two steps.

use super::digest::Digest;
use super::error::{FormatError, field};
use super::reader::File;
use super::record::{CheckpointRecord, Record};
use crate::arena::{ArenaError, Dtype};
use crate::backend::{Backend, HostMut};
use crate::error::Error;
use crate::net::{Model, Net, Stored};
use crate::stage::Outcome;
use crate::train::{Progress, Session};

/// The state of a run, to be written.
///
/// The model of the file is the one that the session was loaded from; what the session changed
/// since lies in `state`. For a run between two stages, `state` is empty and `progress` is that
/// of a new session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checkpoint<'a> {
    /// What the run is made of, as a number; see [`identity`].
    pub identity: u64,
    /// The same for people.
    pub text: &'a str,
    /// [`Session::progress`].
    pub progress: Progress,
    /// What came of the stages before.
    pub outcomes: &'a [Outcome],
    /// The slots of [`Session::state`], read from the backend.
    pub state: [&'a [f32]; 4],
}

/// The digest of what decides a run: its recipe (any value, such as a strategy), its data and
/// its seed. A run is only resumed where it is the same.
///
/// ```
/// use sepal_core::{format::identity, optim::Rule};
/// assert_eq!(identity(&Rule::adam(), 5, 7), identity(&Rule::adam(), 5, 7));
/// assert_ne!(identity(&Rule::adam(), 5, 7), identity(&Rule::adam(), 5, 8));
/// ```
pub fn identity<T: serde::Serialize + ?Sized>(recipe: &T, data: u64, seed: u64) -> u64 {
    let mut digest = Digest::new();
    digest.value(recipe);
    digest.bytes(&data.to_le_bytes());
    digest.bytes(&seed.to_le_bytes());
    digest.finish()
}

/// The state of a run, read from a file.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'m> {
    file: File<'m>,
    version: &'m str,
    identity: u64,
    text: &'m str,
    progress: Progress,
}

impl<'m> Saved<'m> {
    pub(super) const fn new(file: File<'m>, record: CheckpointRecord<'m>) -> Self {
        let CheckpointRecord { version, identity, text, progress } = record;
        Self { file, version, identity, text, progress }
    }

    /// The version of the crate that wrote it.
    pub const fn version(&self) -> &'m str {
        self.version
    }

    /// [`Checkpoint::identity`].
    pub const fn identity(&self) -> u64 {
        self.identity
    }

    /// [`Checkpoint::text`].
    pub const fn text(&self) -> &'m str {
        self.text
    }

    /// [`Checkpoint::progress`].
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// [`Checkpoint::outcomes`].
    pub fn outcomes(&self) -> impl Iterator<Item = Outcome> + use<'m> {
        self.file.decoded().filter_map(|record| match record {
            Record::Outcome(outcome) => Some(outcome),
            _ => None,
        })
    }

    /// Slot `index` of [`Checkpoint::state`], where it lies in the file; empty where the slot
    /// was.
    pub fn state(&self, index: usize) -> Stored<'m> {
        let bytes = self.file.decoded().find_map(|record| match record {
            Record::State(state) if usize::from(state.index) == index => {
                self.file.state_bytes(&state).ok()
            }
            _ => None,
        });
        Stored { dtype: Dtype::F32, bytes: bytes.unwrap_or_default(), scales: &[] }
    }

    /// Checks that the run can go on here: the file was written by this version of the crate,
    /// was made by a run of the same [`identity`], and holds the net `net`. `model` is the
    /// file's own.
    ///
    /// # Errors
    /// The first of the three that differs. Versions and nets are compared by digest.
    pub fn check(
        &self,
        model: &Model<'_>,
        net: &Net<'_>,
        identity: u64,
    ) -> Result<(), FormatError> {
        let of = |add: &dyn Fn(&mut Digest)| {
            let mut digest = Digest::new();
            add(&mut digest);
            digest.finish()
        };
        let version = |text: &str| of(&|digest| digest.bytes(text.as_bytes()));
        let net_of = |net: &Net<'_>| of(&|digest| digest.value(net));
        for (name, found, expected) in [
            ("crate version (digest)", version(self.version), version(super::VERSION)),
            // Before the net: data that changed have another normalisation, which is part of that.
            ("run identity (recipe, data, seed)", self.identity, identity),
            ("net (digest)", net_of(&model.net), net_of(net)),
        ] {
            if found != expected {
                return Err(field(name, found, expected));
            }
        }
        Ok(())
    }

    /// Puts a loaded session where the saved one was: its parameters, its optimiser, its
    /// progress. Call [`check`](Self::check) first, and [`Session::load`] on the session.
    ///
    /// # Errors
    /// A state of another length than the session's.
    pub fn restore<B: Backend>(
        &self,
        session: &mut Session<'_>,
        backend: &mut B,
    ) -> Result<(), Error> {
        for (index, slot) in session.state().into_iter().enumerate() {
            let stored = self.state(index);
            let wrong = ArenaError::Length { slot: slot.elements(), host: stored.len() };
            if slot.elements() != stored.len() {
                return Err(wrong.into());
            }
            if slot.is_empty() {
                continue;
            }
            backend.fill(slot, &mut |host| {
                let HostMut::F32(host) = host else { return Err(wrong.into()) };
                if stored.widen(host) { Ok(()) } else { Err(wrong.into()) }
            })?;
        }
        session.resume(self.progress);
        Ok(())
    }
}
