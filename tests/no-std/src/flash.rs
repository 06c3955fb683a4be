//! A delta of the golden model in flash that is memory: saved, found at the next start, used
//! where it lies, and forgotten.

use core::hint::black_box;

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};
use sepal_core::arena::Word;
use sepal_core::flash::{Slots, Store, find, size};
use sepal_core::format::File;
use sepal_core::layer::Role;
use sepal_core::net::{Model, Patch, Weights};

use crate::case;

const WRITE: usize = 8;
const ERASE: usize = 1024;
/// The second block: a convolution, and a norm that is not affine.
const BLOCK: usize = 8 * 4 * 5 * 5 + 2 * 8;
const SLOT: usize = match size(&[BLOCK as u32], WRITE, ERASE) {
    Some(size) => size as usize,
    None => panic!("there is no layout"),
};

static mut FLASH: [Word; 2 * SLOT / Word::BYTES] = [Word::NAN; 2 * SLOT / Word::BYTES];

struct Memory<'a>(&'a mut [Word; 2 * SLOT / Word::BYTES]);

impl Memory<'_> {
    fn range(&mut self, at: u32, len: usize) -> Result<&mut [u8], NorFlashErrorKind> {
        let bytes = self.0.as_flattened_bytes();
        bytes.get_mut(at as usize..).and_then(|b| b.get_mut(..len)).ok_or(NorFlashErrorKind::OutOfBounds)
    }
}
