//! A delta: its layout, its header, and the check of a whole slot.

use embedded_storage::nor_flash::NorFlashErrorKind;

use super::{ALIGN, COMMIT, HEADER, MAGIC, PARTS, VERSION, WORD_MAX};
use crate::checksum::CRC32;
use crate::net::Net;

const PARTS_MAX: u32 = PARTS as u32;

/// The parameters of layers `first..last`, as many numbers as these layers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The first layer.
    pub first: u16,
    /// One past the last.
    pub last: u16,
    /// Numbers.
    pub len: u32,
}

/// What is known of a stored delta without its numbers: those lie in flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    pub(super) sequence: u32,
    pub(super) base: u64,
    /// What every place in the slot is a multiple of.
    pub(super) granule: u16,
    pub(super) body_crc: u32,
    pub(super) parts: [Part; PARTS],
    pub(super) count: u8,
    pub(super) committed: bool,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Held {
    /// Nothing of this form: erased, never written, or a save was cut before its header.
    Nothing,
    /// A whole delta, of whatever base model.
    Delta(Delta),
    /// Something that is not used.
    Refused(Refusal),
}

/// Why what a slot holds is not used, or a delta does not fit a net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The flash could not be read, as one with error correction refuses words whose writing
    /// was cut.
    Unreadable(NorFlashErrorKind),
    /// A header or numbers that changed, or that were never complete.
    Checksum {
        /// Which of the two.
        of: &'static str,
        /// What the bytes give.
        found: u32,
        /// What is stored.
        expected: u32,
    },
    /// Another version of the layout.
    Version {
        /// The slot's.
        found: u16,
    },
    /// A field of the header that no writer gives.
    Field {
        /// Its name.
        field: &'static str,
        /// What the slot has.
        found: u32,
        /// A value that would do.
        expected: u32,
    },
    /// A part that is not the parameters of its layers of this net.
    Part {
        /// The part.
        part: Part,
        /// Numbers that these layers have; 0 where the net does not have them.
        expected: usize,
    },
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Unreadable(kind) => write!(f, "the flash cannot be read: {kind}"),
            Self::Checksum { of, found, expected } => {
                write!(f, "checksum of the {of} is {found:#010x}, expected {expected:#010x}")
            }
            Self::Version { found } => write!(f, "version {found}, expected {VERSION}"),
            Self::Field { field, found, expected } => {
                write!(f, "{field} is {found}, expected {expected}")
            }
            Self::Part { part: Part { first, last, len }, expected } => {
                write!(f, "layers {first}..{last} have {expected} numbers, {len} are stored")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// `bytes` up to the next multiple of `of`, a power of two.
pub(super) const fn round_up(bytes: u64, of: u32) -> u64 {
    let rest = of as u64 - 1;
    bytes.saturating_add(rest) & !rest
}

/// The granule for words of this size.
pub(super) const fn granule(word: u32) -> u32 {
    if word > ALIGN as u32 { word } else { ALIGN as u32 }
}

/// Whether there is a layout for such words.
pub(super) const fn is_word(bytes: usize) -> bool {
    bytes.is_power_of_two() && bytes <= WORD_MAX
}

/// Where the word that commits the delta lies.
pub(super) const fn commit_at(granule: u32) -> u32 {
    round_up(HEADER as u64, granule) as u32
}

/// Where the numbers begin.
pub(super) const fn body_at(granule: u32) -> u32 {
    commit_at(granule) + granule
}

/// The bytes of so many numbers, padding included.
const fn bytes(numbers: u32, granule: u32) -> u64 {
    round_up(4 * numbers as u64, granule)
}

/// The bytes of flash that a delta takes: the least size of a slot.
///
/// `numbers` has the number of f32 of each part, `write` is the flash's `WRITE_SIZE` (its
/// `READ_SIZE` where that is larger) and `erase` its `ERASE_SIZE`. `None` where there is no layout
/// for these, or the bytes do not fit 32 bits.
///
/// ```
/// use sepal_core::flash::size;
/// // The second convolution of LeNet-5, on flash that is written by 8 and erased by 2048 bytes.
/// const SLOT: u32 = size(&[2416], 8, 2048).unwrap();
/// assert_eq!(SLOT, 5 * 2048);
/// assert_eq!(size(&[2416, 850], 8, 2048), Some(7 * 2048)); // the classifier beside it
/// assert_eq!(size(&[2416], 3, 2048), None);
/// ```
pub const fn size(numbers: &[u32], write: usize, erase: usize) -> Option<u32> {
    if !is_word(write) || erase == 0 || erase > u32::MAX as usize || numbers.len() > PARTS {
        return None;
    }
    let granule = granule(write as u32);
    let (mut end, mut i) = (body_at(granule) as u64, 0);
    while i < numbers.len() {
        end += bytes(numbers[i], granule);
        i += 1;
    }
    match end.checked_next_multiple_of(erase as u64) {
        Some(end) if end <= u32::MAX as u64 => Some(end as u32),
        _ => None,
    }
}

/// Whether `a` comes after `b` in the order of serial numbers, in which half of all numbers lie
/// ahead of each: the order outlives the last one.
pub(super) const fn is_later(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

/// Little-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *first
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
}

impl Delta {
    /// Deltas are numbered in the order of their saves; after the last number comes 0.
    pub const fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The model that it belongs to, as [`Store::open`](super::Store::open) was given it.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Its parts, by ascending layers.
    pub fn parts(&self) -> &[Part] {
        self.parts.get(..usize::from(self.count)).unwrap_or_default()
    }

    /// Whether its save was seen to be complete.
    pub const fn is_committed(&self) -> bool {
        self.committed
    }

    /// The bytes that it takes of its slot.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().fold(body_at(self.granule.into()).into(), |end, part| {
            end + bytes(part.len, self.granule.into())
        })
    }

    /// Checks the parts against a net: each holds as many numbers as its layers have parameters.
    /// A delta of the right base model fits its net where the one who saved it took care.
    ///
    /// # Errors
    /// The first part that does not fit.
    pub fn check(&self, net: &Net<'_>) -> Result<(), Refusal> {
        for &part in self.parts() {
            let ends = [part.first, part.last].map(|at| net.params(at.into()));
            let expected = match ends {
                [Ok(first), Ok(past)] => past.saturating_sub(first),
                _ => 0,
            };
            if part.len as usize != expected {
                return Err(Refusal::Part { part, expected });
            }
        }
        Ok(())
    }

    /// A part and its first byte in the slot.
    pub(super) fn place(&self, index: usize) -> Option<(Part, u64)> {
        let part = *self.parts().get(index)?;
        let before = self.parts().iter().take(index);
        let granule = u32::from(self.granule);
        Some((part, before.fold(body_at(granule).into(), |at, p| at + bytes(p.len, granule))))
    }

    /// Whether `self` is to be used rather than `other`, of the same base model: the committed one,
    /// the later of two that are, the earlier of two that are not. That one was in force while the
    /// other was being saved, so it is the one that is known to be whole.
    pub(super) const fn supersedes(&self, other: &Self) -> bool {
        match (self.committed, other.committed) {
            (true, true) => is_later(self.sequence, other.sequence),
            (false, false) => is_later(other.sequence, self.sequence),
            (committed, _) => committed,
        }
    }

    /// The header, its checksum last.
    pub(super) fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let mut rest = &mut header[..];
        let mut put = |bytes: &[u8]| {
            if let Some((to, after)) = core::mem::take(&mut rest).split_at_mut_checked(bytes.len())
            {
                to.copy_from_slice(bytes);
                rest = after;
            }
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&self.granule.to_le_bytes());
        put(&self.sequence.to_le_bytes());
        put(&self.base.to_le_bytes());
        put(&self.body_crc.to_le_bytes());
        put(&u32::from(self.count).to_le_bytes());
        for part in &self.parts {
            put(&part.first.to_le_bytes());
            put(&part.last.to_le_bytes());
            put(&part.len.to_le_bytes());
        }
        if let Some((fields, crc)) = header.split_last_chunk_mut() {
            *crc = CRC32.checksum(fields).to_le_bytes();
        }
        header
    }

    /// The word that commits the delta with this header, without its padding.
    pub(super) fn commit(header: &[u8; HEADER]) -> [u8; 8] {
        let [a, b, c, d] = COMMIT;
        let [e, f, g, h] = *header.last_chunk().unwrap_or(&[0; 4]);
        [a, b, c, d, e, f, g, h]
    }

    /// Reads a header. `None` where the bytes are not one's at all.
    fn parse(header: &[u8; HEADER], size: u32, word: u32) -> Result<Option<Self>, Refusal> {
        let (fields, crc) = header.split_last_chunk().unwrap_or((&[], &[0; 4]));
        let mut fields = Fields(fields);
        if fields.take() != MAGIC {
            return Ok(None);
        }
        let (found, expected) = (
            CRC32.checksum(header.get(..HEADER - 4).unwrap_or_default()),
            u32::from_le_bytes(*crc),
        );
        if found != expected {
            return Err(Refusal::Checksum { of: "header", found, expected });
        }
        let version = fields.half();
        if version != VERSION {
            return Err(Refusal::Version { found: version });
        }
        let (granule, sequence) = (fields.half(), fields.word());
        let refused = |field, found, expected| Err(Refusal::Field { field, found, expected });
        let least = super::delta::granule(word);
        if !is_word(granule.into()) || u32::from(granule) < least {
            return refused("granule", granule.into(), least);
        }
        let (base, body_crc) = (u64::from_le_bytes(fields.take()), fields.word());
        let count = match fields.word() {
            count @ 1..=PARTS_MAX => count as u8,
            count => return refused("parts", count, count.clamp(1, PARTS_MAX)),
        };
        let mut parts = [Part::default(); PARTS];
        let mut last = 0;
        for (index, part) in (0u8..).zip(&mut parts) {
            *part = Part { first: fields.half(), last: fields.half(), len: fields.word() };
            if index < count {
                if part.first < last {
                    return refused("first layer", part.first.into(), last.into());
                }
                if part.last <= part.first {
                    return refused("last layer", part.last.into(), u32::from(part.first) + 1);
                }
                if part.len == 0 {
                    return refused("numbers of a part", 0, 1);
                }
                last = part.last;
            } else if *part != Part::default() {
                return refused("parts", count.into(), u32::from(index) + 1);
            }
        }
        if let Some(&byte) = fields.0.iter().find(|&&byte| byte != 0) {
            return refused("reserved byte", byte.into(), 0);
        }
        let delta = Self { sequence, base, granule, body_crc, parts, count, committed: false };
        match delta.bytes() {
            needed if needed <= u64::from(size) => Ok(Some(delta)),
            needed => refused("size of the slot", size, u32::try_from(needed).unwrap_or(u32::MAX)),
        }
    }
}

impl Held {
    /// The delta, where there is one.
    pub const fn delta(&self) -> Option<&Delta> {
        match self {
            Self::Delta(delta) => Some(delta),
            _ => None,
        }
    }

    /// What a slot of `size` bytes holds. `read` reads at a place within the slot; places and
    /// lengths are multiples of `word`, which `size` must be too.
    pub(super) fn of<E>(
        size: u32,
        word: u32,
        mut read: impl FnMut(u32, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut buffer = [0; WORD_MAX];
        let head = round_up(HEADER as u64, word);
        if u64::from(size) < head {
            return Ok(Self::Nothing);
        }
        read(0, buffer.get_mut(..head as usize).unwrap_or_default())?;
        let header = *buffer.first_chunk().unwrap_or(&[0; HEADER]);
        let mut delta = match Delta::parse(&header, size, word) {
            Ok(Some(delta)) => delta,
            Ok(None) => return Ok(Self::Nothing),
            Err(refusal) => return Ok(Self::Refused(refusal)),
        };
        // The header's lengths were compared with the slot's: all that follows lies within it.
        let granule = u32::from(delta.granule);
        let (mut at, end) = (body_at(granule), delta.bytes() as u32);
        let mut digest = CRC32.digest();
        while at < end {
            let chunk = (end - at).min(WORD_MAX as u32);
            let bytes = buffer.get_mut(..chunk as usize).unwrap_or_default();
            read(at, bytes)?;
            digest.update(bytes);
            at += chunk;
        }
        let (found, expected) = (digest.finalize(), delta.body_crc);
        if found != expected {
            return Ok(Self::Refused(Refusal::Checksum { of: "numbers", found, expected }));
        }
        read(commit_at(granule), buffer.get_mut(..granule as usize).unwrap_or_default())?;
        delta.committed = buffer.starts_with(&Delta::commit(&header));
        Ok(Self::Delta(delta))
    }
}

/// The slot whose delta is to be used, among those that `wanted` picks. Of two that are alike the
/// first: no writer makes such.
pub(super) fn newest(held: [&Held; 2], wanted: impl Fn(&Delta) -> bool) -> Option<usize> {
    let [first, second] = held.map(|held| held.delta().filter(|delta| wanted(delta)));
    match (first, second) {
        (Some(first), Some(second)) => Some(usize::from(second.supersedes(first))),
        (Some(_), None) => Some(0),
        (None, Some(_)) => Some(1),
        (None, None) => None,
    }
}
