//! Every reader of untrusted bytes as a function of the bytes, with what mutates its files.
//!
//! A reader that is new is a function in one of the files here, a line in [`TARGETS`], a file in
//! `fuzz_targets` with its entry in `Cargo.toml`, seeds in `corpus`, and perhaps a dictionary.

mod data;
mod file;
pub mod flash;
pub mod format;
mod interchange;
pub mod parts;

/// Changes a file; the last argument changes a piece of it at random.
pub type Mutate = fn(&mut Vec<u8>, u32, &mut dyn FnMut(&mut Vec<u8>));

/// A reader.
pub struct Target {
    /// What it reads; the name of its corpus and its dictionary.
    pub name: &'static str,
    /// Reads, and uses what was read. It panics only where a promise is broken.
    pub check: fn(&[u8]),
    /// What makes one file of another.
    pub mutate: Mutate,
}

/// All readers.
pub const TARGETS: [Target; 12] = [
    Target { name: "model", check: format::model, mutate: format::mutate },
    Target { name: "checkpoint", check: format::checkpoint, mutate: format::mutate },
    Target { name: "flash", check: flash::check, mutate: flash::mutate },
    Target { name: "idx", check: data::idx, mutate: bytes },
    Target { name: "cifar", check: data::cifar, mutate: bytes },
    Target { name: "csv", check: data::csv, mutate: bytes },
    Target { name: "text", check: data::text, mutate: bytes },
    Target { name: "npy", check: data::npy, mutate: bytes },
    Target { name: "image", check: data::image, mutate: bytes },
    Target { name: "motion", check: data::motion, mutate: bytes },
    Target { name: "onnx", check: interchange::onnx, mutate: bytes },
    Target { name: "safetensors", check: interchange::safetensors, mutate: bytes },
];

/// The reader of a name.
///
/// # Panics
/// Where there is none.
pub const fn named(name: &str) -> &'static Target {
    let mut i = 0;
    while i < TARGETS.len() {
        const ALL: &[Target; 12] = &TARGETS;
        let (a, b) = (ALL[i].name.as_bytes(), name.as_bytes());
        let mut same = a.len() == b.len();
        let mut j = 0;
        while same && j < a.len() {
            same = a[j] == b[j];
            j += 1;
        }
        if same {
            return &ALL[i];
        }
        i += 1;
    }
    panic!("no reader of this name");
}

/// Files without a structure that a mutation would have to keep.
fn bytes(bytes: &mut Vec<u8>, _: u32, inner: &mut dyn FnMut(&mut Vec<u8>)) {
    inner(bytes);
}

/// Numbers made of a seed, for choices (SplitMix64).
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u32) -> Self {
        Self(seed.into())
    }

    /// The next number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % n as u64) as usize
    }
}
