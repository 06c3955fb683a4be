//! Two slots of a flash.

use embedded_storage::nor_flash::{NorFlash, NorFlashError};

use super::delta::{Delta, Held, Part, Refusal};
use super::delta::{body_at, commit_at, granule, is_later, is_word, newest, round_up};
use super::error::StoreError;
use super::{PARTS, WORD_MAX};
use crate::checksum::CRC32;
use crate::net::Patch;

/// Where two slots of equal size lie in a flash. Neither may share an erase unit with anything
/// else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Their first bytes.
    pub at: [u32; 2],
    /// The bytes of each; [`size`](super::size) says how many a delta takes.
    pub size: u32,
}

impl Slots {
    /// Two slots in a row.
    pub const fn adjacent(at: u32, size: u32) -> Self {
        Self { at: [at, at.saturating_add(size)], size }
    }
}

/// Deltas of one base model in two slots of a flash.
///
/// ```
/// use sepal_core::flash::{Slots, Store, size};
/// use sepal_core::net::Patch;
/// # use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
/// # struct Ram([u8; 1024]);
/// # impl ErrorType for Ram { type Error = NorFlashErrorKind; }
/// # impl ReadNorFlash for Ram {
/// #     const READ_SIZE: usize = 1;
/// #     fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), Self::Error> {
/// #         into.copy_from_slice(&self.0[at as usize..][..into.len()]);
/// #         Ok(())
/// #     }
/// #     fn capacity(&self) -> usize { self.0.len() }
/// # }
/// # impl NorFlash for Ram {
/// #     const WRITE_SIZE: usize = 4;
/// #     const ERASE_SIZE: usize = 256;
/// #     fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
/// #         self.0[from as usize..to as usize].fill(0xff);
/// #         Ok(())
/// #     }
/// #     fn write(&mut self, at: u32, from: &[u8]) -> Result<(), Self::Error> {
/// #         self.0[at as usize..][..from.len()].copy_from_slice(from);
/// #         Ok(())
/// #     }
/// # }
/// # let mut flash = Ram([0xff; 1024]);
/// # let base = 7; // File::checksum of the model
/// let slots = Slots::adjacent(0, size(&[3, 2], 4, 256).unwrap());
/// let mut store = Store::open(&mut flash, slots, base)?;
/// assert!(store.newest().is_none(), "the base model as it is");
///
/// // A trained block and the classifier behind it, together or not at all. The block's numbers
/// // lie in two places.
/// let block = |numbers| Patch { first: 2, last: 4, numbers };
/// store.save(&[block(&[0.5, 1.5]), block(&[2.5]), Patch { first: 6, last: 7, numbers: &[3.0, 4.0] }])?;
///
/// // At the next start.
/// let mut store = Store::open(&mut flash, slots, base)?;
/// let delta = *store.newest().unwrap();
/// let mut weights = [0.0; 3];
/// assert_eq!((delta.parts()[0].first, delta.parts()[0].len), (2, 3));
/// store.read(0, 0, &mut weights)?;
/// assert_eq!(weights, [0.5, 1.5, 2.5]);
/// # Ok::<(), sepal_core::flash::StoreError<NorFlashErrorKind>>(())
/// ```
#[derive(Debug)]
pub struct Store<F> {
    flash: F,
    slots: Slots,
    base: u64,
    held: [Held; 2],
}

impl<F: NorFlash> Store<F> {
    /// Bytes that are read or written at once.
    const WORD: u32 =
        if F::READ_SIZE > F::WRITE_SIZE { F::READ_SIZE as u32 } else { F::WRITE_SIZE as u32 };

    /// Looks at both slots of `flash` (a `&mut` of one will do), every byte of what they hold.
    /// `base` tells base models apart, as [`File::checksum`](crate::format::File::checksum) does.
    ///
    /// A slot that is damaged, cannot be read, or is of another version or base model is passed
    /// over, and [`held`](Self::held) says which it is.
    ///
    /// # Errors
    /// Words of the flash that there is no layout for; slots that are not whole erase units, that
    /// overlap, or that lie outside.
    pub fn open(flash: F, slots: Slots, base: u64) -> Result<Self, StoreError<F::Error>> {
        let (read, write) = (F::READ_SIZE, F::WRITE_SIZE);
        if !is_word(read) || !is_word(write) {
            return Err(StoreError::Word { read, write });
        }
        let (Slots { at: [first, second], size }, capacity) = (slots, flash.capacity());
        for at in slots.at {
            for unit in [F::ERASE_SIZE, Self::WORD as usize] {
                let whole = |bytes: u32| (bytes as usize).is_multiple_of(unit);
                if unit == 0 || !whole(at) || !whole(size) {
                    return Err(StoreError::Unaligned { at, size, unit });
                }
            }
            let end = u64::from(at) + u64::from(size);
            if end > capacity as u64 || end > u32::MAX.into() {
                return Err(StoreError::Outside { end, capacity });
            }
        }
        if first.abs_diff(second) < size {
            return Err(StoreError::Overlap { at: slots.at, size });
        }
        let mut store = Self { flash, slots, base, held: [Held::Nothing; 2] };
        store.held = slots.at.map(|at| match store.look(at) {
            Ok(held) => held,
            Err(e) => Held::Refused(Refusal::Unreadable(e.kind())),
        });
        Ok(store)
    }

    /// The delta that is in force; `None` where the base model is.
    pub fn newest(&self) -> Option<&Delta> {
        let newest = self.newest_slot()?;
        self.held.get(newest)?.delta()
    }

    /// What each slot holds.
    pub const fn held(&self) -> &[Held; 2] {
        &self.held
    }

    /// Reads numbers of a part of the newest delta, `skip` of them left out: all at once, or piece
    /// by piece. The checksum was compared when the store was opened.
    ///
    /// # Errors
    /// Numbers that are not there, or flash that fails.
    pub fn read(
        &mut self,
        part: usize,
        skip: u32,
        into: &mut [f32],
    ) -> Result<(), StoreError<F::Error>> {
        let slot = self.newest_slot().unwrap_or(0);
        let end = u64::from(skip) + into.len() as u64;
        let not_stored = |stored| StoreError::NotStored { part, end, stored };
        let delta = self.newest().ok_or(not_stored(0))?;
        let (Part { len, .. }, at) = delta.place(part).ok_or(not_stored(0))?;
        if end > len.into() {
            return Err(not_stored(len));
        }
        // All of this lies within the slot, whose end fits 32 bits.
        let mut at = self.at(slot) + at as u32 + 4 * skip;
        let mut rest = into;
        while !rest.is_empty() {
            let mut buffer = [0; WORD_MAX];
            let start = at & !(F::READ_SIZE as u32 - 1);
            let lead = at - start;
            let bytes = round_up(u64::from(lead) + 4 * rest.len() as u64, F::READ_SIZE as u32);
            let bytes = (bytes as usize).min(WORD_MAX);
            let read = buffer.get_mut(..bytes).unwrap_or_default();
            self.flash.read(start, read).map_err(StoreError::Flash)?;
            let numbers = read.get(lead as usize..).unwrap_or_default().as_chunks().0;
            let now = numbers.len().min(rest.len()).max(1);
            let (to, after) = rest.split_at_mut_checked(now).unwrap_or_default();
            to.iter_mut().zip(numbers).for_each(|(to, bytes)| *to = f32::from_le_bytes(*bytes));
            (at, rest) = (at + 4 * now as u32, after);
        }
        Ok(())
    }

    /// Saves a delta, which is then the newest: after `Ok` it is in force at every start, however
    /// the power goes, until the next save. Before, or after an error, it is that or the one
    /// before.
    ///
    /// Each part is all parameters of its layers, in the net's order: layer by layer, each its
    /// weight, bias, mean and variance. Patches in a row with the same layers are one part, for
    /// numbers that lie in several places. Parts ascend. The whole delta replaces the one before:
    /// layers that are not in it are the base model's again.
    ///
    /// # Errors
    /// Parts that do not ascend, are empty, too many or too large, before anything is written;
    /// flash that fails or does not read back as written.
    pub fn save(&mut self, patches: &[Patch<'_>]) -> Result<(), StoreError<F::Error>> {
        let mut delta = self.plan(patches)?;
        let newest = self.newest_slot();
        let any = self::newest(self.held.each_ref(), |_| true);
        let target = usize::from(newest.or(any) == Some(0));
        let sequences = self.held.iter().filter_map(Held::delta).map(Delta::sequence);
        let last = sequences.reduce(|a, b| if is_later(a, b) { a } else { b });
        delta.sequence = last.map_or(1, |last| last.wrapping_add(1));

        let other = target ^ 1;
        if newest.is_none() && self.held.get(other).and_then(Held::delta).is_none() {
            // What an erase that was cut left there may read as a delta one day, of a later number.
            self.erase(other, self.slots.size)?;
        }
        // Whole erase units are within the slot, as it is.
        let units = delta.bytes().next_multiple_of(F::ERASE_SIZE as u64);
        self.erase(target, units as u32)?;

        let granule = u32::from(delta.granule);
        let at = self.at(target);
        let mut stream = Stream::new(&mut self.flash, at + body_at(granule));
        let mut patches = patches.iter().peekable();
        while let Some(patch) = patches.next() {
            stream.numbers(patch.numbers)?;
            if patches.peek().is_none_or(|next| !patch.same_layers(next)) {
                stream.pad(granule)?;
            }
        }
        delta.body_crc = stream.digest.finalize();
        let header = delta.header();
        Stream::new(&mut self.flash, at).whole(&header, granule)?;
        if self.look(at).map_err(StoreError::Flash)? != Held::Delta(delta) {
            return Err(StoreError::Verify { at });
        }
        let commit = Delta::commit(&header);
        Stream::new(&mut self.flash, at + commit_at(granule)).whole(&commit, granule)?;
        delta.committed = true;
        if self.look(at).map_err(StoreError::Flash)? != Held::Delta(delta) {
            return Err(StoreError::Verify { at });
        }
        self.set(target, Held::Delta(delta));
        Ok(())
    }

    /// Back to the base model, whatever the slots hold: erases both. After `Ok` no delta is left
    /// in the flash. Power lost on the way leaves the newest one or the base model: the newest goes
    /// last, so that no older one comes back.
    ///
    /// # Errors
    /// Flash that fails, or that is not erased afterwards. [`newest`](Self::newest) says what the
    /// store goes on with; the next start may find the newest delta again.
    pub fn forget(&mut self) -> Result<(), StoreError<F::Error>> {
        let newest = self.newest_slot().or(newest(self.held.each_ref(), |_| true)).unwrap_or(1);
        for slot in [newest ^ 1, newest] {
            self.erase(slot, self.slots.size)?;
            let at = self.at(slot);
            if self.look(at).map_err(StoreError::Flash)? != Held::Nothing {
                return Err(StoreError::Verify { at });
            }
        }
        Ok(())
    }

    /// The flash.
    pub fn into_inner(self) -> F {
        self.flash
    }

    fn newest_slot(&self) -> Option<usize> {
        newest(self.held.each_ref(), |delta| delta.base == self.base)
    }

    fn at(&self, slot: usize) -> u32 {
        let [first, second] = self.slots.at;
        if slot == 0 { first } else { second }
    }

    fn set(&mut self, slot: usize, held: Held) {
        if let Some(to) = self.held.get_mut(slot) {
            *to = held;
        }
    }

    /// Erases the first bytes of a slot. Whether that succeeds or not, what it held is not used.
    fn erase(&mut self, slot: usize, bytes: u32) -> Result<(), StoreError<F::Error>> {
        self.set(slot, Held::Nothing);
        let at = self.at(slot);
        self.flash.erase(at, at + bytes).map_err(StoreError::Flash)
    }

    /// What the slot at `at` holds.
    fn look(&mut self, at: u32) -> Result<Held, F::Error> {
        let word = F::READ_SIZE as u32;
        Held::of(self.slots.size, word, |skip, into| self.flash.read(at + skip, into))
    }

    /// The delta of these patches, with neither sequence number nor checksum.
    fn plan(&self, patches: &[Patch<'_>]) -> Result<Delta, StoreError<F::Error>> {
        let mut parts = [Part::default(); PARTS];
        let (mut given, mut after, mut total) = (0usize, 0, 0u64);
        let mut before: Option<&Patch<'_>> = None;
        for patch in patches {
            let Patch { first, last, numbers } = *patch;
            if before.is_none_or(|before| !before.same_layers(patch)) {
                if first < after || last <= first {
                    return Err(StoreError::Layers { first, last, after });
                }
                (given, after) = (given + 1, last);
            }
            before = Some(patch);
            // A length that does not fit makes the total too large for the slot.
            total = total.saturating_add(numbers.len() as u64);
            let len = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            if let Some(part) = parts.get_mut(given - 1) {
                *part = Part { first, last, len: part.len.saturating_add(len) };
            }
        }
        if given == 0 || given > PARTS {
            return Err(StoreError::Parts { given });
        }
        if let Some(&Part { first, last, .. }) = parts.iter().take(given).find(|p| p.len == 0) {
            return Err(StoreError::NoNumbers { first, last });
        }
        let delta = Delta {
            sequence: 0,
            base: self.base,
            granule: granule(Self::WORD) as u16,
            body_crc: 0,
            parts,
            count: given as u8,
            committed: false,
        };
        let (needed, given) = (delta.bytes().max(total.saturating_mul(4)), self.slots.size);
        if needed > given.into() { Err(StoreError::Size { needed, given }) } else { Ok(delta) }
    }
}

/// Words of flash that are written one after the other, none of them twice.
struct Stream<'f, F> {
    flash: &'f mut F,
    at: u32,
    buffer: [u8; WORD_MAX],
    filled: usize,
    digest: crc::Digest<'static, u32, crc::Table<1>>,
}

impl<'f, F: NorFlash> Stream<'f, F> {
    fn new(flash: &'f mut F, at: u32) -> Self {
        Self { flash, at, buffer: [0; WORD_MAX], filled: 0, digest: CRC32.digest() }
    }

    fn numbers(&mut self, numbers: &[f32]) -> Result<(), StoreError<F::Error>> {
        for number in numbers {
            self.bytes(&number.to_le_bytes())?;
        }
        Ok(())
    }

    /// At most as many as the buffer has room for; whole buffers are written.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), StoreError<F::Error>> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        room.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
        self.filled += bytes.len();
        if self.filled < WORD_MAX { Ok(()) } else { self.flush() }
    }

    /// Zeros up to the next granule, then writes.
    fn pad(&mut self, granule: u32) -> Result<(), StoreError<F::Error>> {
        let filled = round_up(self.filled as u64, granule) as usize;
        self.buffer.get_mut(self.filled..filled).unwrap_or_default().fill(0);
        self.filled = filled;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), StoreError<F::Error>> {
        let bytes = self.buffer.get(..self.filled).unwrap_or_default();
        if !bytes.is_empty() {
            self.digest.update(bytes);
            self.flash.write(self.at, bytes).map_err(StoreError::Flash)?;
        }
        self.at += self.filled as u32;
        self.filled = 0;
        Ok(())
    }

    /// Writes these bytes and their padding.
    fn whole(&mut self, bytes: &[u8], granule: u32) -> Result<(), StoreError<F::Error>> {
        self.bytes(bytes)?;
        self.pad(granule)
    }
}
