//! Deltas of the golden model in flash that is memory: saved, found at the next start, used where
//! they lie, and forgotten.

use core::hint::black_box;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use sepal_core::arena::Word;
use sepal_core::flash::{Mapped, Slots, Store, StoreError, find, size};
use sepal_core::format::Aligned;
use sepal_core::net::{Model, Patch, Weights};

use crate::case;

const WRITE: usize = 8;
const ERASE: usize = 1024;
/// The second block: a convolution and a norm that is not affine.
const FIRST: u16 = 4;
const LAST: u16 = 8;
const NUMBERS: usize = 8 * 4 * 5 * 5 + 2 * 8;
const SLOT: u32 = match size(&[NUMBERS as u32], WRITE, ERASE) {
    Some(size) => size,
    None => panic!("there is no layout"),
};

static mut FLASH: Aligned<[u8; 2 * SLOT as usize]> = Aligned([0; 2 * SLOT as usize]);

struct Memory<'a>(&'a mut [u8]);

impl Memory<'_> {
    fn range(&mut self, at: u32, len: usize) -> Result<&mut [u8], NorFlashErrorKind> {
        let range = self.0.get_mut(at as usize..).and_then(|rest| rest.get_mut(..len));
        range.ok_or(NorFlashErrorKind::OutOfBounds)
    }
}

impl ErrorType for Memory<'_> {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Memory<'_> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        let range = self.range(at, into.len())?;
        into.iter_mut().zip(range).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.len()
    }
}

impl NorFlash for Memory<'_> {
    const WRITE_SIZE: usize = WRITE;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        self.range(from, to.saturating_sub(from) as usize)?.fill(0xff);
        Ok(())
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let range = self.range(at, bytes.len())?;
        range.iter_mut().zip(bytes).for_each(|(to, from)| *to &= *from);
        Ok(())
    }
}

/// The parameters of the second block, each the model's own by `factor`.
fn block(model: &Model<'_>, factor: f32) -> [f32; NUMBERS] {
    let mut numbers = [0.0; NUMBERS];
    let mut rest = numbers.iter_mut();
    for layer in FIRST..LAST {
        for stored in model.weights.layer(&model.net, layer.into()) {
            let own = stored.as_f32().unwrap_or_default();
            rest.by_ref().zip(own).for_each(|(to, from)| *to = from * factor);
        }
    }
    numbers
}

/// Saves the block and looks for it as the next start does.
fn saved<'f>(
    flash: &'f mut [u8],
    base: u64,
    numbers: &[f32; NUMBERS],
) -> Result<Option<Mapped<'f>>, StoreError<NorFlashErrorKind>> {
    let slots = black_box(Slots::adjacent(0, SLOT));
    Store::open(Memory(flash), slots, base)?.save(black_box(&[Patch {
        first: FIRST,
        last: LAST,
        numbers,
    }]))?;
    let mut read = [0.0; NUMBERS];
    Store::open(Memory(flash), slots, base)?.read(black_box(0), 0, &mut read)?;
    let (first, second) = flash.split_at_checked(SLOT as usize).unwrap_or_default();
    Ok(find([first, second], base).filter(|_| read == *numbers))
}

/// What the model gives with the delta.
fn patched(
    memory: &mut [Word],
    model: &Model<'_>,
    mapped: &Mapped<'_>,
    sample: &[u8],
) -> Option<[f32; case::CLASSES]> {
    mapped.delta().check(&model.net).ok()?;
    let patches = [mapped.patch(black_box(0))?];
    let weights = Weights::Patched { under: &model.weights, patches: &patches };
    case::infer(memory, &Model { weights, ..*model }, sample).ok()
}

/// 0, or what went wrong. `logits` are what the model gives without a delta.
pub fn check(
    memory: &mut [Word],
    base: u64,
    model: &Model<'_>,
    sample: &[u8],
    logits: &[f32; case::CLASSES],
) -> i32 {
    // SAFETY: this runs once, on the only thread.
    let Aligned(flash) = unsafe { &mut *(&raw mut FLASH) };
    let flash = black_box(&mut flash[..]);
    for (factor, same) in [(0.5, false), (1.0, true), (0.25, false)] {
        let Ok(Some(mapped)) = saved(flash, base, &block(model, factor)) else { return 10 };
        match patched(memory, model, &mapped, sample) {
            Some(found) if (found == *logits) == same => {}
            _ => return 11,
        }
    }
    let Ok(mut store) = Store::open(Memory(flash), Slots::adjacent(0, SLOT), base) else {
        return 12;
    };
    match store.forget() {
        Ok(()) if store.newest().is_none() => 0,
        _ => 13,
    }
}
