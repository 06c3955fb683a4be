//! Memory lent by the caller, and the typed slots that a plan cuts it into.

use bytemuck::{Pod, Zeroable};

use crate::shape::Shape;

/// The unit of an arena: 16 bytes, 16-byte aligned.
///
/// ```
/// use sepal_core::arena::Word;
/// static mut _RAM: [Word; 4096] = [Word::ZERO; 4096]; // 64 KiB of a firmware image
/// assert_eq!((size_of::<Word>(), align_of::<Word>()), (Word::BYTES, Word::BYTES));
/// ```
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
pub struct Word([u8; 16]);

impl Word {
    /// All bits zero.
    pub const ZERO: Self = Self([0; 16]);
    /// Four NaN as f32: what a test fills an arena with, so that reading the unwritten shows.
    pub const NAN: Self = Self([0xff; 16]);
    /// Its size and alignment.
    pub const BYTES: usize = 16;

    /// `bytes` rounded up to whole words; saturates.
    pub const fn round_up(bytes: usize) -> usize {
        bytes.saturating_add(Self::BYTES - 1) / Self::BYTES * Self::BYTES
    }

    /// How many words hold `bytes`.
    pub const fn count(bytes: usize) -> usize {
        Self::round_up(bytes) / Self::BYTES
    }
}

/// The type of a slot's or tensor's elements. The numbers are those of the model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
#[repr(u8)]
pub enum Dtype {
    /// IEEE 754 single precision: what everything computes in.
    F32 = 0,
    /// IEEE 754 half precision: storage only.
    F16 = 1,
    /// Signed bytes: quantised weights and activations.
    I8 = 2,
    /// Bytes: raw samples, winners of a pool.
    U8 = 3,
    /// Accumulators of quantised kernels.
    I32 = 4,
    /// Labels.
    U16 = 5,
    /// Indices.
    U32 = 6,
    /// [`Pair`](crate::neighbour::Pair): nearest neighbours, viewed as four words each.
    Pair = 7,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::Pair => 16,
        }
    }
}

/// A Rust type that a slot can be viewed as.
pub trait Element: Pod {
    /// The slot's type.
    const DTYPE: Dtype;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: Dtype = Dtype::$d; })* };
}
element!(f32 => F32, i8 => I8, u8 => U8, i32 => I32, u16 => U16, u32 => U32, [u32; 4] => Pair);
#[cfg(feature = "f16")]
element!(half::f16 => F16);

/// How the elements of a slot lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Layout {
    /// Channels before rows before columns: the reference's.
    #[default]
    Nchw,
    /// Channels fastest.
    Nhwc,
    /// Blocks of eight channels, the channel within the block fastest; the last block is padded.
    Nchw8c,
}

impl Layout {
    /// Elements that a tensor of `shape` takes, padding included; `None` past 32 bits.
    pub const fn elements(self, shape: Shape) -> Option<u32> {
        match self {
            Self::Nchw | Self::Nhwc => shape.len(),
            Self::Nchw8c => match shape.c.checked_next_multiple_of(8) {
                Some(c) => Shape { c, ..shape }.len(),
                None => None,
            },
        }
    }
}

/// A place in an arena: data, valid on any backend whose memory is cut by the same plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Slot {
    /// The first byte.
    pub at: usize,
    /// The tensor's shape.
    pub shape: Shape,
    /// Its elements' type.
    pub dtype: Dtype,
    /// How they lie.
    pub layout: Layout,
}

impl Slot {
    /// No place: a layer without parameters has such slots.
    pub const EMPTY: Self =
        Self { at: 0, shape: Shape::new(0, 0, 0, 0), dtype: Dtype::F32, layout: Layout::Nchw };

    /// A slot in the reference's layout.
    pub const fn new(at: usize, shape: Shape, dtype: Dtype) -> Self {
        Self { at, shape, dtype, layout: Layout::Nchw }
    }

    /// `len` elements in a row.
    pub const fn vector(at: usize, len: u32, dtype: Dtype) -> Self {
        Self::new(at, Shape::rows(1, len), dtype)
    }

    /// Elements, padding of the layout included. Planned slots fit; others count as 0.
    pub const fn elements(self) -> usize {
        match self.layout.elements(self.shape) {
            Some(elements) => elements as usize,
            None => 0,
        }
    }

    /// Bytes without rounding.
    #[inline(never)]
    pub const fn bytes(self) -> usize {
        self.elements().saturating_mul(self.dtype.size())
    }

    /// Whether it has no elements.
    pub const fn is_empty(self) -> bool {
        self.elements() == 0
    }

    /// The same elements in a row, padding of the layout included: as they lie.
    pub const fn flat(self) -> Self {
        Self::vector(self.at, self.elements() as u32, self.dtype)
    }

    /// The first `n` samples.
    pub const fn head(self, n: u32) -> Self {
        Self { shape: self.shape.with_n(n), ..self }
    }

    /// `n` samples from sample `first` on.
    pub const fn samples(self, first: u32, n: u32) -> Self {
        let skipped = self.head(first).bytes();
        Self { at: self.at.saturating_add(skipped), ..self.head(n) }
    }
}

/// Why a slot cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArenaError {
    /// The slot reaches past the arena's end.
    OutOfMemory {
        /// Bytes that the arena would need.
        needed: usize,
        /// Bytes that it has.
        given: usize,
    },
    /// The slot holds another type than the one asked for.
    Dtype {
        /// What the slot holds.
        slot: Dtype,
        /// What was asked for.
        asked: Dtype,
    },
    /// The slot does not begin at a multiple of its element's size.
    Misaligned {
        /// Its first byte.
        at: usize,
    },
    /// Two slots of one call overlap.
    Overlap,
    /// Host memory of another length than the slot's.
    Length {
        /// The slot's elements.
        slot: usize,
        /// The host's elements.
        host: usize,
    },
}

impl core::fmt::Display for ArenaError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::OutOfMemory { needed, given } => {
                write!(f, "{needed} bytes of memory are needed, {given} were given")
            }
            Self::Dtype { slot, asked } => write!(f, "a slot of {slot:?} read as {asked:?}"),
            Self::Misaligned { at } => write!(f, "a slot at byte {at} is not aligned"),
            Self::Overlap => write!(f, "two slots of one call overlap"),
            Self::Length { slot, host } => {
                write!(f, "a slot of {slot} elements against host memory of {host}")
            }
        }
    }
}

impl core::error::Error for ArenaError {}

/// Memory lent by the caller. Every byte that a net's activations, parameters and gradients need
/// lies here; nothing is allocated beside it.
///
/// ```
/// use sepal_core::arena::{Arena, Dtype, Slot, Word};
/// let mut memory = [Word::ZERO; 2];
/// let mut arena = Arena::new(&mut memory);
/// let slot = Slot::vector(16, 4, Dtype::F32);
/// arena.view_mut::<f32>(slot)?.fill(1.0);
/// assert_eq!(arena.view::<f32>(slot)?, [1.0; 4]);
/// # Ok::<(), sepal_core::arena::ArenaError>(())
/// ```
#[derive(Debug)]
pub struct Arena<'a> {
    words: &'a mut [Word],
}

impl<'a> Arena<'a> {
    /// An arena in `words`. What they held before is never read.
    pub const fn new(words: &'a mut [Word]) -> Self {
        Self { words }
    }

    /// Its size in bytes.
    pub const fn bytes(&self) -> usize {
        core::mem::size_of_val(self.words)
    }

    /// A slot to read.
    ///
    /// # Errors
    /// A slot past the end, misaligned, or of another type.
    pub fn view<T: Element>(&self, slot: Slot) -> Result<&[T], ArenaError> {
        let (first, past) = self.range::<T>(slot)?;
        let bytes: &[u8] = bytemuck::cast_slice(self.words);
        cast(bytes.get(first..past).unwrap_or_default(), slot.at)
    }

    /// A slot to write.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn view_mut<T: Element>(&mut self, slot: Slot) -> Result<&mut [T], ArenaError> {
        let (first, past) = self.range::<T>(slot)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(self.words);
        cast_mut(bytes.get_mut(first..past).unwrap_or_default(), slot.at)
    }

    /// Several slots at once, of types that each [`Lease`] is then asked for.
    ///
    /// # Errors
    /// A slot past the end, or two that overlap. Empty slots overlap nothing.
    pub fn lease<const N: usize>(
        &mut self,
        slots: [Slot; N],
    ) -> Result<[Lease<'_>; N], ArenaError> {
        let slots = slots.each_ref();
        let mut leases = slots.map(Lease::none);
        cut(bytemuck::cast_slice_mut(self.words), &slots, &mut leases)?;
        Ok(leases)
    }

    /// The elements of a slot of a plan that fits the arena: whoever has checked that needs no error
    /// for each slot. None where the slot does not fit or is of another type.
    #[inline(never)]
    pub(crate) fn planned<T: Element>(&mut self, slot: Slot) -> &mut [T] {
        let [lease] = self.planned_leases([&slot]);
        lease.planned()
    }

    /// As [`lease`](Self::lease), for slots of a plan that fits the arena: without bytes where they do
    /// not, or overlap.
    pub(crate) fn planned_leases<const N: usize>(&mut self, slots: [&Slot; N]) -> [Lease<'_>; N] {
        let mut leases = slots.map(Lease::none);
        // What has no bytes is found where they are looked for.
        let _ = cut(bytemuck::cast_slice_mut(self.words), &slots, &mut leases);
        leases
    }

    fn range<T: Element>(&self, slot: Slot) -> Result<(usize, usize), ArenaError> {
        if slot.dtype != T::DTYPE {
            return Err(ArenaError::Dtype { slot: slot.dtype, asked: T::DTYPE });
        }
        let (past, given) = (slot.at.saturating_add(slot.bytes()), self.bytes());
        if slot.is_empty() {
            Ok((0, 0))
        } else if past > given {
            Err(ArenaError::OutOfMemory { needed: past, given })
        } else {
            Ok((slot.at, past))
        }
    }
}

/// One of several slots borrowed together.
#[derive(Debug)]
pub struct Lease<'a> {
    /// The slot's first byte.
    at: usize,
    dtype: Dtype,
    bytes: &'a mut [u8],
}

impl<'a> Lease<'a> {
    /// That of a slot without its bytes.
    fn none(slot: &Slot) -> Self {
        Self { at: slot.at, dtype: slot.dtype, bytes: &mut [] }
    }

    /// The slot's elements.
    ///
    /// # Errors
    /// A slot of another type, or misaligned.
    pub fn get<T: Element>(self) -> Result<&'a mut [T], ArenaError> {
        if self.dtype != T::DTYPE && !self.bytes.is_empty() {
            return Err(ArenaError::Dtype { slot: self.dtype, asked: T::DTYPE });
        }
        cast_mut(self.bytes, self.at)
    }

    /// The slot's elements; none where they are of another type.
    #[inline(never)]
    pub(crate) fn planned<T: Element>(self) -> &'a mut [T] {
        if self.dtype == T::DTYPE {
            cast_mut(self.bytes, self.at).unwrap_or_default()
        } else {
            &mut []
        }
    }

    /// The type of its elements.
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The slot's bytes.
    pub fn bytes(self) -> &'a mut [u8] {
        self.bytes
    }
}

/// Gives each lease its slot's bytes.
///
/// # Errors
/// As [`Arena::lease`].
#[inline(never)]
fn cut<'a>(
    bytes: &'a mut [u8],
    slots: &[&Slot],
    leases: &mut [Lease<'a>],
) -> Result<(), ArenaError> {
    let given = bytes.len();
    for slot in slots {
        let needed = slot.at.saturating_add(slot.bytes());
        if needed > given && !slot.is_empty() {
            return Err(ArenaError::OutOfMemory { needed, given });
        }
    }
    let (mut rest, mut done) = (bytes, 0);
    // From the lowest up; one that has its bytes is not empty any more.
    for _ in slots {
        let open = slots
            .iter()
            .zip(&mut *leases)
            .filter(|(slot, lease)| lease.bytes.is_empty() && !slot.is_empty());
        let Some((slot, lease)) = open.min_by_key(|(slot, _)| slot.at) else { break };
        let before = slot.at.checked_sub(done).ok_or(ArenaError::Overlap)?;
        let (_, above) = rest.split_at_mut_checked(before).ok_or(ArenaError::Overlap)?;
        (lease.bytes, rest) =
            above.split_at_mut_checked(slot.bytes()).ok_or(ArenaError::Overlap)?;
        done = slot.at.saturating_add(slot.bytes());
    }
    Ok(())
}

fn cast<T: Element>(bytes: &[u8], at: usize) -> Result<&[T], ArenaError> {
    if bytes.is_empty() {
        return Ok(&[]);
    }
    bytemuck::try_cast_slice(bytes).map_err(|_| ArenaError::Misaligned { at })
}

fn cast_mut<T: Element>(bytes: &mut [u8], at: usize) -> Result<&mut [T], ArenaError> {
    if bytes.is_empty() {
        return Ok(&mut []);
    }
    bytemuck::try_cast_slice_mut(bytes).map_err(|_| ArenaError::Misaligned { at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_checked() {
        let mut memory = [Word::ZERO; 2];
        let mut arena = Arena::new(&mut memory);
        let past = Slot::vector(16, 5, Dtype::F32);
        assert_eq!(arena.view::<f32>(past), Err(ArenaError::OutOfMemory { needed: 36, given: 32 }));
        let odd = Slot::vector(2, 1, Dtype::F32);
        assert_eq!(arena.view_mut::<f32>(odd), Err(ArenaError::Misaligned { at: 2 }));
        let bytes = Slot::vector(0, 4, Dtype::U8);
        assert_eq!(
            arena.view::<f32>(bytes),
            Err(ArenaError::Dtype { slot: Dtype::U8, asked: Dtype::F32 })
        );
        let a = Slot::vector(0, 4, Dtype::F32);
        let b = Slot::vector(8, 4, Dtype::U8);
        assert_eq!(arena.lease([a, b]).err(), Some(ArenaError::Overlap));
        let needed = ArenaError::OutOfMemory { needed: 36, given: 32 };
        assert_eq!(arena.lease([a, b, past]).err(), Some(needed));
    }

    #[test]
    fn empty_slots_overlap_nothing() {
        let mut memory = [Word::ZERO; 1];
        let mut arena = Arena::new(&mut memory);
        let [a, none, also_none] =
            arena.lease([Slot::vector(0, 4, Dtype::F32), Slot::EMPTY, Slot::EMPTY]).unwrap();
        assert_eq!(a.get::<f32>().unwrap().len(), 4);
        assert!(none.get::<f32>().unwrap().is_empty());
        assert!(also_none.get::<u8>().unwrap().is_empty());
    }

    #[test]
    fn samples_step_by_whole_samples() {
        let slot = Slot::new(32, Shape::new(4, 3, 1, 1), Dtype::U8);
        assert_eq!(slot.samples(2, 1).at, 38);
        assert_eq!(slot.samples(2, 2).bytes(), 6);
        let blocked = Slot { layout: Layout::Nchw8c, ..slot };
        assert_eq!(blocked.samples(1, 1).at, 40);
    }
}
