//! Deltas in flash: two slots, the halves of the bytes.

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use sepal::arena::Word;
use sepal::flash::{COMMIT, HEADER, Slots, Store, find};
use sepal::net::Patch;

use super::Random;
use super::parts::crc;

/// The model that deltas of the corpus belong to.
const BASE: u64 = 7;
/// The unit that is erased.
const ERASE: usize = 64;

/// Memory as flash.
struct Ram<'a>(&'a mut [u8]);

impl ErrorType for Ram<'_> {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Ram<'_> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        let from = self.0.get(at as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(NorFlashErrorKind::OutOfBounds)?);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.len()
    }
}

impl NorFlash for Ram<'_> {
    const WRITE_SIZE: usize = 1;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        let bytes = self.0.get_mut(from as usize..to as usize);
        bytes.ok_or(NorFlashErrorKind::OutOfBounds)?.fill(0xff);
        Ok(())
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let to = self.0.get_mut(at as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        to.ok_or(NorFlashErrorKind::OutOfBounds)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// The bytes of two slots after some saves.
pub fn saved(saves: &[&[Patch<'_>]]) -> Vec<u8> {
    const SIZE: usize = 256;
    let mut bytes = vec![0xff; 2 * SIZE];
    let slots = Slots { at: [0, SIZE as u32], size: SIZE as u32 };
    let mut store = Store::open(Ram(&mut bytes), slots, BASE).expect("slots that fit");
    for patches in saves {
        store.save(patches).expect("room for a delta");
    }
    bytes
}

/// What is found in mapped flash and through a driver is the same, its numbers too; and a save
/// over whatever was there is found again.
pub fn check(bytes: &[u8]) {
    let size = bytes.len() / 2 / ERASE * ERASE;
    let mut words = vec![Word::ZERO; Word::count(2 * size)];
    let flash: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    flash[..2 * size].copy_from_slice(&bytes[..2 * size]);
    let flash = &mut flash[..2 * size];
    let slots = Slots { at: [0, size as u32], size: size as u32 };
    let copy = flash.to_vec();
    let Ok(mut store) = Store::open(Ram(flash), slots, BASE) else { return };
    let _ = format!("{:?}", store.held());
    let (first, second) = copy.split_at(size);
    let mapped = find([first, second], BASE);
    assert_eq!(mapped.map(|mapped| *mapped.delta()), store.newest().copied());
    if let Some(mapped) = mapped {
        for (index, part) in mapped.delta().parts().iter().enumerate() {
            let mut numbers = vec![0.0; part.len as usize];
            store.read(index, 0, &mut numbers).expect("a part that is there");
            if let Some(patch) = mapped.patch(index) {
                let bits =
                    |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(patch.numbers), bits(&numbers));
            }
        }
    }
    let patch = Patch { first: 1, last: 2, numbers: &[0.5, -2.0] };
    if store.save(&[patch]).is_ok() {
        let mut numbers = [0.0; 2];
        store.read(0, 0, &mut numbers).expect("what was saved is there");
        assert_eq!(numbers, [0.5, -2.0]);
    }
}

/// Changes bytes, then makes the checksums of both slots right, now and then of only one part.
pub fn mutate(bytes: &mut Vec<u8>, seed: u32, inner: &mut dyn FnMut(&mut Vec<u8>)) {
    inner(bytes);
    let mut random = Random::new(seed);
    let size = bytes.len() / 2 / ERASE * ERASE;
    if size == 0 || random.below(8) == 0 {
        return;
    }
    for slot in bytes.chunks_exact_mut(size).take(2) {
        seal(slot, random.below(4) != 0);
    }
}

/// Checksums, and the word that commits, as they must be.
fn seal(slot: &mut [u8], commit: bool) {
    if slot.len() < HEADER {
        return;
    }
    let half = |slot: &[u8], at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
    let word =
        |slot: &[u8], at: usize| u32::from(half(slot, at)) | u32::from(half(slot, at + 2)) << 16;
    let granule = usize::from(half(slot, 10)).clamp(16, 256).next_power_of_two();
    let at = HEADER.next_multiple_of(granule);
    let parts = (word(slot, 28) as usize).min(8);
    let lengths = (0..parts).map(|part| word(slot, 36 + 8 * part) as usize);
    let body = lengths.fold(0usize, |sum, len| {
        sum.saturating_add(len.saturating_mul(4).saturating_add(granule - 1) / granule * granule)
    });
    let body = slot.get(at + granule..).and_then(|rest| rest.get(..body));
    if let Some(sum) = body.map(|body| crc(&[body])) {
        slot[24..28].copy_from_slice(&sum.to_le_bytes());
    }
    let sum = crc(&[&slot[..HEADER - 4]]).to_le_bytes();
    slot[HEADER - 4..HEADER].copy_from_slice(&sum);
    if commit && let Some(word) = slot.get_mut(at..at + 8) {
        word.copy_from_slice(&[&COMMIT[..], &sum].concat());
    }
}
