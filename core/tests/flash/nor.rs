//! A NOR flash whose power can be cut at and within every operation.

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

/// What the operation in which the power is cut leaves in its range.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// It as it was.
    Nothing,
    /// This many bytes as they should be, the rest as it was.
    Prefix(usize),
    /// The same, and a mixture of the bits before and after in the word that follows.
    Torn(usize),
    /// A mixture of the bits before and after everywhere.
    Mixed,
    /// Any bits at all.
    Any,
    /// This many bytes as they were, any bits behind.
    AnyBehind(usize),
    /// What should be there.
    All,
    /// Bits that read in another way after each start: all as before, all as after, or a mixture.
    Marginal,
}

/// An operation that changes the flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// So many bytes were erased.
    Erase(usize),
    /// So many bytes were written.
    Write(usize),
}

/// Read by `R`, written by `W` and erased by `E` bytes.
#[derive(Clone)]
pub struct Nor<const R: usize, const W: usize, const E: usize> {
    pub bytes: Vec<u8>,
    /// Words that must be erased before they are written.
    written: Vec<bool>,
    /// Words that error correction gives up.
    unreadable: Vec<bool>,
    marginal: Vec<(usize, u8, u8)>,
    /// The operation at which the power goes, counted from 0.
    pub cut: Option<(usize, Cut)>,
    /// Operations since the last start.
    pub log: Vec<Op>,
    dead: bool,
    /// Whether words whose writing was cut cannot be read.
    pub corrects: bool,
    /// Whether it says that it erases and writes and does neither.
    pub protected: bool,
    random: u64,
}

impl<const R: usize, const W: usize, const E: usize> Nor<R, W, E> {
    pub fn new(bytes: Vec<u8>) -> Self {
        // What lies there is not known to be erased.
        let words = bytes.len() / W.max(1);
        let (written, unreadable) = (vec![true; words], vec![false; words]);
        Self {
            bytes,
            written,
            unreadable,
            marginal: vec![],
            cut: None,
            log: vec![],
            dead: false,
            corrects: false,
            protected: false,
            random: 1,
        }
    }

    pub fn start(&mut self, cut: Option<(usize, Cut)>) {
        (self.dead, self.cut) = (false, cut);
        self.log.clear();
        let way = self.random() % 3;
        for (at, old, new) in self.marginal.clone() {
            self.bytes[at] = match way {
                0 => old,
                1 => new,
                _ => self.mixture(old, new),
            };
        }
    }

    pub fn seed(&mut self, seed: u64) {
        self.random = seed;
    }

    /// SplitMix64: there are many bytes to draw.
    fn random(&mut self) -> u8 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 56) as u8
    }

    /// Each bit is one of the two.
    fn mixture(&mut self, a: u8, b: u8) -> u8 {
        let mask = self.random();
        a & mask | b & !mask
    }

    fn change(&mut self, op: Op, at: usize, new: &[u8]) -> Result<(), NorFlashErrorKind> {
        if self.dead {
            return Err(NorFlashErrorKind::Other);
        }
        let cut = self.cut.filter(|cut| cut.0 == self.log.len()).map(|cut| cut.1);
        self.log.push(op);
        if self.protected {
            return Ok(());
        }
        let range = at..at + new.len();
        self.marginal.retain(|(at, ..)| !range.contains(at));
        let words = range.start / W..range.end / W;
        for (i, &new) in new.iter().enumerate() {
            let old = self.bytes[at + i];
            self.bytes[at + i] = match cut {
                None | Some(Cut::All) => new,
                Some(Cut::Nothing) => old,
                Some(Cut::Prefix(n) | Cut::Torn(n)) if i < n => new,
                Some(Cut::Torn(n)) if i < n + W => self.mixture(old, new),
                Some(Cut::Prefix(_) | Cut::Torn(_)) => old,
                Some(Cut::AnyBehind(n)) if i < n => old,
                Some(Cut::Any | Cut::AnyBehind(_)) => self.random(),
                Some(Cut::Mixed) => self.mixture(old, new),
                Some(Cut::Marginal) => {
                    self.marginal.push((at + i, old, new));
                    old
                }
            };
        }
        let erased = cut.is_none() && matches!(op, Op::Erase(_));
        self.written[words.clone()].fill(!erased);
        self.unreadable[words].fill(false);
        if let (true, Some(Cut::Torn(n)), Op::Write(_)) = (self.corrects, cut, op) {
            self.unreadable[(at + n) / W] = true;
        }
        self.dead = cut.is_some();
        if self.dead { Err(NorFlashErrorKind::Other) } else { Ok(()) }
    }
}

impl<const R: usize, const W: usize, const E: usize> ErrorType for Nor<R, W, E> {
    type Error = NorFlashErrorKind;
}

impl<const R: usize, const W: usize, const E: usize> ReadNorFlash for Nor<R, W, E> {
    const READ_SIZE: usize = R;

    fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        check_read(self, at, into.len()).expect("an aligned read within the flash");
        let range = at as usize..at as usize + into.len();
        let words = range.start / W..range.end.div_ceil(W);
        if self.dead || self.unreadable[words].contains(&true) {
            return Err(NorFlashErrorKind::Other);
        }
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const R: usize, const W: usize, const E: usize> NorFlash for Nor<R, W, E> {
    const WRITE_SIZE: usize = W;
    const ERASE_SIZE: usize = E;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        check_erase(self, from, to).expect("an aligned erase within the flash");
        let len = (to - from) as usize;
        self.change(Op::Erase(len), from as usize, &vec![0xff; len])
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        check_write(self, at, bytes.len()).expect("an aligned write within the flash");
        let words = at as usize / W..(at as usize + bytes.len()) / W;
        if !self.dead && !self.protected {
            assert!(!self.written[words].contains(&true), "a word is written twice");
            let range = at as usize..at as usize + bytes.len();
            assert!(self.bytes[range].iter().all(|&byte| byte == 0xff), "a bit would rise");
        }
        self.change(Op::Write(bytes.len()), at as usize, bytes)
    }
}
